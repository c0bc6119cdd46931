"""The gradients of refined_clustered and its stages in plain PyTorch, by explicit formulas; decisions are constants.

With g_i the gradient of query i's output o_i, e_i = q_i - qbar_c, x the weights of ``attend`` (e^logit over
the total mass; what was counted twice enters with a minus), h_i = |e_i|^2 / 2:

    dl       = x (g_i . v - g_i . o_i)                     every logit: exact, tail (v = Vbar_cm), counted twice
    df_im    = dl_im + sum_{j in band, m(j) = m} dl_ij     the tail's logit, and minus what was counted twice
    de_i     = sum_m df_im (Kbar_cm + [h_i sigma_cm < 1] sigma_cm e_i)
    dKbar_cm = sum_i df_im e_i           dsigma_cm = sum_i df_im h_i [h_i sigma_cm < 1]
    dVbar_cm = sum_i x_im g_i            dlog Z_cm = sum_i dl_im

and within a cell, w_cj = e^(s_cj) / Z_cm, y_cj = dKbar_cm . k_j + dVbar_cm . v_j + dsigma_cm |k_j - Kbar_cm|^2 / D:

    ds_cj    = w_cj (y_cj - sum_j' w_cj' y_cj' + dlog Z_cm)
    dk_j     = sum_c w_cj (dKbar_cm + 2 dsigma_cm (k_j - Kbar_cm) / D)          dv_j = sum_c w_cj dVbar_cm

A key head shared by several query heads gets their sum.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cuda_ops.reference import centroid_scores, group_mean
from cuda_ops.reference_backward import (
    Gradients,
    _full_attention_backward,
    _rounded,
    _sum_to_keys,
    centroid_scores_backward,
    group_mean_backward,
)
from cuda_ops.reference_parts import (
    accumulation_dtype,
    group_sum,
    reference_kernel,
    row_chunks,
    takes_exact_path,
)
from cuda_ops.reference_refined import tail
from cuda_ops.reference_refined_parts import (
    Decisions,
    QueryRows,
    Tail,
    attend,
    cell_sum,
    cell_weights,
    less_twice,
    of_keys,
    per_query_head,
    query_chunks,
    query_rows,
)
from cuda_ops.steps import largest, steps_of


def _to_key_heads(x: Tensor, kv_heads: int) -> Tensor:
    """(B, H, N, D) -> (B, H_kv, N, D): the sum over the query heads that share a key head."""
    batch, heads, tokens, size = x.shape
    return x.view(batch, kv_heads, heads // kv_heads, tokens, size).sum(2)


def tail_backward(
    grads: Tail, scores: Tensor, k: Tensor, v: Tensor, key_clusters: Tensor, top_keys: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `tail` by the scores, k and v."""
    batch, heads, clusters, tokens = scores.shape
    size = k.shape[3]
    weights, _, in_tail = cell_weights(scores, key_clusters, top_keys, count)
    keys, values = (per_query_head(x.to(scores.dtype), heads)[:, :, None] for x in (k, v))
    dscores, dk, dv = (torch.zeros_like(scores), *(scores.new_zeros(batch, heads, tokens, size) for _ in range(2)))
    for rows in row_chunks(clusters, batch * heads * tokens * size):
        weight, outside = weights[:, :, rows, :, None], ~in_tail[:, :, rows, :, None]
        mean = cell_sum((weight * keys).masked_fill(outside, 0), key_clusters, count)
        away = (keys - of_keys(mean, key_clusters)).masked_fill(outside, 0)
        dmass, dspread = (of_keys(x[:, :, rows, :, None], key_clusters) for x in (grads.log_mass, grads.spread))
        dkeys, dvalues = (of_keys(x[:, :, rows], key_clusters) for x in (grads.keys, grads.values))
        product = (dkeys * keys + dvalues * values + dspread * away.square() / size).sum(-1, keepdim=True)
        mean_product = of_keys(cell_sum((weight * product).masked_fill(outside, 0), key_clusters, count), key_clusters)
        dscores[:, :, rows] = (weight * (product - mean_product + dmass)).masked_fill(outside, 0)[..., 0]
        dk += (weight * (dkeys + 2 / size * dspread * away)).masked_fill(outside, 0).sum(2)
        dv += (weight * dvalues).masked_fill(outside, 0).sum(2)
    return dscores, _to_key_heads(dk, k.shape[1]), _to_key_heads(dv, v.shape[1])


class _Sums(NamedTuple):
    """Gradients of what the queries share, added up chunk by chunk."""

    dk: Tensor
    dv: Tensor
    dcentroids: Tensor
    dscores: Tensor
    dtail: Tail


