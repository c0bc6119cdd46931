"""What ran: the backend of a method, and how often its layers ran clustered, exact or on the reference."""

from collections import Counter

import torch
from transformers import PreTrainedModel

import bert_cluster
from bert_cluster.evaluation.methods import Method


def operators_here(device: torch.device, dtype: torch.dtype) -> str:
    """What the operators of cuda_ops run on for this device: cpu-avx512, cuda, reference, ..."""
    from cuda_ops import _library

    return _library.backend_for(device.type, dtype)


def backend_of(model: PreTrainedModel, method: Method) -> str:
    """The backend in the results: transformers' attention name for full, the operators' backend otherwise."""
    if method.config is None:
        return str(model.config._attn_implementation)
    return operators_here(model.device, model.dtype)


def calls_of(model: PreTrainedModel, method: Method) -> dict[str, int]:
    """Attention calls so far by how they ran, summed over the patched layers; empty for full attention."""
    if method.config is None:
        return {}
    calls: Counter[str] = Counter()
    for layer in bert_cluster.info(model).layers:
        calls.update(layer.calls)
    return dict(calls)
