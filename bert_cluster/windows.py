"""Exact attention in a sliding window, linear in the length: blocks of queries, each with the keys that their windows reach.

Layers with a window, such as two of three in a ModernBERT, stay exact. SDPA knows no windows: transformers gives it a mask of all N × N pairs,
and it computes them all. Here every block of Q queries has a product of its own with the Q + 2 R keys around it, where a query sees at most
R places to each side, and the mask is of those pairs only: N (Q + 2 R) numbers instead of N². Keys and values are copied for every block that
reads them, 3 times where R is at least 32.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_LEAST_QUERIES = 32  # a block of fewer would be mostly other blocks' keys


def queries_per_block(reach: int) -> int:
    """Q: as many as keys on each side, so that of 3 R keys a query sees 2 R."""
    return max(reach, _LEAST_QUERIES)


def saves_work(tokens: int, reach: int) -> bool:
    """Whether blocks have fewer pairs of a query and a key than N².

    Not in an exported program, which must serve every length: the number of blocks cannot be a symbol that may be 1. (While it compiles, an
    old torch says that it exports: there the mask is SDPA's as well.)
    """
    size = queries_per_block(reach)
    return not torch.compiler.is_exporting() and -(-tokens // size) * size * (size + 2 * reach) < tokens * tokens


def blocked_mask(
    mask_function: Callable[..., Any], padding: Tensor | None, batch: int, tokens: int, reach: int, device: torch.device
) -> Tensor:
    """The mask of a sliding window, in blocks.

    Args:
        mask_function: transformers' for SDPA, of places in the batch, heads, queries and keys; true for no pair that is more than R places
            apart.
        padding: (B, N) true or 1 where a token is valid; None: all are.
        batch: B.
        tokens: N.
        reach: R.
        device: of the mask.

    Returns:
        (B, blocks, 1, Q, Q + 2 R) bool, true where a query sees a key. Key j of block i stands at place i Q - R + j; places outside of the
        text are not seen, and queries behind its end, whose outputs are cut off, see what the last one sees.
    """
    size = queries_per_block(reach)
    blocks = -(-tokens // size)
    starts = size * torch.arange(blocks, device=device)[:, None, None, None]
    queries = (starts + torch.arange(size, device=device)[:, None]).clamp(max=tokens - 1)
    keys = starts - reach + torch.arange(size + 2 * reach, device=device)
    inside = (keys >= 0) & (keys < tokens)
    keys = keys.clamp(0, tokens - 1)
    rows = torch.arange(batch, device=device)[:, None, None, None, None]
    seen: Tensor = mask_function(rows, torch.zeros_like(rows), queries, keys) & inside
    if padding is not None:
        seen = seen & padding.to(device=device, dtype=torch.bool)[rows, keys]
    return seen.expand(batch, -1, -1, -1, -1).contiguous()


def is_blocked(mask: Tensor | None) -> TypeGuard[Tensor]:
    """Whether a mask is one of `blocked_mask`: no other has five axes."""
    return mask is not None and mask.dim() == 5


def windowed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **named: Any
) -> tuple[Tensor, None]:
    """SDPA on each block: softmax(scaling q kᵀ) v over the keys that the mask shows, equal to that over all N × N pairs up to rounding.

    Args:
        module: the attention module, for `sdpa_attention_forward`.
        query: (B, H, N, D).
        key: (B, H_kv, N, D).
        value: as key.
        mask: (B, blocks, 1, Q, Q + 2 R) of `blocked_mask`.
        named: scaling and dropout, as `sdpa_attention_forward` takes them.

    Returns:
        (B, N, H, D), contiguous, and no weights.
    """
    batch, _, tokens, _ = query.shape
    blocks, size, seen = mask.shape[1], mask.shape[3], mask.shape[4]
    reach, missing = (seen - size) // 2, blocks * size - tokens

    def around(rows: Tensor) -> Tensor:
        """(B, H_kv, N, D) -> (B blocks, H_kv, Q + 2 R, D)."""
        padded = pad(rows, (0, 0, reach, reach + missing))
        return padded.unfold(2, seen, size).permute(0, 2, 1, 4, 3).flatten(0, 1)

    queries = pad(query, (0, 0, 0, missing)).unflatten(2, (blocks, size)).transpose(1, 2).flatten(0, 1)
    out, _ = sdpa_attention_forward(module, queries, around(key), around(value), mask.flatten(0, 1), **named)
    # A copy at every length: whether a slice is contiguous would be asked of the length, and each answer has a compiled graph of its own.
    return out.unflatten(0, (batch, blocks)).flatten(1, 2).narrow_copy(1, 0, tokens), None


def whole_mask(mask: Tensor, tokens: int) -> Tensor:
    """A blocked mask as SDPA's (B, 1, N, N), for those who want the weights of all pairs."""
    batch, blocks, _, size, seen = mask.shape
    reach, length = (seen - size) // 2, blocks * size
    whole = mask.new_zeros(batch, blocks, size, length + 2 * reach)
    places = size * torch.arange(blocks, device=mask.device)[:, None, None] + torch.arange(seen, device=mask.device)
    whole.scatter_(3, places.expand(batch, blocks, size, seen), mask[:, :, 0])
    return whole.flatten(1, 2)[:, None, :tokens, reach : reach + tokens]
