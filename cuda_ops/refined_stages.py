"""The stages of refined_clustered that the paper's methods do not have, in the order of a forward pass.

Axes as in ``stages.py``, and M key clusters, W the half-width of the band. A forward pass is `cluster_rows` of the
queries and of the keys, `group_mean`, `centroid_scores`, `top_keys`, `tail`, `refined_attention`.
"""

import torch
from torch import Tensor

from cuda_ops import checks, operator_checks
from cuda_ops._library import warn_if_reference
from cuda_ops.stages import scale_or_default

_operators = torch.ops.cuda_ops


def cluster_rows(
    x: Tensor, mask: Tensor | None = None, clusters: int = 25, rounds: int = 3, sample: int = 256
) -> Tensor:
    """Euclidean K-means of each head's vectors, on a sample (Lloyd's algorithm).

    Centroid c starts as valid token floor(c n / C), n the number of valid tokens. Each of `rounds` rounds assigns the
    valid tokens floor(j n / S), j < S = min(n, max(sample, 4 C)), to the nearest centroid, the one with the largest
    x . c - |c|^2 / 2 (ties, and where nothing is a number: the lowest c), and moves each centroid to its members' mean
    (no members: unchanged). Then all valid tokens are assigned. Deterministic; not differentiable.

    Args:
        x: (B, H, N, D), float32, float64, bfloat16 or float16, any strides.
        mask: (B, N) bool, or None where all tokens are valid.
        clusters: C, from 1 to 65536; may exceed N.
        rounds: at least 0.
        sample: tokens that the rounds look at, at least 1.

    Returns:
        The cluster of each token, (B, H, N) int32, -1 on padding.
    """
    operator_checks.cluster_rows(x, mask, clusters, rounds, sample)
    warn_if_reference(x.device.type, x.dtype)
    return _operators.cluster_rows(x, mask, clusters, rounds, sample)


def tail(
    scores: Tensor, k: Tensor, v: Tensor, key_clusters: Tensor, top_keys: Tensor, key_clusters_count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What stands for the keys outside the top keys: for each cell (c, m), the keys j of key cluster m not in T_c,

        log Z_cm = log sum_j e^(s_cj)          Kbar_cm = sum_j w_cj k_j,  Vbar_cm = sum_j w_cj v_j
        sigma_cm = sum_j w_cj |k_j - Kbar_cm|^2 / D               with w_cj = e^(s_cj) / Z_cm.

    Everything relative to the cell's own largest score. Membership in T_c is explicit: a weight that underflows is
    still a tail key's. Differentiable in scores, k and v.

    Args:
        scores: (B, H, C, N) in the accumulation type of k, from `centroid_scores`.
        k: (B, H_kv, N, D), float32, float64, bfloat16 or float16, any strides; H_kv divides H.
        v: as k.
        key_clusters: (B, H, N) int32; values outside 0..M-1 belong to no cell.
        top_keys: (B, H, C, K) int32 from `top_keys`; values outside 0..N-1 stand for no key.
        key_clusters_count: M, from 1 to 65536.

    Returns:
        log mass (B, H, C, M), -inf for an empty cell; spread sigma (B, H, C, M), 0 for one key or none; the means of
        keys and values (B, H, C, M, D), 0 for an empty cell. All in the accumulation type.
    """
    operator_checks.tail(scores, k, v, key_clusters, top_keys, key_clusters_count)
    checks.no_tangent(scores=scores, k=k, v=v)
    warn_if_reference(k.device.type, k.dtype)
    return _operators.tail(scores, k, v, key_clusters, top_keys, key_clusters_count)


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
    band: int = 4,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Each query's attention to the top keys, its neighbours and the tail: step 5 of `refined_clustered`.

    Differentiable in q, k, v, centroids, scores and the tail; the log mass is not.

    Args:
        q: (B, H, N, D), float32, float64, bfloat16 or float16, any strides.
        k: (B, H_kv, N, D) of q's type; H_kv divides H.
        v: as k.
        mask: (B, N) bool, or None where all tokens are valid.
        centroids: (B, H, C, D) in the accumulation type, with the scale in it, from `group_mean`.
        scores: (B, H, C, N) in the accumulation type, from `centroid_scores`.
        tail_log_mass: (B, H, C, M) in the accumulation type; this and the next three from `tail`.
        tail_spread: (B, H, C, M).
        tail_keys: (B, H, C, M, D).
        tail_values: (B, H, C, M, D).
        query_clusters: (B, H, N) int32; values outside 0..C-1 belong to no cluster.
        key_clusters: (B, H, N) int32; values outside 0..M-1 belong to no cell.
        top_keys: (B, H, C, K) int32; values outside 0..N-1 stand for no key, the others are distinct.
        band: W, at least 0: valid neighbours on either side that are exact; 0 for no band, not even the query's own key.
        scale: finite, above 0; None for D ** -0.5.

    Returns:
        out (B, H, N, D) and log mass (B, H, N) in the accumulation type; 0 and -inf for tokens of no cluster.
    """
    scale = scale_or_default(scale, q)
    arguments = (
        *(q, k, v, mask, centroids, scores),
        *(tail_log_mass, tail_spread, tail_keys, tail_values),
        *(query_clusters, key_clusters, top_keys),
    )
    operator_checks.refined_attention(*arguments, band, scale)
    tail = {
        "tail_log_mass": tail_log_mass,
        "tail_spread": tail_spread,
        "tail_keys": tail_keys,
        "tail_values": tail_values,
    }
    checks.no_tangent(q=q, k=k, v=v, centroids=centroids, scores=scores, **tail)
    warn_if_reference(q.device.type, q.dtype)
    return _operators.refined_attention(*arguments, band, scale)
