"""The operators on tensors without values: the inputs' checks, then the outputs' shapes, types and strides."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cuda_ops import operator_checks
from cuda_ops.reference_parts import accumulation_dtype
from cuda_ops.schemas import LIBRARY, NAMESPACE
from cuda_ops.steps import largest, steps_of


def fake_kernel(function: Callable[..., object]) -> Callable[..., object]:
    """Register a function as the fake kernel of the operator of its name."""
    torch.library.register_fake(f"{NAMESPACE}::{function.__name__}", function, lib=LIBRARY)
    return function


def _accumulated(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=accumulation_dtype(x.dtype))


def _integers(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.int32)


def _token_major(x: Tensor) -> Tensor:
    """x (B, H, N, D): a view of a contiguous (B, N, H, D) tensor."""
    batch, heads, tokens, size = x.shape
    return x.new_empty(batch, tokens, heads, size).transpose(1, 2)


def _slots(topk: int, tokens: int) -> int:
    """min(topk, tokens), without asking which of them it is when the number of tokens is symbolic."""
    return torch.sym_min(topk, tokens)


@fake_kernel
def hash_vectors(x: Tensor, planes: Tensor, mask: Tensor | None) -> Tensor:
    operator_checks.hash_vectors(x, planes, mask)
    return x.new_empty(*x.shape[:3], (planes.shape[0] + 63) // 64, dtype=torch.int64)


@fake_kernel
def cluster_codes(
    codes: Tensor, mask: Tensor | None, bits: int, clusters: int, iterations: int
) -> tuple[Tensor, Tensor]:
    operator_checks.cluster_codes(codes, mask, bits, clusters, iterations)
    batch, heads, _, words = codes.shape
    return _integers(codes, *codes.shape[:3]), codes.new_empty(batch, heads, clusters, words)


@fake_kernel
def group_mean(x: Tensor, assignment: Tensor, clusters: int, scale: float) -> Tensor:
    operator_checks.group_mean(x, assignment, clusters, scale)
    return _accumulated(x, x.shape[0], x.shape[1], clusters, x.shape[3])


@fake_kernel
def centroid_scores(centroids: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    operator_checks.centroid_scores(centroids, k, mask)
    return centroids.new_empty(*centroids.shape[:3], k.shape[2])


@fake_kernel
def top_keys(scores: Tensor, mask: Tensor | None, topk: int) -> Tensor:
    operator_checks.top_keys(scores, mask, topk)
    return _integers(scores, *scores.shape[:3], _slots(topk, scores.shape[3]))


@fake_kernel
def centroid_attention(
    scores: Tensor, v: Tensor, mask: Tensor | None, top_keys: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    operator_checks.centroid_attention(scores, v, mask, top_keys)
    clusters = scores.shape[:3]
    return (scores.new_empty(*clusters, v.shape[3]), scores.new_empty(clusters), scores.new_empty(clusters))


@fake_kernel
def exact_attention(
    q: Tensor, k: Tensor, v: Tensor, assignment: Tensor, top_keys: Tensor, top_mass: Tensor, scale: float
) -> Tensor:
    operator_checks.exact_attention(q, k, v, assignment, top_keys, top_mass, scale)
    return _accumulated(q, *q.shape)


@fake_kernel
def group_scatter(values: Tensor, assignment: Tensor) -> Tensor:
    operator_checks.group_scatter(values, assignment)
    return values.new_empty(*assignment.shape, values.shape[3])


@fake_kernel
def cluster_rows(x: Tensor, mask: Tensor | None, clusters: int, rounds: int, sample: int) -> Tensor:
    operator_checks.cluster_rows(x, mask, clusters, rounds, sample)
    return _integers(x, *x.shape[:3])


@fake_kernel
def tail(
    scores: Tensor, k: Tensor, v: Tensor, key_clusters: Tensor, top_keys: Tensor, key_clusters_count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    operator_checks.tail(scores, k, v, key_clusters, top_keys, key_clusters_count)
    cells = (*scores.shape[:3], key_clusters_count)
    vectors = (*cells, k.shape[3])
    return scores.new_empty(cells), scores.new_empty(cells), scores.new_empty(vectors), scores.new_empty(vectors)


@fake_kernel
def refined_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    centroids: Tensor,
    scores: Tensor,
    tail_log_mass: Tensor,
    tail_spread: Tensor,
    tail_keys: Tensor,
    tail_values: Tensor,
    query_clusters: Tensor,
    key_clusters: Tensor,
    top_keys: Tensor,
    band: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    operator_checks.refined_attention(
        q,
        k,
        v,
        mask,
        centroids,
        scores,
        tail_log_mass,
        tail_spread,
        tail_keys,
        tail_values,
        query_clusters,
        key_clusters,
        top_keys,
        band,
        scale,
    )
    return _accumulated(q, *q.shape), _accumulated(q, *q.shape[:3])


@fake_kernel
def full_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    operator_checks.full_attention(q, k, v, mask, scale)
    return _token_major(q), _accumulated(q, *q.shape[:3])


@fake_kernel
def clustered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    planes: Tensor,
    clusters: int,
    iterations: int,
    scale: float,
    exact_below: int,
) -> tuple[Tensor, Tensor, Tensor]:
    operator_checks.clustered(q, k, v, mask, planes, clusters, iterations, scale, exact_below)
    return _token_major(q), _accumulated(q, *q.shape[:3]), _integers(q, *q.shape[:3])


@fake_kernel
def improved_clustered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    planes: Tensor,
    clusters: int,
    topk: int,
    iterations: int,
    scale: float,
    exact_below: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    operator_checks.improved_clustered(q, k, v, mask, planes, clusters, topk, iterations, scale, exact_below)
    top = _integers(q, q.shape[0], q.shape[1], clusters, _slots(topk, q.shape[2]))
    return (_token_major(q), _accumulated(q, *q.shape[:3]), _integers(q, *q.shape[:3]), top)


@fake_kernel
def refined_clustered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    clusters: int,
    topk: int,
    key_clusters: int,
    band: int,
    rounds: int,
    sample: int,
    scale: float,
    exact_below: int,
    longer: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    operator_checks.refined_clustered(
        q, k, v, mask, clusters, topk, key_clusters, band, rounds, sample, scale, exact_below, longer
    )
    rows, most = q.shape[:3], largest(steps_of(clusters, topk, key_clusters, sample, longer))
    top = _integers(q, q.shape[0], q.shape[1], most.clusters, _slots(most.topk, q.shape[2]))
    return _token_major(q), _accumulated(q, *rows), _integers(q, *rows), _integers(q, *rows), top


def _gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    operator_checks.gradient(grad, q, k, v, mask)
    return _token_major(q), _token_major(k), _token_major(v)


@fake_kernel
def clustered_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    log_mass: Tensor,
    assignment: Tensor,
    clusters: int,
    scale: float,
    exact_below: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(grad, q, k, v, mask)


@fake_kernel
def improved_clustered_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    log_mass: Tensor,
    assignment: Tensor,
    top_keys: Tensor,
    clusters: int,
    scale: float,
    exact_below: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(grad, q, k, v, mask)


@fake_kernel
def refined_clustered_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    log_mass: Tensor,
    query_clusters: Tensor,
    key_clusters: Tensor,
    top_keys: Tensor,
    clusters: int,
    key_clusters_count: int,
    band: int,
    scale: float,
    exact_below: int,
    longer: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(grad, q, k, v, mask)


@fake_kernel
def full_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, log_mass: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(grad, q, k, v, mask)
