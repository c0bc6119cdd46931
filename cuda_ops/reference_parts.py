"""The building blocks of ``reference.py`` and ``reference_backward.py``.

How padding is kept out: an operand is filled with zero in padded places before it enters a product, and a result is
filled afterwards; multiplying by zero would let a NaN through. All of it is differentiable, so the stages' gradients
can be too.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from cuda_ops.schemas import LIBRARY, REFERENCES

CHUNK_ELEMENTS = 2**22
"""About how many numbers one chunk of queries may gather or score at once."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shield a function from autocast, which would lower its matrix products. Its first argument is a tensor."""

    @wraps(function)
    def shielded(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        device = first.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return function(first, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(first, *args, **kwargs)

    return shielded


def reference_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a function as the reference of the operator of its name."""
    kernel = without_autocast(function)
    for library in (LIBRARY, REFERENCES):
        library.impl(function.__name__, kernel, "CompositeExplicitAutograd")
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
    """assignment (B, H, R), top_keys (B, H, C, K) -> the positions (B, H, R, K) of each query's top keys, and which
    slots hold one.
    """
    cluster, inside = members(assignment, top_keys.shape[2])
    cluster = cluster.masked_fill(~inside, 0)[..., None].expand(-1, -1, -1, top_keys.shape[3])
    position = top_keys.gather(2, cluster).long()
    present = (position >= 0) & (position < tokens) & inside[..., None]
    return position.masked_fill(~present, 0), present


def token_major(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (B, H, N, D) as a view of a new contiguous (B, N, H, D) tensor, the layout that transformers wants."""
    batch, heads, tokens, size = x.shape
    return torch.empty(batch, tokens, heads, size, dtype=dtype, device=x.device).transpose(1, 2).copy_(x)


def takes_exact_path(mask: Tensor | None, batch: int, tokens: int, exact_below: int, device: torch.device) -> Tensor:
    """(B, 1, 1): whether the row has fewer than `exact_below` valid tokens."""
    return valid_tokens(mask, batch, tokens, device).sum(-1)[:, None, None] < exact_below
