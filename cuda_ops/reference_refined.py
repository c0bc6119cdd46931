"""refined_clustered and its stages in plain PyTorch: the ground truth, and what runs where no compiled kernel exists.

Works as ``reference.py`` does. Memory beyond the compiled operators': (B, H, N, C) and (B, H, N, M) numbers for the
clusters, (B, H, C, N) for the centroids' scores, (B, H, C, M, D) for the tail. The tail's sums go through the query
clusters in chunks and the queries through theirs, so nothing of size N x N, C x N x D or N x K x D exists at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from cuda_ops.reference import _full_attention, centroid_scores, group_mean, top_keys
from cuda_ops.reference_parts import (
    group_size,
    group_sum,
    reference_kernel,
    row_chunks,
    takes_exact_path,
    token_major,
    valid_tokens,
    zero_padding,
)
from cuda_ops.reference_refined_parts import (
    Decisions,
    Tail,
    attend,
    cell_sum,
    cell_weights,
    of_keys,
    per_query_head,
    query_chunks,
    query_rows,
    valid_first,
)
from cuda_ops.steps import Step, largest, steps_of


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
        out[:, :, rows], log_mass[:, :, rows], _ = attend(part)
    return out, log_mass


Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _of_step(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, step: Step, band: int, rounds: int, scale: float
) -> Results:
    """The composition of the stages with one step's budgets; float output."""
    queries = cluster_rows(q, mask, step.clusters, rounds, step.sample)
    keys = cluster_rows(k, mask, step.key_clusters, rounds, step.sample)
    keys = per_query_head(keys, q.shape[1]).contiguous()
    centroids = group_mean(q, queries, step.clusters, scale)
    scores = centroid_scores(centroids, k, mask)
    top = top_keys(scores, mask, step.topk)
    tails = tail(scores, k, v, keys, top, step.key_clusters)
    out, log_mass = refined_attention(q, k, v, mask, centroids, scores, *tails, queries, keys, top, band, scale)
    return out, log_mass, queries, keys, top


def _of_own_step(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, steps: list[Step], band: int, rounds: int, scale: float
) -> Results:
    """Each batch row with the budgets of its own step: one composition for each step that N tokens can reach."""
    batch, _, tokens, _ = q.shape
    most = largest(steps)
    slots = min(most.topk, tokens)
    valid = valid_tokens(mask, batch, tokens, q.device)
    count = valid.sum(-1)
    results: Results | None = None
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        if step.tokens > tokens:
            break
        rows = count >= step.tokens if following is None else (count >= step.tokens) & (count < following.tokens)
        *others, top = _of_step(q, k, v, valid & rows[:, None], step, band, rounds, scale)
        top = pad(top, (0, slots - top.shape[3], 0, most.clusters - step.clusters), value=-1)
        one: Results = (*others, top)  # type: ignore[assignment]
        if results is None:
            results = one
        results = tuple(  # type: ignore[assignment]
            torch.where(rows.view(-1, *(1,) * (x.dim() - 1)), x, y) for x, y in zip(one, results, strict=True)
        )
    assert results is not None  # the first step is from 0 tokens on
    return results


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
    longer: Sequence[int] = (),
) -> Results:
    steps = steps_of(clusters, topk, key_clusters, sample, longer)
    if len(steps) == 1:
        out, log_mass, queries, keys, top = _of_step(q, k, v, mask, steps[0], band, rounds, scale)
    else:
        out, log_mass, queries, keys, top = _of_own_step(q, k, v, mask, steps, band, rounds, scale)
    if exact_below > 0:
        exact = takes_exact_path(mask, q.shape[0], q.shape[2], exact_below, q.device)
        full_out, full_log_mass = _full_attention(q, k, v, mask, scale)
        out = torch.where(exact[..., None], full_out, out)
        log_mass = torch.where(exact, full_log_mass, log_mass)
        queries, keys = queries.masked_fill(exact, -1), keys.masked_fill(exact, -1)
        top = top.masked_fill(exact[..., None], -1)
    return token_major(out, q.dtype), log_mass, queries, keys, top
