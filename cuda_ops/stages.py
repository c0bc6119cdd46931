"""The stages of clustered attention, one operator each, in the order in which a forward pass goes through them.

Axes: B batch, H heads, H_kv key heads, N tokens, D head size, C clusters, K top keys, P hash planes. The accumulation
type is float64 for float64 input and float32 otherwise. A mask is (B, N) bool of any pattern, true where a token is
valid; what stands in a padded place reaches nothing. Sections are those of Vyas, Katharopoulos, Fleuret: "Fast
Transformers with Clustered Attention", 2020, arXiv 2007.04825. Every function raises TypeError for wrong types and
ValueError for wrong shapes, devices or ranges.
"""

import torch
from torch import Tensor

from cuda_ops import checks, operator_checks
from cuda_ops._library import warn_if_reference

_operators = torch.ops.cuda_ops


def hash_vectors(x: Tensor, planes: Tensor, mask: Tensor | None = None) -> Tensor:
    """The sign hash of each vector: bit p of token i is 1 where x_i . h_p > 0 (section 3.2.1).

    No bias, unlike idiap/fast-transformers; a NaN hashes to 0. Not differentiable.

    Args:
        x: (B, H, N, D), float32, float64, bfloat16 or float16, any strides.
        planes: (P, D) float32, P from 1 to 256: the normal vectors h_p, usually drawn from N(0, 1), shared by batch and
            heads.
        mask: (B, N) bool, or None where all tokens are valid.

    Returns:
        (B, H, N, ceil(P / 64)) int64: bit p % 64 of word p // 64. Padded tokens 0.
    """
    operator_checks.hash_vectors(x, planes, mask)
    warn_if_reference(x.device.type, x.dtype)
    return _operators.hash_vectors(x, planes, mask)


def cluster_codes(
    codes: Tensor, mask: Tensor | None, bits: int, clusters: int = 25, iterations: int = 10
) -> tuple[Tensor, Tensor]:
    """K-means of bit strings in Hamming space (section 3.2.1; Lloyd's algorithm, majority for the mean).

    Centroid c starts as the code of valid token floor(c n / C), n the number of valid tokens. Each of at most
    `iterations` rounds assigns every valid token to the nearest centroid (ties: the lowest c) and sets each bit of a
    centroid to the majority of its members (ties: 0; no members: unchanged); rounds end when no centroid changes. The
    tokens are then assigned to the last centroids. Deterministic, where idiap/fast-transformers draws starts and breaks
    ties at random. Not differentiable.

    Args:
        codes: (B, H, N, ceil(bits / 64)) int64 from `hash_vectors`; bits beyond `bits` are 0.
        mask: (B, N) bool, or None where all tokens are valid.
        bits: P, from 1 to 256.
        clusters: C, from 1 to 65536; may exceed N.
        iterations: at least 0.

    Returns:
        The cluster of each token, (B, H, N) int32, -1 on padding; the centroids, (B, H, C, ceil(bits / 64)) int64, 0
        where n = 0.
    """
    operator_checks.cluster_codes(codes, mask, bits, clusters, iterations)
    warn_if_reference(codes.device.type, torch.float32)
    return _operators.cluster_codes(codes, mask, bits, clusters, iterations)


def group_mean(x: Tensor, assignment: Tensor, clusters: int, scale: float = 1.0) -> Tensor:
    """The scaled mean of each cluster's members: scale / |c| * sum_{i in c} x_i (section 3.2). Differentiable in x.

    Args:
        x: (B, H, N, D), float32, float64, bfloat16 or float16, any strides.
        assignment: (B, H, N) int32; values outside 0..C-1 belong to no cluster.
        clusters: C, from 1 to 65536.
        scale: finite, above 0.

    Returns:
        (B, H, C, D) in the accumulation type; 0 for clusters without members.
    """
    operator_checks.group_mean(x, assignment, clusters, scale)
    checks.no_tangent(x=x)
    warn_if_reference(x.device.type, x.dtype)
    return _operators.group_mean(x, assignment, clusters, scale)


