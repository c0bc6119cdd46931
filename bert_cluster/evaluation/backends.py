"""What ran: the backend of a method, and how often its layers ran clustered, exact or on the reference."""

from collections import Counter

import torch
from transformers import PreTrainedModel

import bert_cluster
import cuda_ops
from bert_cluster.evaluation.methods import Method
from bert_cluster.evaluation.options import FULL


def operators_here(device: torch.device, dtype: torch.dtype) -> str:
    """What the operators of cuda_ops run on for this device: cpu-avx512, cuda, reference, ..."""
    return cuda_ops.backend_for(device.type, dtype)


def backend_of(model: PreTrainedModel, method: Method) -> str:
    """The backend in the results: transformers' attention name for full, the clustered layers' operators otherwise."""
    if method.config is None:
        return str(model.config._attn_implementation)
    return ", ".join(sorted({layer.backend for layer in _clustered_layers(model)}))


def calls_of(model: PreTrainedModel, method: Method) -> dict[str, int]:
    """Attention calls so far by how they ran, summed over the layers set to run clustered; empty for full attention."""
    if method.config is None:
        return {}
    calls: Counter[str] = Counter()
    for layer in _clustered_layers(model):
        calls.update(layer.calls)
    return dict(calls)


def _clustered_layers(model: PreTrainedModel) -> list[bert_cluster.LayerInfo]:
    return [layer for layer in bert_cluster.info(model).layers if layer.method != FULL]
