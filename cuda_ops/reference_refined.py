"""refined_clustered and its stages in plain PyTorch: the ground truth, and what runs where no compiled kernel exists.

Works as ``reference.py`` does. Memory beyond the compiled operators': (B, H, N, C) and (B, H, N, M) numbers for the
clusters, (B, H, C, N) for the centroids' scores, (B, H, C, M, D) for the tail. The tail's sums go through the query
clusters in chunks and the queries through theirs, so nothing of size N x N, C x N x D or N x K x D exists at once.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cuda_ops.reference import _full_attention, centroid_scores, group_mean, top_keys
from cuda_ops.reference_parts import (
    gather_rows,
    group_size,
    group_sum,
    is_top_key,
    keys_of_queries,
    members,
    reference_kernel,
    row_chunks,
    takes_exact_path,
    token_major,
    valid_tokens,
    zero_padding,
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


def _evenly_spaced(x: Tensor, valid: Tensor, count: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """The valid tokens floor(j n / count) of each row, j below its count (B, 1): (B, H, largest, D), and which exist."""
    slot = torch.arange(largest, device=x.device)
    exists = (slot < count) & (valid.sum(-1, keepdim=True) > 0)
    rank = (slot * valid.sum(-1, keepdim=True) // count.clamp(min=1)).masked_fill(~exists, 0)
    position = valid_first(valid).gather(1, rank)
    rows = x.gather(2, position[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
    return rows.masked_fill(~exists[:, None, :, None], 0), exists


def _nearest(x: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid of each row, the lowest on a tie: x.c - |c|^2 / 2 is largest there; NaN is never larger.

    One coordinate after the other: a matrix product may round equal columns differently, and equal centroids must tie.
    """
    scores = x.new_zeros(*x.shape[:3], centroids.shape[2])
    for d in range(x.shape[3]):
        coordinate = centroids[:, :, None, :, d]
        scores += coordinate * (x[..., d, None] - coordinate / 2)
    return scores.masked_fill(scores.isnan(), -torch.inf).argmax(-1)


@reference_kernel
def cluster_rows(x: Tensor, mask: Tensor | None, clusters: int, rounds: int, sample: int) -> Tensor:
    batch, heads, tokens, _ = x.shape
    if tokens == 0:
        return torch.empty(batch, heads, 0, dtype=torch.int32, device=x.device)
    valid = valid_tokens(mask, batch, tokens, x.device)
    x = zero_padding(x, mask)
    count = valid.sum(-1, keepdim=True)
    centroids, _ = _evenly_spaced(x, valid, torch.full_like(count, clusters), clusters)
    wanted = max(sample, 4 * clusters)
    rows, exists = _evenly_spaced(x, valid, count.clamp(max=wanted), min(wanted, tokens))
    for _ in range(rounds):
        assignment = _nearest(rows, centroids).masked_fill(~exists[:, None], -1)
        size = group_size(assignment, clusters, x.dtype)
        centroids = torch.where(size > 0, group_sum(rows, assignment, clusters) / size.clamp(min=1), centroids)
    return _nearest(x, centroids).masked_fill(~valid[:, None], -1).int()


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