def centroid_scores(centroids: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """The products of centroids and keys: s_cj = qbar_c . k_j (section 3.2). Differentiable in both.

    Args:
        centroids: (B, H, C, D) in the accumulation type of k, with the scale in it.
        k: (B, H_kv, N, D), float32, float64, bfloat16 or float16, any strides; H_kv divides H, and head h uses key head
            h // (H / H_kv).
        mask: (B, N) bool, or None where all tokens are valid.

    Returns:
        (B, H, C, N) in the accumulation type, -inf on padding.
    """
    operator_checks.centroid_scores(centroids, k, mask)
    checks.no_tangent(centroids=centroids, k=k)
    warn_if_reference(k.device.type, k.dtype)
    return _operators.centroid_scores(centroids, k, mask)


def top_keys(scores: Tensor, mask: Tensor | None = None, topk: int = 32) -> Tensor:
    """The keys T_c with the largest score of each cluster (section 3.3).

    Always distinct valid keys: NaN counts as the largest score, -0 equals +0, a tie goes to the lowest position. Not
    differentiable.

    Args:
        scores: (B, H, C, N) float32 or float64.
        mask: (B, N) bool, or None where all tokens are valid.
        topk: K, at least 0; may exceed N.

    Returns:
        (B, H, C, min(K, N)) int32: the token positions of min(K, n) keys, n the row's number of valid tokens,
        ascending, then -1.
    """
    operator_checks.top_keys(scores, mask, topk)
    warn_if_reference(scores.device.type, scores.dtype)
    return _operators.top_keys(scores, mask, topk)


def centroid_attention(
    scores: Tensor, v: Tensor, mask: Tensor | None, top_keys: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The centroids' attention, split into the top keys' mass and the rest's values (sections 3.2 and 3.3).

    With A_c the softmax of s_c over the valid keys: rest_c = sum_{j not in T_c} A_cj v_j, mass_c = sum_{j in T_c} A_cj.
    Differentiable in scores and v, but not the log mass.

    Args:
        scores: (B, H, C, N) in the accumulation type of v.
        v: (B, H_kv, N, D), float32, float64, bfloat16 or float16, any strides; H_kv divides H.
        mask: (B, N) bool, or None where all tokens are valid.
        top_keys: (B, H, C, K) int32 from `top_keys`; values outside 0..N-1 stand for no key. K = 0: the rest is
            everything.

    Returns:
        rest (B, H, C, D), top mass (B, H, C) and log mass (B, H, C), the log of sum_j exp(s_cj), in the accumulation
        type; 0, 0 and -inf in a row without valid tokens.
    """
    operator_checks.centroid_attention(scores, v, mask, top_keys)
    checks.no_tangent(scores=scores, v=v)
    warn_if_reference(v.device.type, v.dtype)
    return _operators.centroid_attention(scores, v, mask, top_keys)


def exact_attention(
    q: Tensor, k: Tensor, v: Tensor, assignment: Tensor, top_keys: Tensor, top_mass: Tensor, scale: float | None = None
) -> Tensor:
    """Each query's own attention to its cluster's top keys, times the centroid's mass on them (section 3.3).

    out_i = m_c sum_{j in T_c} t_ij v_j, with t_i the softmax of scale q_i . k_j over T_c and c the cluster of i.
    Differentiable in q, k, v and the mass. Its gradient is plain PyTorch and needs N x K x D numbers; the fused
    operator's does not.

    Args:
        q: (B, H, N, D), float32, float64, bfloat16 or float16, any strides.
        k: (B, H_kv, N, D) of q's type; H_kv divides H.
        v: as k.
        assignment: (B, H, N) int32; values outside 0..C-1 belong to no cluster.
        top_keys: (B, H, C, K) int32; values outside 0..N-1 stand for no key, the others are distinct.
        top_mass: (B, H, C) in the accumulation type of q.
        scale: finite, above 0; None for D ** -0.5.

    Returns:
        (B, H, N, D) in the accumulation type; 0 for tokens of no cluster and where T_c is empty.
    """
    scale = scale_or_default(scale, q)
    operator_checks.exact_attention(q, k, v, assignment, top_keys, top_mass, scale)
    checks.no_tangent(q=q, k=k, v=v, top_mass=top_mass)
    warn_if_reference(q.device.type, q.dtype)
    return _operators.exact_attention(q, k, v, assignment, top_keys, top_mass, scale)


def group_scatter(values: Tensor, assignment: Tensor) -> Tensor:
    """Give each token its cluster's value (section 3.2). Differentiable in the values.

    Args:
        values: (B, H, C, D) float32 or float64, any strides.
        assignment: (B, H, N) int32; values outside 0..C-1 belong to no cluster.

    Returns:
        (B, H, N, D) of the values' type; 0 for tokens of no cluster.
    """
    operator_checks.group_scatter(values, assignment)
    checks.no_tangent(values=values)
    warn_if_reference(values.device.type, values.dtype)
    return _operators.group_scatter(values, assignment)


def scale_or_default(scale: float | None, q: Tensor) -> float:
    """The scale, or D ** -0.5 for None; what is wrong with q is left to the checks."""
    if scale is not None:
        return scale
    return q.shape[-1] ** -0.5 if isinstance(q, Tensor) and q.dim() and q.shape[-1] else 1.0
