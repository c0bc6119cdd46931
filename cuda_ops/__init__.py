"""Clustered attention's operators: plain PyTorch everywhere, compiled where it was built. Imports torch only.

`python -m cuda_ops` tells what runs here, and why.
"""

# Importing autograd and fakes registers the gradients and the fake kernels.
from cuda_ops import autograd, fakes  # noqa: F401
from cuda_ops._library import ReferenceBackendWarning, Status, backend_for, status
from cuda_ops.ops import clustered, full_attention, improved_clustered, refined_clustered
from cuda_ops.refined_stages import cluster_rows, refined_attention, tail
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
    "cluster_rows",
    "clustered",
    "exact_attention",
    "full_attention",
    "group_mean",
    "group_scatter",
    "hash_vectors",
    "improved_clustered",
    "refined_attention",
    "refined_clustered",
    "status",
    "tail",
    "top_keys",
]
