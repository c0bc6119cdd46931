"""Every operator in plain PyTorch: the ground truth, and what runs where no compiled kernel exists.

Works on any device, with any mask, and accumulates in float32 (float64 for float64 input). Vectorised: no Python
control flow depends on the values of a tensor.

Memory beyond the compiled operators': (B, H, N, P) numbers for hashing, (B, H, N, C) for clustering and (B, H, C, N)
for the centroids' scores. The exact parts go through the queries in chunks, so nothing of size N x N or N x K x D
exists at once.

Results do not depend on what stands in padded places. But the compiled operators' promise of equal bits under any
padding and batching does not hold here: PyTorch's matrix products sum in an order that depends on the shapes.
"""

import torch
from torch import Tensor

from cuda_ops.reference_parts import (
    accumulation_dtype,
    gather_rows,
    group_size,
    group_sum,
    is_top_key,
    keys_of_queries,
    members,
    pack_bits,
    product_with_keys,
    reference_kernel,
    row_chunks,
    softmax_and_log_mass,
    takes_exact_path,
    token_major,
    unpack_bits,
    valid_tokens,
    weighted_values,
    zero_padding,
)


@reference_kernel
def hash_vectors(x: Tensor, planes: Tensor, mask: Tensor | None) -> Tensor:
    bits = x.to(accumulation_dtype(x.dtype)) @ planes.to(accumulation_dtype(x.dtype)).T > 0
    return pack_bits(bits if mask is None else bits & mask[:, None, :, None])


def _starting_codes(codes: Tensor, valid: Tensor, clusters: int) -> Tensor:
    """The codes of the valid tokens floor(c n / C), (B, H, C, words); 0 where there is none."""
    batch, heads, tokens, words = codes.shape
    if tokens == 0:
        return codes.new_zeros(batch, heads, clusters, words)
    count = valid.sum(-1, keepdim=True)
    rank = torch.arange(clusters, device=codes.device) * count // clusters
    valid_first = valid.logical_not().long().argsort(dim=-1, stable=True)
    position = valid_first.gather(1, rank)
    starts = codes.gather(2, position[:, None, :, None].expand(batch, heads, clusters, words))
    return starts.masked_fill((count == 0)[:, None, :, None], 0)


