"""The gradients in plain PyTorch, by explicit formulas; clusters and top keys are constants.

First each stage's gradient, then the fused operators' as their composition. With g_i the gradient of query i's output,
c its cluster, u_i = sum_{j in T_c} t_ij v_j the exact part's mean value, m_c = sum_{j in T_c} A_cj and
G_c = sum_{i in c} g_i:

    dm_c     = sum_{i in c} g_i . u_i
    dl_ij    = m_c t_ij (g_i . v_j - g_i . u_i)                          the exact logits, j in T_c
    dA_cj    = dm_c for j in T_c, else G_c . v_j
    ds_cj    = A_cj (dA_cj - sum_j' A_cj' dA_cj')                        the centroid's scores
    dqbar_c  = sum_j ds_cj k_j
    dq_i     = scale (sum_{j in T_c} dl_ij k_j + dqbar_c / |c|)
    dk_j     = sum_c ds_cj qbar_c + sum_i dl_ij scale q_i
    dv_j     = sum_i m_c t_ij g_i  for j in T_c   +   sum_c A_cj G_c  for j not in T_c

idiap/fast-transformers holds m_c constant; here it is differentiated. A key head shared by several query heads gets
their sum. The stages' functions are differentiable themselves; the fused ones go through the queries in chunks.
"""

import torch
from torch import Tensor

from cuda_ops.reference import centroid_scores, group_mean, group_scatter
from cuda_ops.reference_parts import (
    accumulation_dtype,
    fold_heads,
    gather_rows,
    group_size,
    group_sum,
    is_top_key,
    keys_of_queries,
    product_with_keys,
    reference_kernel,
    row_chunks,
    softmax_and_log_mass,
    sum_rows,
    takes_exact_path,
    token_major,
    valid_tokens,
    weighted_values,
    zero_padding,
)

Gradients = tuple[Tensor, Tensor, Tensor]


def transposed_product(weights: Tensor, rows: Tensor, kv_heads: int) -> Tensor:
    """weights (B, H, R, N), rows (B, H, R, D) -> (B, H_kv, N, D): the weighted rows, summed over the heads that share
    a key head.
    """
    return fold_heads(weights, kv_heads).transpose(-1, -2) @ fold_heads(rows, kv_heads)


def group_mean_backward(grad: Tensor, assignment: Tensor, scale: float) -> Tensor:
    """The gradient of `group_mean` by x."""
    return group_scatter(grad * scale / group_size(assignment, grad.shape[2], grad.dtype).clamp(min=1), assignment)


def group_scatter_backward(grad: Tensor, assignment: Tensor, clusters: int) -> Tensor:
    """The gradient of `group_scatter` by the values."""
    return group_sum(grad, assignment, clusters)