def _chunk_backward(
    part: QueryRows, grad: Tensor, assignment: Tensor, k: Tensor, v: Tensor, scale: float, sums: _Sums
) -> Tensor:
    """Add one chunk of queries to the sums; returns its dq."""
    batch, heads = part.query.shape[:2]
    clusters, tokens = sums.dscores.shape[2:]
    out, _, (exact, tails, twice) = attend(part)
    width = twice.shape[-1]
    near = part.positions[..., part.positions.shape[-1] - width :]
    mean_product = (grad * out).sum(-1, keepdim=True)
    products = (part.values @ grad[..., None])[..., 0] - mean_product
    dexact = (exact * products).masked_fill(~part.present, 0)
    dtail = tails * ((part.tail.values @ grad[..., None])[..., 0] - mean_product)
    dtwice = -(twice * products[..., products.shape[-1] - width :]).masked_fill(~part.counted, 0)
    dshift = dtail.scatter_add(3, part.cell, dtwice)

    half = part.away.square().sum(-1, keepdim=True) / 2
    uncapped = half * part.tail.spread < 1
    dhalf = (dshift * part.tail.spread).masked_fill(~uncapped, 0).sum(-1, keepdim=True)
    daway = (dshift[..., None, :] @ part.tail.keys)[..., 0, :] + dhalf * part.away
    dquery = (dexact[..., None, :] @ part.keys)[..., 0, :] + daway

    def summed(x: Tensor, like: Tensor) -> Tensor:
        return group_sum(x.flatten(3), assignment, clusters).view(like.shape)

    sums.dcentroids.sub_(group_sum(daway, assignment, clusters))
    sums.dtail.log_mass.add_(summed(dtail, sums.dtail.log_mass))
    sums.dtail.spread.add_(summed((dshift * half).masked_fill(~uncapped, 0), sums.dtail.spread))
    sums.dtail.keys.add_(summed(dshift[..., None] * part.away[..., None, :], sums.dtail.keys))
    sums.dtail.values.add_(summed(tails[..., None] * grad[..., None, :], sums.dtail.values))
    cell = assignment.clamp(0, clusters - 1).long()[..., None] * tokens + near
    sums.dscores.flatten(2).scatter_add_(2, cell.flatten(2), dtwice.flatten(2))

    kv_head = torch.arange(heads, device=k.device) // (heads // k.shape[1])
    first = (torch.arange(batch, device=k.device)[:, None] * k.shape[1] + kv_head)[..., None, None] * tokens
    row = torch.where(part.present, first + part.positions, batch * k.shape[1] * tokens)
    sums.dk.add_(_sum_to_keys(dexact[..., None] * part.query[..., None, :], row, k))
    sums.dv.add_(_sum_to_keys(less_twice(exact, twice)[..., None] * grad[..., None, :], row, v))
    return scale * dquery


def refined_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    centroids: Tensor,
    scores: Tensor,
    tails: Tail,
    decisions: Decisions,
    band: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tail]:
    """The gradients of `refined_attention` by q, k, v, the centroids, the scores and the tail."""
    dtype = centroids.dtype
    dq, dk, dv = (torch.zeros_like(x, dtype=dtype, memory_format=torch.contiguous_format) for x in (q, k, v))
    shared = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (centroids, scores, *tails))
    dcentroids, dscores, *dtails = shared
    sums = _Sums(dk, dv, dcentroids, dscores, Tail(*dtails))
    for rows in query_chunks(q, tails, decisions, band):
        part = query_rows(q, k, v, mask, centroids, scores, tails, decisions, rows, band, scale)
        assignment = decisions.query_clusters[:, :, rows]
        inside = ((assignment >= 0) & (assignment < centroids.shape[2]))[..., None]
        chunk = grad[:, :, rows].to(dtype).masked_fill(~inside, 0)
        dq[:, :, rows] = _chunk_backward(part, chunk, assignment, k, v, scale, sums)
    return dq, dk, dv, dcentroids, dscores, sums.dtail


@reference_kernel
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
) -> Gradients:
    grad = grad.to(accumulation_dtype(grad.dtype))
    most = largest(steps_of(clusters, 0, key_clusters_count, 1, longer))
    clusters, key_clusters_count = most.clusters, most.key_clusters
    decisions = Decisions(query_clusters, key_clusters, top_keys)
    centroids = group_mean(q, query_clusters, clusters, scale)
    scores = centroid_scores(centroids, k, mask)
    tails = Tail(*tail(scores, k, v, key_clusters, top_keys, key_clusters_count))
    dq, dk, dv, dcentroids, dscores, dtails = refined_attention_backward(
        grad, q, k, v, mask, centroids, scores, tails, decisions, band, scale
    )
    tail_dscores, tail_dk, tail_dv = tail_backward(dtails, scores, k, v, key_clusters, top_keys, key_clusters_count)
    score_dcentroids, score_dk = centroid_scores_backward(dscores + tail_dscores, centroids, k, mask)
    dq = dq + group_mean_backward(dcentroids + score_dcentroids, query_clusters, scale)
    gradients = (dq, dk + tail_dk + score_dk, dv + tail_dv)
    if exact_below > 0:
        exact = takes_exact_path(mask, q.shape[0], q.shape[2], exact_below, q.device)[..., None]
        full = _full_attention_backward(grad, q, k, v, mask, scale)
        dq, dk, dv = (torch.where(exact, f, c) for f, c in zip(full, gradients, strict=True))
        gradients = (dq, dk, dv)
    return _rounded(gradients, mask, q.dtype)
