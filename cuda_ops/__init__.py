"""Clustered attention's operators: plain PyTorch everywhere, compiled where it was built. Imports torch only.

`python -m cuda_ops` tells what runs here, and why.
"""

# Importing autograd and fakes registers the gradients and the fake kernels.
from cuda_ops import autograd, fakes  # noqa: F401
from cuda_ops._library import ReferenceBackendWarning, Status, backend_for, status
from cuda_ops.ops import clustered, full_attention, improved_clustered
from cuda_ops.stages import (
    centroid_attention,
    centroid_scores,
    cluster_codes,
    exact_attention,
    group_mean,
    group_scatter,
    hash_vectors,
    top_keys,
)

# Here and not at the first use: what torch.compile or torch.export made runs without passing through the wrappers.
status()

__all__ = [
    "ReferenceBackendWarning",
    "Status",
    "backend_for",
    "centroid_attention",
    "centroid_scores",
    "cluster_codes",
    "clustered",
    "exact_attention",
    "full_attention",
    "group_mean",
    "group_scatter",
    "hash_vectors",
    "improved_clustered",
    "status",
    "top_keys",
]