def centroid_scores_backward(grad: Tensor, centroids: Tensor, k: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradients of `centroid_scores` by the centroids and by k."""
    grad = grad if mask is None else grad.masked_fill(~mask[:, None, None, :], 0)
    dk = transposed_product(grad, centroids, k.shape[1])
    return weighted_values(grad, zero_padding(k, mask)), zero_padding(dk, mask)


def centroid_attention_backward(
    grad_rest: Tensor, grad_mass: Tensor, scores: Tensor, v: Tensor, mask: Tensor | None, top_keys: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of `centroid_attention` by the scores and by v."""
    batch, _, _, tokens = scores.shape
    valid = valid_tokens(mask, batch, tokens, scores.device)[:, None, None, :]
    weights, _ = softmax_and_log_mass(scores, valid)
    top = is_top_key(top_keys, tokens)
    dweights = torch.where(top, grad_mass[..., None], product_with_keys(grad_rest, zero_padding(v, mask)))
    weighted = weights * dweights
    dscores = (weighted - weights * weighted.sum(-1, keepdim=True)).masked_fill(~valid, 0)
    dv = transposed_product(weights.masked_fill(top, 0), grad_rest, v.shape[1])
    return dscores, zero_padding(dv, mask)


def _exact_rows_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, assignment: Tensor, top_keys: Tensor, top_mass: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """For some queries: dq, g_i . u_i, each slot's contributions to dk and dv (B, H, R, K, D), and its key's row in
    them.
    """
    batch, heads, _, _ = q.shape
    position, present = keys_of_queries(assignment, top_keys, k.shape[2])
    keys = gather_rows(k, position, heads).masked_fill(~present[..., None], 0)
    values = gather_rows(v, position, heads).masked_fill(~present[..., None], 0)
    some = present.any(-1, keepdim=True)
    scaled = (q.to(keys.dtype) * scale).masked_fill(~some, 0)
    grad = grad.to(keys.dtype).masked_fill(~some, 0)
    mass = group_scatter(top_mass[..., None], assignment)

    weights, _ = softmax_and_log_mass((keys @ scaled[..., None])[..., 0], present)
    products = (values @ grad[..., None])[..., 0]
    mean_product = (weights * products).sum(-1, keepdim=True)
    dlogits = mass * weights * (products - mean_product)
    dq = scale * (dlogits[..., None, :] @ keys)[..., 0, :]

    kv_head = torch.arange(heads, device=q.device) // max(heads // max(k.shape[1], 1), 1)
    row = torch.arange(batch, device=q.device)[:, None] * k.shape[1] + kv_head
    row = torch.where(present, row[..., None, None] * k.shape[2] + position, batch * k.shape[1] * k.shape[2])
    to_keys, to_values = (dlogits[..., None] * scaled[..., None, :], (mass * weights)[..., None] * grad[..., None, :])
    return dq, mean_product, to_keys, to_values, row


def _sum_to_keys(slots: Tensor, row: Tensor, like: Tensor) -> Tensor:
    """slots (B, H, R, K, D), row (B, H, R, K) -> (B, H_kv, N, D); rows that stand for no key go past the end."""
    batch, kv_heads, tokens, size = like.shape
    count = batch * kv_heads * tokens
    return sum_rows(slots.reshape(-1, size), row.reshape(-1), count + 1)[:count].view(batch, kv_heads, tokens, size)


def exact_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, assignment: Tensor, top_keys: Tensor, top_mass: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `exact_attention` by q, k, v and the top mass; all queries at once, so N x K x D numbers."""
    dq, mean_product, to_keys, to_values, row = _exact_rows_backward(
        grad, q, k, v, assignment, top_keys, top_mass, scale
    )
    dmass = group_sum(mean_product, assignment, top_mass.shape[2])[..., 0]
    return dq, _sum_to_keys(to_keys, row, k), _sum_to_keys(to_values, row, v), dmass


def _exact_attention_backward_in_chunks(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, assignment: Tensor, top_keys: Tensor, top_mass: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with less memory; not differentiable."""
    batch, heads, tokens, size = q.shape
    dq, dk, dv = (torch.zeros_like(x, dtype=top_mass.dtype) for x in (q, k, v))
    mean_product = torch.zeros(batch, heads, tokens, 1, dtype=top_mass.dtype, device=q.device)
    topk = top_keys.shape[3]
    for rows in row_chunks(tokens if topk else 0, batch * heads * topk * size):
        dq[:, :, rows], mean_product[:, :, rows], to_keys, to_values, row = _exact_rows_backward(
            grad[:, :, rows], q[:, :, rows], k, v, assignment[:, :, rows], top_keys, top_mass, scale
        )
        dk += _sum_to_keys(to_keys, row, k)
        dv += _sum_to_keys(to_values, row, v)
    return dq, dk, dv, group_sum(mean_product, assignment, top_mass.shape[2])[..., 0]


def _full_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> Gradients:
    """full_attention_backward before the results are rounded; the weights are recomputed, since `out` was rounded."""
    batch, heads, tokens, _ = q.shape
    valid = valid_tokens(mask, batch, tokens, q.device)[:, None, None, :]
    grad, keys, values = (zero_padding(grad, mask), zero_padding(k, mask), zero_padding(v, mask))
    scaled = zero_padding(q, mask) * scale
    dq, dk, dv = (torch.zeros_like(scaled), torch.zeros_like(keys), torch.zeros_like(values))
    for rows in row_chunks(tokens, batch * heads * tokens):
        weights, _ = softmax_and_log_mass(product_with_keys(scaled[:, :, rows], keys), valid)
        weighted = weights * product_with_keys(grad[:, :, rows], values)
        dlogits = weighted - weights * weighted.sum(-1, keepdim=True)
        dq[:, :, rows] = scale * weighted_values(dlogits, keys)
        dk += transposed_product(dlogits, scaled[:, :, rows], k.shape[1])
        dv += transposed_product(weights, grad[:, :, rows], v.shape[1])
    return dq, dk, dv


def _rounded(gradients: Gradients, mask: Tensor | None, dtype: torch.dtype) -> Gradients:
    dq, dk, dv = (token_major(zero_padding(gradient, mask), dtype) for gradient in gradients)
    return dq, dk, dv


@reference_kernel
def full_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, log_mass: Tensor, scale: float
) -> Gradients:
    return _rounded(_full_attention_backward(grad, q, k, v, mask, scale), mask, q.dtype)


@reference_kernel
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
) -> Gradients:
    grad = grad.to(accumulation_dtype(grad.dtype))
    centroids = group_mean(q, assignment, clusters, scale)
    scores = centroid_scores(centroids, k, mask)
    valid = valid_tokens(mask, q.shape[0], q.shape[2], q.device)[:, None, None, :]
    weights, _ = softmax_and_log_mass(scores, valid)
    top_mass = weights.masked_fill(~is_top_key(top_keys, q.shape[2]), 0).sum(-1)

    dq, dk, dv, dmass = _exact_attention_backward_in_chunks(grad, q, k, v, assignment, top_keys, top_mass, scale)
    drest = group_scatter_backward(grad, assignment, clusters)
    dscores, dv_rest = centroid_attention_backward(drest, dmass, scores, v, mask, top_keys)
    dcentroids, dk_rest = centroid_scores_backward(dscores, centroids, k, mask)
    gradients = (dq + group_mean_backward(dcentroids, assignment, scale), dk + dk_rest, dv + dv_rest)
    if exact_below > 0:
        exact = takes_exact_path(mask, q.shape[0], q.shape[2], exact_below, q.device)[..., None]
        full = _full_attention_backward(grad, q, k, v, mask, scale)
        dq, dk, dv = (torch.where(exact, f, c) for f, c in zip(full, gradients, strict=True))
        gradients = (dq, dk, dv)
    return _rounded(gradients, mask, q.dtype)


@reference_kernel
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
) -> Gradients:
    no_keys = assignment.new_empty(assignment.shape[0], assignment.shape[1], clusters, 0)
    return improved_clustered_backward(
        grad, q, k, v, mask, out, log_mass, assignment, no_keys, clusters, scale, exact_below
    )
