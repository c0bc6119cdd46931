"""The building blocks of ``reference_refined.py`` and ``reference_refined_backward.py``."""

from typing import NamedTuple

import torch
from torch import Tensor

from cuda_ops.reference_parts import (
    gather_rows,
    group_sum,
    is_top_key,
    keys_of_queries,
    members,
    row_chunks,
    valid_tokens,
)


class Tail(NamedTuple):
    """What stands for the keys of each cell (query cluster, key cluster) outside the top keys."""

    log_mass: Tensor
    spread: Tensor
    keys: Tensor
    values: Tensor


class Decisions(NamedTuple):
    """Which queries and keys belong together, and each query cluster's exact keys."""

    query_clusters: Tensor
    key_clusters: Tensor
    top_keys: Tensor


def valid_first(valid: Tensor) -> Tensor:
    """valid (B, N) -> (B, N): the valid positions in their order, then the others."""
    return valid.logical_not().long().argsort(dim=-1, stable=True)


def cell_sum(rows: Tensor, key_clusters: Tensor, count: int) -> Tensor:
    """rows (B, H, R, N, D), key_clusters (B, H, N) -> (B, H, R, M, D): sums over the keys of each key cluster."""
    batch, heads, clusters, tokens, size = rows.shape
    groups = key_clusters[:, :, None].expand(batch, heads, clusters, tokens).reshape(batch, heads * clusters, tokens)
    sums = group_sum(rows.reshape(batch, heads * clusters, tokens, size), groups, count)
    return sums.view(batch, heads, clusters, count, size)


def of_keys(cells: Tensor, key_clusters: Tensor) -> Tensor:
    """cells (B, H, R, M, D), key_clusters (B, H, N) -> (B, H, R, N, D): each key's cell; keys of none get cell 0."""
    cluster, inside = members(key_clusters, cells.shape[3])
    index = cluster.masked_fill(~inside, 0)[:, :, None, :, None]
    return cells.gather(3, index.expand(*cells.shape[:3], cluster.shape[2], cells.shape[4]))


