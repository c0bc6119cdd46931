"""Whole attention layers, one operator per method.

Their stages are in ``stages.py`` and ``refined_stages.py``; the former explains axes, types and masks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cuda_ops import checks, operator_checks
from cuda_ops._library import warn_if_reference
from cuda_ops.stages import scale_or_default

_operators = torch.ops.cuda_ops


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Exact attention over the valid keys: out_i = sum_j softmax_j(scale q_i . k_j) v_j.

    The compiled operator gives a sequence the same bits whatever its padding, batch and number of threads, which
    ``torch.nn.functional.scaled_dot_product_attention`` does not; where bits do not matter, that one is faster.
    Differentiable in q, k and v; a second derivative and forward mode raise NotImplementedError.

    Args:
        q: (B, H, N, D), float32, float64, bfloat16 or float16, any strides.
        k: (B, H_kv, N, D) of q's type; H_kv divides H, and head h uses key head h // (H / H_kv).
        v: as k.
        mask: (B, N) bool, true where a token is valid; None where all are.
        scale: finite, above 0; None for D ** -0.5.

    Returns:
        out (B, H, N, D) of q's type, a view of a contiguous (B, N, H, D) tensor, 0 on padding; log mass (B, H, N), the
        log of sum_j exp(scale q_i . k_j) in the accumulation type, -inf on padding, not differentiable.

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: a wrong shape, device or range.
    """
    scale = scale_or_default(scale, q)
    operator_checks.full_attention(q, k, v, mask, scale)
    checks.no_tangent(q=q, k=k, v=v)
    warn_if_reference(q.device.type, q.dtype)
    return _operators.full_attention(q, k, v, mask, scale)


