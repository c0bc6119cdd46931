"""Every operator in plain PyTorch: the ground truth, and what runs where no compiled kernel exists.

Works on any device, with any mask, and accumulates in float32 (float64 for float64 input). Vectorised: no Python control flow depends on
the values of a tensor. Memory beyond the compiled operators': (B, H, N, P) for hashing, (B, H, N, C) for clustering, (B, H, C, N) for the
centroids' scores; the exact parts go through the queries in chunks, so nothing of size N x N or N x K x D exists at once.
Results do not depend on what stands in padded places, but the compiled operators' promise of equal bits under any padding and batching
does not hold here: PyTorch's matrix products sum in an order that depends on the shapes.

How padding is kept out: an operand is filled with zero in padded places before it enters a product, and a result is selected
with ``torch.where``; multiplying by zero would let a NaN through.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from cuda_ops.schemas import LIBRARY

CHUNK_ELEMENTS = 2**22
"""About how many numbers one chunk of queries may gather or score at once."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def reference_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a function as its operator's reference and shield it from autocast, which would lower its matrix products."""

    @wraps(function)
    def kernel(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        device = first.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return function(first, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(first, *args, **kwargs)

    LIBRARY.impl(function.__name__, kernel, "CompositeExplicitAutograd")
    return kernel


def valid_tokens(mask: Tensor | None, batch: int, tokens: int, device: torch.device) -> Tensor:
    """The mask (B, N), all true where there is none."""
    return torch.ones(batch, tokens, dtype=torch.bool, device=device) if mask is None else mask


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (B, H, N, D) in its accumulation type, zero in padded places."""
    x = x.to(accumulation_dtype(x.dtype))
    return x if mask is None else x.masked_fill(~mask[:, None, :, None], 0)


def fold_heads(x: Tensor, kv_heads: int) -> Tensor:
    """(B, H, R, D) -> (B, H_kv, H / H_kv * R, D): the rows of all query heads that share one key head."""
    batch, heads, rows, size = x.shape
    return x.reshape(batch, kv_heads, heads // max(kv_heads, 1) * rows, size)


def product_with_keys(rows: Tensor, keys: Tensor) -> Tensor:
    """rows (B, H, R, D) . keys (B, H_kv, N, D) -> (B, H, R, N)."""
    batch, heads, count, _ = rows.shape
    product = fold_heads(rows, keys.shape[1]) @ keys.transpose(-1, -2)
    return product.reshape(batch, heads, count, keys.shape[2])


def weighted_values(weights: Tensor, values: Tensor) -> Tensor:
    """weights (B, H, R, N), values (B, H_kv, N, D) -> (B, H, R, D)."""
    batch, heads, count, _ = weights.shape
    return (fold_heads(weights, values.shape[1]) @ values).reshape(batch, heads, count, values.shape[3])


def members(assignment: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """The cluster of each token as int64 with every other value replaced by `clusters`, and whether it has one."""
    inside = (assignment >= 0) & (assignment < clusters)
    return torch.where(inside, assignment, clusters).long(), inside


def sum_rows(values: Tensor, bins: Tensor, count: int) -> Tensor:
    """values (R, D), bins (R) -> (count, D): each bin's sum, in the rows' order."""
    sums = torch.zeros(count, values.shape[1], dtype=values.dtype, device=values.device)
    return sums.scatter_add(0, bins[:, None].expand(-1, values.shape[1]), values)


def group_sum(x: Tensor, assignment: Tensor, clusters: int) -> Tensor:
    """x (B, H, N, D), assignment (B, H, N) -> (B, H, C, D): the sum over each cluster's members."""
    batch, heads, _, size = x.shape
    cluster, _ = members(assignment, clusters)
    first = torch.arange(batch * heads, device=x.device).view(batch, heads, 1) * (clusters + 1)
    sums = sum_rows(x.reshape(-1, size), (first + cluster).reshape(-1), batch * heads * (clusters + 1))
    return sums.view(batch, heads, clusters + 1, size)[:, :, :clusters]


def group_size(assignment: Tensor, clusters: int, dtype: torch.dtype) -> Tensor:
    """(B, H, C, 1): how many members each cluster has."""
    return group_sum(torch.ones_like(assignment, dtype=dtype)[..., None], assignment, clusters)


def unpack_bits(codes: Tensor, bits: int) -> Tensor:
    """codes (..., words) int64 -> (..., bits) float32 zeros and ones, whose products count bits exactly."""
    shifts = torch.arange(64, device=codes.device)
    return ((codes[..., None] >> shifts) & 1).flatten(-2)[..., :bits].float()


def pack_bits(bits: Tensor) -> Tensor:
    """bits (..., P) bool -> (..., ceil(P / 64)) int64, bit p % 64 of word p // 64."""
    words = -(-bits.shape[-1] // 64)
    padded = torch.nn.functional.pad(bits.long(), (0, 64 * words - bits.shape[-1]))
    shifts = torch.arange(64, device=bits.device)
    return (padded.unflatten(-1, (words, 64)) << shifts).sum(-1)


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
    """The centroid of the smallest Hamming distance, the lowest index on a tie: |b| - 2 a.b is that distance less |a|."""
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
        ones, size = group_sum(tokens_bits, assignment, clusters), group_size(assignment, clusters, torch.float32)
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
    batch, heads, clusters, tokens = scores.shape
    valid = valid_tokens(mask, batch, tokens, scores.device)
    order = _sort_order(scores)
    order = order.masked_fill(~valid[:, None, None, :], torch.iinfo(order.dtype).min)
    best = order.sort(dim=-1, descending=True, stable=True).indices[..., : min(topk, tokens)]
    rank = torch.arange(best.shape[-1], device=scores.device)
    absent = rank >= valid.sum(-1)[:, None, None, None]
    ascending = best.masked_fill(absent, tokens).sort(dim=-1).values
    return ascending.masked_fill(ascending == tokens, -1).int()


def is_top_key(top_keys: Tensor, tokens: int) -> Tensor:
    """(B, H, C, N): whether key j is one of cluster c's top keys."""
    batch, heads, clusters, _ = top_keys.shape
    slot, _ = members(top_keys, tokens)
    top = torch.zeros(batch, heads, clusters, tokens + 1, dtype=torch.bool, device=top_keys.device)
    return top.scatter(3, slot, True)[..., :tokens]


def softmax_and_log_mass(scores: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the last axis' valid entries, and its log sum; zeros and -inf where none is valid."""
    if scores.shape[-1] == 0:
        return scores, scores.new_full(scores.shape[:-1], -torch.inf)
    some = valid.any(-1, keepdim=True)
    scores = scores.masked_fill(~valid, -torch.inf)
    offset = torch.where(some, scores.detach().amax(-1, keepdim=True), 0)
    weights = (scores - offset).exp().masked_fill(~valid, 0)
    mass = torch.where(some, weights.sum(-1, keepdim=True), 1)
    log_mass = torch.where(some, offset + mass.log(), -torch.inf)
    return weights / mass, log_mass[..., 0]


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


def row_chunks(rows: int, elements_per_row: int) -> Iterator[slice]:
    """Slices of at most CHUNK_ELEMENTS elements, at least one row each, that cover all rows."""
    step = max(1, CHUNK_ELEMENTS // max(1, elements_per_row))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def gather_rows(x: Tensor, position: Tensor, heads: int) -> Tensor:
    """x (B, H_kv, N, D), position (B, H, R, K) -> (B, H, R, K, D) in the accumulation type."""
    batch, kv_heads, _, _ = x.shape
    row = torch.arange(batch, device=x.device).view(-1, 1, 1, 1)
    kv_head = (torch.arange(heads, device=x.device) // max(heads // max(kv_heads, 1), 1)).view(1, -1, 1, 1)
    return x[row, kv_head, position].to(accumulation_dtype(x.dtype))


def keys_of_queries(assignment: Tensor, top_keys: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """assignment (B, H, R), top_keys (B, H, C, K) -> the positions (B, H, R, K) of each query's top keys, and which slots hold one."""
    cluster, inside = members(assignment, top_keys.shape[2])
    cluster = cluster.masked_fill(~inside, 0)[..., None].expand(-1, -1, -1, top_keys.shape[3])
    position = top_keys.gather(2, cluster).long()
    present = (position >= 0) & (position < tokens) & inside[..., None]
    return position.masked_fill(~present, 0), present


def _exact_rows(q: Tensor, k: Tensor, v: Tensor, assignment: Tensor, top_keys: Tensor, scale: float) -> Tensor:
    """The softmax over each query's top keys, applied to the values; zero where it has none."""
    position, present = keys_of_queries(assignment, top_keys, k.shape[2])
    keys, values = gather_rows(k, position, q.shape[1]), gather_rows(v, position, q.shape[1])
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


def token_major(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (B, H, N, D) as a view of a new contiguous (B, N, H, D) tensor, the layout that transformers wants."""
    batch, heads, tokens, size = x.shape
    return torch.empty(batch, tokens, heads, size, dtype=dtype, device=x.device).transpose(1, 2).copy_(x)


def _full_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """full_attention before the result is rounded to q's type."""
    batch, heads, tokens, _ = q.shape
    valid = valid_tokens(mask, batch, tokens, q.device)
    q, k, v = zero_padding(q, mask) * scale, zero_padding(k, mask), zero_padding(v, mask)
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


def takes_exact_path(mask: Tensor | None, batch: int, tokens: int, exact_below: int, device: torch.device) -> Tensor:
    """(B, 1, 1): whether the row has fewer than `exact_below` valid tokens."""
    return valid_tokens(mask, batch, tokens, device).sum(-1)[:, None, None] < exact_below


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
