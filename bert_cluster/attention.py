"""Attention by any of the methods, as a function of tensors and settings."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import cuda_ops
from bert_cluster.config import FULL, ClusterConfig, LayerSettings
from bert_cluster.errors import ConfigError
from bert_cluster.planes import random_planes
from cuda_ops import operator_checks


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    config: ClusterConfig | None = None,
    scale: float | None = None,
) -> Tensor:
    """Bidirectional attention with the given settings: what a patched layer computes.

    Args:
        q: (B, H, N, D) float32, float64, bfloat16 or float16.
        k: (B, H_kv, N, D), H_kv divides H.
        v: as k.
        mask: (B, N) bool, true where a token is valid; None: all are. A padded token's output is 0, except with "full".
        config: settings; None for the defaults. `layers` must be empty: there is one layer here.
        scale: None for D ** -0.5.

    Returns:
        (B, H, N, D) of q's dtype.

    Raises:
        ConfigError: `config` is no ClusterConfig, or has `layers`.
        TypeError, ValueError: tensors that do not fit each other.
    """
    config = ClusterConfig() if config is None else config
    if not isinstance(config, ClusterConfig):
        raise ConfigError(f"config must be a ClusterConfig or None, got {type(config).__name__}.")
    if config.layers:
        raise ConfigError(
            "attention() is one layer and takes settings without `layers`; use config.for_layer's values."
        )
    settings = config.for_layer(0)
    operator_checks.full_attention(q, k, v, mask, 1.0 if scale is None else scale)
    planes = random_planes(settings.bits, q.shape[-1], settings.seed).to(q.device) if settings.hashes else None
    return run_layer(q, k, v, mask, settings, planes, scale)


def run_layer(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    settings: LayerSettings,
    planes: Tensor | None,
    scale: float | None,
) -> Tensor:
    """`attention` with settings and planes at hand; planes are None for methods that hash nothing."""
    if settings.method == FULL:
        keys = None if mask is None else mask[:, None, None, :]
        grouped = k.shape[1] != q.shape[1]
        return scaled_dot_product_attention(q, k, v, attn_mask=keys, scale=scale, enable_gqa=grouped)
    budgets, exact_below = settings.shortest, settings.exact_below
    # The operators below do so as well, but check budgets and write decisions; a compiled graph serves every length.
    if not torch.compiler.is_compiling() and q.shape[2] < exact_below:
        return cuda_ops.full_attention(q, k, v, mask, scale)[0]
    if planes is None:
        return cuda_ops.refined_clustered(
            q, k, v, mask, **budgets, scale=scale, exact_below=exact_below, longer=settings.longer
        )[0]
    clusters, iterations = budgets["clusters"], settings.iterations
    if settings.method == "clustered":
        return cuda_ops.clustered(q, k, v, mask, planes, clusters, iterations, scale, exact_below)[0]
    topk = budgets["topk"]
    return cuda_ops.improved_clustered(q, k, v, mask, planes, clusters, topk, iterations, scale, exact_below)[0]


def runs_on_reference(q: Tensor) -> bool:
    """Whether the operators serve such tensors by their PyTorch reference only."""
    return cuda_ops.backend_for(q.device.type, q.dtype) == "reference"