def clustered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    planes: Tensor,
    clusters: int = 25,
    iterations: int = 10,
    scale: float | None = None,
    exact_below: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Clustered attention: every query gets the attention of its cluster's mean (section 3.2 of arXiv 2007.04825).

    out_i = sum_j softmax_j(qbar_c . k_j) v_j, with c the cluster of i and qbar_c = scale / |c| * sum_{i in c} q_i. The
    clusters come from `hash_vectors` and `cluster_codes`. Equal to the composition of the stages, bit for bit. The
    gradient flows through the means; clusters are constants; a second derivative and forward mode raise
    NotImplementedError. Linear in N.

    Args:
        q: (B, H, N, D), float32, float64, bfloat16 or float16, any strides.
        k: (B, H_kv, N, D) of q's type; H_kv divides H, and head h uses key head h // (H / H_kv).
        v: as k.
        mask: (B, N) bool, true where a token is valid; None where all are.
        planes: (P, D) float32, P from 1 to 256: the hash planes.
        clusters: C, from 1 to 65536; may exceed N.
        iterations: rounds of K-means, at least 0.
        scale: finite, above 0; None for D ** -0.5.
        exact_below: batch rows with fewer valid tokens get `full_attention`.

    Returns:
        out (B, H, N, D) of q's type, a view of a contiguous (B, N, H, D) tensor, 0 on padding; log mass (B, H, N), the
        log of sum_j exp(qbar_c . k_j) (exact rows: of the query's own products) in the accumulation type, -inf on
        padding; the clusters (B, H, N) int32, -1 on padding and in exact rows. Only out is differentiable.

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: a wrong shape, device or range.
    """
    scale = scale_or_default(scale, q)
    operator_checks.clustered(q, k, v, mask, planes, clusters, iterations, scale, exact_below)
    checks.no_tangent(q=q, k=k, v=v)
    warn_if_reference(q.device.type, q.dtype)
    return _operators.clustered(q, k, v, mask, planes, clusters, iterations, scale, exact_below)


def improved_clustered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    planes: Tensor,
    clusters: int = 25,
    topk: int = 32,
    iterations: int = 10,
    scale: float | None = None,
    exact_below: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`clustered` with exact products on each cluster's top keys (section 3.3 of arXiv 2007.04825).

    With A_c the softmax of qbar_c . k_j, T_c the K keys where it is largest and m_c its mass on them,
    out_i = m_c sum_{j in T_c} softmax_{T_c}(scale q_i . k_j) v_j + sum_{j not in T_c} A_cj v_j.
    Exact attention for K >= N. Equal to the composition of the stages, bit for bit. The gradient flows through the
    means, the products and m_c (which idiap/fast-transformers holds constant); clusters and top keys are constants; a
    second derivative and forward mode raise NotImplementedError. Linear in N.

    Args:
        q: (B, H, N, D), float32, float64, bfloat16 or float16, any strides.
        k: (B, H_kv, N, D) of q's type; H_kv divides H, and head h uses key head h // (H / H_kv).
        v: as k.
        mask: (B, N) bool, true where a token is valid; None where all are.
        planes: (P, D) float32, P from 1 to 256: the hash planes.
        clusters: C, from 1 to 65536; may exceed N.
        topk: K, at least 0; may exceed N.
        iterations: rounds of K-means, at least 0.
        scale: finite, above 0; None for D ** -0.5.
        exact_below: batch rows with fewer valid tokens get `full_attention`.

    Returns:
        out (B, H, N, D) of q's type, a view of a contiguous (B, N, H, D) tensor, 0 on padding; log mass (B, H, N), the
        log of sum_j exp(qbar_c . k_j) (exact rows: of the query's own products) in the accumulation type, -inf on
        padding; the clusters (B, H, N) int32, -1 on padding and in exact rows; the top keys (B, H, C, min(K, N)) int32:
        ascending token positions, then -1, and only -1 in exact rows. Only out is differentiable.

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: a wrong shape, device or range.
    """
    scale = scale_or_default(scale, q)
    operator_checks.improved_clustered(q, k, v, mask, planes, clusters, topk, iterations, scale, exact_below)
    checks.no_tangent(q=q, k=k, v=v)
    warn_if_reference(q.device.type, q.dtype)
    return _operators.improved_clustered(q, k, v, mask, planes, clusters, topk, iterations, scale, exact_below)


def refined_clustered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    clusters: int = 25,
    topk: int = 96,
    key_clusters: int = 32,
    band: int = 4,
    rounds: int = 3,
    sample: int = 256,
    scale: float | None = None,
    exact_below: int = 0,
    longer: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Clustered queries and keys, exact top keys and neighbours, and a tail that each query weighs for itself.

    With q_i scaled, per sequence and head, over valid tokens:

    1. Query clusters by `cluster_rows`, with means qbar_c, and s_cj = qbar_c . k_j.
    2. Key clusters by `cluster_rows`, M of them; m(j) is key j's.
    3. T_c, the K keys with the largest s_cj; band(i), the valid tokens within W of i.
    4. `tail`: for each cell (c, m) the mass Z_cm, the means Kbar_cm and Vbar_cm and the spread sigma_cm of the keys of m
       outside T_c, weighted by e^(s_cj).
    5. out_i is the ratio of two sums, of values and of ones, over e^(q_i . k_j) v_j for j in T_c and band(i), plus
       Z_cm e^(f_im) Vbar_cm for all m, minus e^(s_cj + f_i,m(j)) v_j for j in band(i) outside T_c, which the tail has
       counted, where f_im = (q_i - qbar_c) . Kbar_cm + min(1, |q_i - qbar_c|^2 sigma_cm / 2). So a neighbour outside T_c
       has the one coefficient e^(q_i . k_j) - e^(s_cj + f_i,m(j)). One common maximum for all of them.

    Exact attention for K >= N, for C >= N with distinct queries, and for M >= N with distinct keys. Equal to the
    composition of the stages. The gradient flows through means, masses, spreads and products; clusters and top keys are
    constants; a second derivative and forward mode raise NotImplementedError. Linear in N.

    Args:
        q: (B, H, N, D), float32, float64, bfloat16 or float16, any strides.
        k: (B, H_kv, N, D) of q's type; H_kv divides H, and head h uses key head h // (H / H_kv).
        v: as k.
        mask: (B, N) bool, true where a token is valid; None where all are.
        clusters: C, from 1 to 65536; may exceed N.
        topk: K, at least 0; may exceed N.
        key_clusters: M, from 1 to 65536; may exceed N.
        band: W, at least 0; 0 for no band.
        rounds: rounds of K-means, at least 0.
        sample: tokens that the rounds look at, at least 1; never fewer than 4 per cluster.
        scale: finite, above 0; None for D ** -0.5.
        exact_below: batch rows with fewer valid tokens get `full_attention`.
        longer: five numbers a step, one step after the other: tokens, clusters, topk, key_clusters, sample; ascending in
            tokens, from 1. A batch row with at least so many valid tokens takes these budgets instead, of several steps
            the last one that it reaches. Each row is what it would be alone with its own step's budgets, bit for bit.

    Returns:
        out (B, H, N, D) of q's type, a view of a contiguous (B, N, H, D) tensor, 0 on padding; log mass (B, H, N), the
        log of step 5's sum of ones (exact rows: of e^(q_i . k_j)) in the accumulation type, -inf on padding; the query
        clusters and the key clusters, both (B, H, N) int32, -1 on padding and in exact rows; the top keys
        (B, H, C, min(K, N)) int32, with C and K the largest of all steps: ascending token positions, then -1, and only
        -1 in exact rows and in clusters that the row's step does not have. Only out is differentiable.

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: a wrong shape, device or range.
    """
    scale = scale_or_default(scale, q)
    budgets = (clusters, topk, key_clusters, band, rounds, sample)
    operator_checks.refined_clustered(q, k, v, mask, *budgets, scale, exact_below, longer)
    checks.no_tangent(q=q, k=k, v=v)
    warn_if_reference(q.device.type, q.dtype)
    return _operators.refined_clustered(q, k, v, mask, *budgets, scale, exact_below, longer)