def per_query_head(x: Tensor, heads: int) -> Tensor:
    """x (B, H_kv, N, D) -> (B, H, N, D)."""
    return x.repeat_interleave(heads // x.shape[1], 1) if x.shape[1] != heads else x


def cell_weights(scores: Tensor, key_clusters: Tensor, top_keys: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each key's softmax weight within its cell (B, H, C, N), 0 for top keys; the cells' log mass; which keys count."""
    tokens = scores.shape[3]
    cluster, inside = members(key_clusters, count)
    in_tail = inside[:, :, None] & ~is_top_key(top_keys, tokens)
    scores = scores.masked_fill(~in_tail, -torch.inf)
    index = cluster[:, :, None].expand(scores.shape)
    start = scores.new_full((*scores.shape[:3], count + 1), -torch.inf)
    largest = start.scatter_reduce(3, index, scores.detach(), "amax")
    largest = torch.where(largest == -torch.inf, 0, largest)
    weights = (scores - largest.gather(3, index)).exp().masked_fill(~in_tail, 0)
    mass = torch.zeros_like(largest).scatter_add(3, index, weights)
    filled = torch.zeros_like(mass).scatter_add(3, index, in_tail.to(mass.dtype)) > 0
    log_mass = torch.where(filled, largest + torch.where(filled, mass, 1).log(), -torch.inf)
    mass = torch.where(filled, mass, 1)
    return weights / mass.gather(3, index), log_mass[..., :count], in_tail


def of_queries(values: Tensor, assignment: Tensor) -> Tensor:
    """values (B, H, C, ...), assignment (B, H, R) -> (B, H, R, ...): those of each query's cluster, 0 for none."""
    cluster, inside = members(assignment, values.shape[2])
    ends = [1] * (values.dim() - 3)
    index = cluster.masked_fill(~inside, 0).view(*cluster.shape, *ends)
    return values.gather(2, index.expand(*cluster.shape, *values.shape[3:])).masked_fill(
        ~inside.view(*inside.shape, *ends), 0
    )


def band_of_queries(mask: Tensor | None, decisions: Decisions, rows: slice, band: int) -> tuple[Tensor, Tensor]:
    """For some queries (B, H, R): the positions (B, H, R, 2 W + 1) of their valid neighbours, and which of them are
    there and outside the top keys. W = 0 is no band.
    """
    batch, heads, tokens = decisions.query_clusters.shape
    device = decisions.query_clusters.device
    valid = valid_tokens(mask, batch, tokens, device)
    band = min(band, tokens - 1)
    offset = torch.arange(-band, band + 1 if band else 0, device=device)
    rank = (valid.cumsum(-1) - 1)[:, rows, None] + offset
    present = (rank >= 0) & (rank < valid.sum(-1)[:, None, None]) & valid[:, rows, None]
    flat = valid_first(valid).gather(1, rank.masked_fill(~present, 0).flatten(1)).view(rank.shape)
    position = flat[:, None].expand(batch, heads, *flat.shape[1:])
    cluster, inside = members(decisions.query_clusters[:, :, rows], decisions.top_keys.shape[2])
    top = is_top_key(decisions.top_keys, tokens).flatten(2)
    is_top = top.gather(2, (cluster.masked_fill(~inside, 0)[..., None] * tokens + position).flatten(2))
    return position, present[:, None] & inside[..., None] & ~is_top.view(position.shape)


class QueryRows(NamedTuple):
    """Everything that some queries attend to. Logits are -inf where nothing is; R queries, W' = 2 W + 1 or 0."""

    query: Tensor  # (B, H, R, D), scaled
    away: Tensor  # (B, H, R, D): from the centroid
    keys: Tensor  # (B, H, R, K + W', D): exact keys, then the band
    values: Tensor
    positions: Tensor  # (B, H, R, K + W'), and which are present
    present: Tensor
    tail: Tail  # of each query's cluster: (B, H, R, M, ...)
    cell: Tensor  # (B, H, R, W'): the key cluster of a band key, and whether the tail counted it
    counted: Tensor
    logits: tuple[Tensor, Tensor, Tensor]  # exact, tail, counted twice


class Attention(NamedTuple):
    """The results of some queries, and e^logit over the total mass for each kind of logit."""

    out: Tensor
    log_mass: Tensor
    weights: tuple[Tensor, Tensor, Tensor]


def query_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    centroids: Tensor,
    scores: Tensor,
    tails: Tail,
    decisions: Decisions,
    rows: slice,
    band: int,
    scale: float,
) -> QueryRows:
    """The logits of step 5 of the method for some queries, with what its gradient needs."""
    heads, tokens = q.shape[1:3]
    assignment = decisions.query_clusters[:, :, rows]
    inside = members(assignment, centroids.shape[2])[1][..., None]
    query = (q[:, :, rows].to(centroids.dtype) * scale).masked_fill(~inside, 0)
    away = query - of_queries(centroids, assignment)
    mine = Tail(*(of_queries(x, assignment) for x in tails))
    second = away.square().sum(-1, keepdim=True) / 2 * mine.spread
    shift = (mine.keys @ away[..., None])[..., 0] + second.clamp(max=1)
    tail_logits = (mine.log_mass + shift).masked_fill(~inside, -torch.inf)

    top, top_present = keys_of_queries(assignment, decisions.top_keys, tokens)
    near, near_present = band_of_queries(mask, decisions, rows, band)
    positions, present = torch.cat([top, near], -1), torch.cat([top_present, near_present], -1)
    keys, values = (gather_rows(x, positions, heads).masked_fill(~present[..., None], 0) for x in (k, v))
    exact_logits = (keys @ query[..., None])[..., 0].masked_fill(~present, -torch.inf)

    key_clusters = decisions.key_clusters.gather(2, near.flatten(2)).view(near.shape)
    cell, in_cell = members(key_clusters, tails.log_mass.shape[3])
    counted = near_present & in_cell
    cell = cell.masked_fill(~counted, 0)
    score = of_queries(scores, assignment).gather(3, near)
    counted_logits = (score + shift.gather(3, cell)).masked_fill(~counted, -torch.inf)
    logits = exact_logits, tail_logits, counted_logits
    return QueryRows(query, away, keys, values, positions, present, mine, cell, counted, logits)


def attend(part: QueryRows) -> Attention:
    """The ratio of the two sums of step 5, relative to the largest logit."""
    exact_logits, tail_logits, _ = part.logits
    together = torch.cat([exact_logits, tail_logits], -1)
    largest = together.detach().amax(-1, keepdim=True)
    some = largest != -torch.inf
    largest = torch.where(some, largest, 0)
    exact, tail, twice = ((x - largest).exp() for x in part.logits)
    total = exact.sum(-1, keepdim=True) + tail.sum(-1, keepdim=True) - twice.sum(-1, keepdim=True)
    total = torch.where(some, total, 1)
    log_mass = torch.where(some, largest + total.log(), -torch.inf)[..., 0]
    exact, tail, twice = exact / total, tail / total, twice / total
    out = less_twice(exact, twice)[..., None, :] @ part.values + tail[..., None, :] @ part.tail.values
    return Attention(out[..., 0, :], log_mass, (exact, tail, twice))


def less_twice(exact: Tensor, twice: Tensor) -> Tensor:
    """The coefficients of the exact keys and the band: what the tail has counted is taken off the band's."""
    return exact - torch.nn.functional.pad(twice, (exact.shape[-1] - twice.shape[-1], 0))


def query_chunks(q: Tensor, tails: Tail, decisions: Decisions, band: int) -> list[slice]:
    """Slices of the queries: each gathers about (K + M + 2 W + 1) D numbers per query, twice."""
    batch, heads, tokens, size = q.shape
    slots = decisions.top_keys.shape[3] + tails.log_mass.shape[3] + 2 * min(band, tokens) + 1
    return list(row_chunks(tokens, batch * heads * (2 * slots * size + tokens)))