def _nearest(bits: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid in Hamming distance, the lowest on a tie: |b| - 2 a.b is the distance less |a|."""
    return (centroids.sum(-1)[:, :, None] - 2 * bits @ centroids.transpose(-1, -2)).argmin(-1)


@reference_kernel
def cluster_codes(
    codes: Tensor, mask: Tensor | None, bits: int, clusters: int, iterations: int
) -> tuple[Tensor, Tensor]:
    batch, _, tokens, _ = codes.shape
    valid = valid_tokens(mask, batch, tokens, codes.device)
    centroids = unpack_bits(_starting_codes(codes, valid, clusters), bits)
    tokens_bits = unpack_bits(codes, bits).masked_fill(~valid[:, None, :, None], 0)
    # Once no centroid changes, further rounds change nothing: running them all needs no look at the values.
    for _ in range(iterations):
        assignment = _nearest(tokens_bits, centroids).masked_fill(~valid[:, None], -1)
        ones, size = (group_sum(tokens_bits, assignment, clusters), group_size(assignment, clusters, torch.float32))
        centroids = torch.where(size > 0, (2 * ones > size).float(), centroids)
    assignment = _nearest(tokens_bits, centroids).masked_fill(~valid[:, None], -1)
    return assignment.int(), pack_bits(centroids > 0)


@reference_kernel
def group_mean(x: Tensor, assignment: Tensor, clusters: int, scale: float) -> Tensor:
    scaled = x.to(accumulation_dtype(x.dtype)) * scale
    return group_sum(scaled, assignment, clusters) / group_size(assignment, clusters, scaled.dtype).clamp(min=1)


@reference_kernel
def centroid_scores(centroids: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores = product_with_keys(centroids, zero_padding(k, mask))
    return scores if mask is None else scores.masked_fill(~mask[:, None, None, :], -torch.inf)


def _sort_order(scores: Tensor) -> Tensor:
    """Integers in the scores' order: NaN largest, -0 equal to +0, and the smallest integer left free below -inf."""
    integer = torch.int64 if scores.dtype == torch.float64 else torch.int32
    largest = torch.iinfo(integer).max
    pattern = torch.where(scores == 0, 0.0, scores).contiguous().view(integer)
    order = torch.where(pattern < 0, pattern ^ largest, pattern)
    return torch.where(scores.isnan(), largest, order)


@reference_kernel
def top_keys(scores: Tensor, mask: Tensor | None, topk: int) -> Tensor:
    batch, _, _, tokens = scores.shape
    valid = valid_tokens(mask, batch, tokens, scores.device)
    order = _sort_order(scores)
    order = order.masked_fill(~valid[:, None, None, :], torch.iinfo(order.dtype).min)
    best = order.sort(dim=-1, descending=True, stable=True).indices[..., : min(topk, tokens)]
    rank = torch.arange(best.shape[-1], device=scores.device)
    absent = rank >= valid.sum(-1)[:, None, None, None]
    ascending = best.masked_fill(absent, tokens).sort(dim=-1).values
    return ascending.masked_fill(ascending == tokens, -1).int()


@reference_kernel
def centroid_attention(
    scores: Tensor, v: Tensor, mask: Tensor | None, top_keys: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, _, tokens = scores.shape
    valid = valid_tokens(mask, batch, tokens, scores.device)[:, None, None, :]
    weights, log_mass = softmax_and_log_mass(scores, valid)
    top = is_top_key(top_keys, tokens)
    rest = weighted_values(weights.masked_fill(top, 0), zero_padding(v, mask))
    return rest, weights.masked_fill(~top, 0).sum(-1), log_mass


def _exact_rows(q: Tensor, k: Tensor, v: Tensor, assignment: Tensor, top_keys: Tensor, scale: float) -> Tensor:
    """The softmax over each query's top keys, applied to the values; zero where it has none."""
    position, present = keys_of_queries(assignment, top_keys, k.shape[2])
    keys, values = (gather_rows(k, position, q.shape[1]), gather_rows(v, position, q.shape[1]))
    scaled = (q.to(keys.dtype) * scale)[..., None]
    weights, _ = softmax_and_log_mass((keys @ scaled)[..., 0], present)
    return (weights[..., None, :] @ values.masked_fill(~present[..., None], 0))[..., 0, :]


@reference_kernel
def exact_attention(
    q: Tensor, k: Tensor, v: Tensor, assignment: Tensor, top_keys: Tensor, top_mass: Tensor, scale: float
) -> Tensor:
    batch, heads, tokens, size = q.shape
    out = torch.zeros(batch, heads, tokens, size, dtype=top_mass.dtype, device=q.device)
    topk = top_keys.shape[3]
    if topk == 0:
        return out
    for rows in row_chunks(tokens, batch * heads * topk * size):
        out[:, :, rows] = _exact_rows(q[:, :, rows], k, v, assignment[:, :, rows], top_keys, scale)
    has_keys = group_scatter((top_keys >= 0).any(-1, keepdim=True), assignment)
    return torch.where(has_keys, out * group_scatter(top_mass[..., None], assignment), 0)


@reference_kernel
def group_scatter(values: Tensor, assignment: Tensor) -> Tensor:
    cluster, inside = members(assignment, values.shape[2])
    cluster = cluster.masked_fill(~inside, 0)[..., None].expand(*assignment.shape, values.shape[3])
    return values.gather(2, cluster).masked_fill(~inside[..., None], 0)


def _full_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """full_attention before the result is rounded to q's type."""
    batch, heads, tokens, _ = q.shape
    valid = valid_tokens(mask, batch, tokens, q.device)
    q, k, v = (zero_padding(q, mask) * scale, zero_padding(k, mask), zero_padding(v, mask))
    out, log_mass = torch.empty_like(q), q.new_empty(batch, heads, tokens)
    for rows in row_chunks(tokens, batch * heads * tokens):
        weights, log_mass[:, :, rows] = softmax_and_log_mass(
            product_with_keys(q[:, :, rows], k), valid[:, None, None, :]
        )
        out[:, :, rows] = weighted_values(weights, v)
    out = out.masked_fill(~valid[:, None, :, None], 0)
    return out, log_mass.masked_fill(~valid[:, None], -torch.inf)


@reference_kernel
def full_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    out, log_mass = _full_attention(q, k, v, mask, scale)
    return token_major(out, q.dtype), log_mass


@reference_kernel
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
    codes = hash_vectors(q, planes, mask)
    assignment, _ = cluster_codes(codes, mask, planes.shape[0], clusters, iterations)
    scores = centroid_scores(group_mean(q, assignment, clusters, scale), k, mask)
    top = top_keys(scores, mask, topk)
    rest, top_mass, centroid_log_mass = centroid_attention(scores, v, mask, top)
    out = exact_attention(q, k, v, assignment, top, top_mass, scale) + group_scatter(rest, assignment)
    log_mass = group_scatter(centroid_log_mass[..., None], assignment)[..., 0].masked_fill(assignment < 0, -torch.inf)
    if exact_below > 0:
        exact = takes_exact_path(mask, q.shape[0], q.shape[2], exact_below, q.device)
        full_out, full_log_mass = _full_attention(q, k, v, mask, scale)
        out = torch.where(exact[..., None], full_out, out)
        log_mass = torch.where(exact, full_log_mass, log_mass)
        assignment = assignment.masked_fill(exact, -1)
        top = top.masked_fill(exact[..., None], -1)
    return token_major(out, q.dtype), log_mass, assignment, top


@reference_kernel
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
    out, log_mass, assignment, _ = improved_clustered(
        q, k, v, mask, planes, clusters, 0, iterations, scale, exact_below
    )
    return out, log_mass, assignment