@reference_kernel
def tail(
    scores: Tensor, k: Tensor, v: Tensor, key_clusters: Tensor, top_keys: Tensor, key_clusters_count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, clusters, tokens = scores.shape
    weights, log_mass, in_tail = cell_weights(scores, key_clusters, top_keys, key_clusters_count)
    k, v = (per_query_head(x.to(scores.dtype), heads)[:, :, None] for x in (k, v))
    spread = scores.new_empty(log_mass.shape)
    keys, values = (scores.new_empty(batch, heads, clusters, key_clusters_count, k.shape[4]) for _ in range(2))
    for rows in row_chunks(clusters, batch * heads * tokens * k.shape[4]):
        weight, outside = weights[:, :, rows, :, None], ~in_tail[:, :, rows, :, None]
        keys[:, :, rows] = cell_sum((weight * k).masked_fill(outside, 0), key_clusters, key_clusters_count)
        values[:, :, rows] = cell_sum((weight * v).masked_fill(outside, 0), key_clusters, key_clusters_count)
        distance = (k - of_keys(keys[:, :, rows], key_clusters)).square().mean(-1, keepdim=True)
        distance = (weight * distance).masked_fill(outside, 0)
        spread[:, :, rows] = cell_sum(distance, key_clusters, key_clusters_count)[..., 0]
    return log_mass.contiguous(), spread, keys, values


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
    weights: tuple[Tensor, Tensor, Tensor]  # exact, tail, counted twice: e^logit over the total mass
    out: Tensor
    log_mass: Tensor


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
    """Step 5 of the method for some queries, with what its gradient needs."""
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

    cell, in_cell = members(decisions.key_clusters.gather(2, near.flatten(2)).view(near.shape), tails.log_mass.shape[3])
    counted = near_present & in_cell
    cell = cell.masked_fill(~counted, 0)
    score = of_queries(scores, assignment).gather(3, near)
    counted_logits = (score + shift.gather(3, cell)).masked_fill(~counted, -torch.inf)

    logits = torch.cat([exact_logits, tail_logits], -1)
    largest = logits.detach().amax(-1, keepdim=True)
    largest = torch.where(largest == -torch.inf, 0, largest)
    exact, tail_weights, twice = ((x - largest).exp() for x in (exact_logits, tail_logits, counted_logits))
    total = exact.sum(-1, keepdim=True) + tail_weights.sum(-1, keepdim=True) - twice.sum(-1, keepdim=True)
    some = present.any(-1, keepdim=True) | (mine.log_mass > -torch.inf).any(-1, keepdim=True) & inside
    some = some | logits.isnan().any(-1, keepdim=True)
    total = torch.where(some, total, 1)
    coefficients = exact - torch.nn.functional.pad(twice, (top.shape[-1], 0))
    out = (coefficients[..., None, :] @ values + tail_weights[..., None, :] @ mine.values)[..., 0, :] / total
    log_mass = torch.where(some, largest + total.log(), -torch.inf)[..., 0]
    weights = (exact / total, tail_weights / total, twice / total)
    return QueryRows(query, away, keys, values, positions, present, mine, cell, counted, weights, out, log_mass)


def query_chunks(q: Tensor, tails: Tail, decisions: Decisions, band: int) -> list[slice]:
    """Slices of the queries: each gathers about (K + M + 2 W + 1) D numbers per query, twice."""
    batch, heads, tokens, size = q.shape
    slots = decisions.top_keys.shape[3] + tails.log_mass.shape[3] + 2 * min(band, tokens) + 1
    return list(row_chunks(tokens, batch * heads * (2 * slots * size + tokens)))


@reference_kernel
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
    tails = Tail(tail_log_mass, tail_spread, tail_keys, tail_values)
    decisions = Decisions(query_clusters, key_clusters, top_keys)
    out = torch.zeros(q.shape, dtype=centroids.dtype, device=q.device)
    log_mass = torch.full(q.shape[:3], -torch.inf, dtype=centroids.dtype, device=q.device)
    for rows in query_chunks(q, tails, decisions, band):
        part = query_rows(q, k, v, mask, centroids, scores, tails, decisions, rows, band, scale)
        out[:, :, rows], log_mass[:, :, rows] = part.out, part.log_mass
    return out, log_mass


@reference_kernel
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    queries = cluster_rows(q, mask, clusters, rounds, sample)
    keys = per_query_head(cluster_rows(k, mask, key_clusters, rounds, sample), q.shape[1]).contiguous()
    centroids = group_mean(q, queries, clusters, scale)
    scores = centroid_scores(centroids, k, mask)
    top = top_keys(scores, mask, topk)
    tails = tail(scores, k, v, keys, top, key_clusters)
    out, log_mass = refined_attention(q, k, v, mask, centroids, scores, *tails, queries, keys, top, band, scale)
    if exact_below > 0:
        exact = takes_exact_path(mask, q.shape[0], q.shape[2], exact_below, q.device)
        full_out, full_log_mass = _full_attention(q, k, v, mask, scale)
        out = torch.where(exact[..., None], full_out, out)
        log_mass = torch.where(exact, full_log_mass, log_mass)
        queries, keys = queries.masked_fill(exact, -1), keys.masked_fill(exact, -1)
        top = top.masked_fill(exact[..., None], -1)
    return token_major(out, q.dtype), log_mass, queries, keys, top
