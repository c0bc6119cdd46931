"""The paper's formulas as plain loops in float64: what every operator is measured against.

Vyas, Katharopoulos, Fleuret, "Fast Transformers with Clustered Attention" (NeurIPS 2020, arXiv 2007.04825): section 3.2
for clustered attention, section 3.3 for improved clustered attention. Nothing of ours is imported, so nothing of ours
can be wrong here in the same way.

Two correct implementations may decide differently where two scores differ by a rounding, so values and decisions are
apart: the value functions take the decisions (query clusters, top keys) as arguments, and the checkers (``check_*``)
say whether a decision is optimal.

Shapes: B batch, H heads (H_kv of keys and values), N tokens, D head size, C clusters, K top keys, P bits. ``mask`` is
(B, N), True where a token is valid, or None. A token that is not valid has cluster -1 and output 0; unused places of a
list of top keys are -1.
"""

from collections.abc import Iterator

import numpy as np

Array = np.ndarray


def valid_positions(mask: Array | None, batch: int, tokens: int) -> Array:
    """Positions of the valid tokens of one batch row, ascending."""
    return np.arange(tokens) if mask is None else np.flatnonzero(mask[batch])


def cells(x: Array) -> Iterator[tuple[int, int]]:
    """Every (batch, head) of a tensor (B, H, ...)."""
    return ((batch, head) for batch in range(x.shape[0]) for head in range(x.shape[1]))


def key_head(head: int, heads: int, key_heads: int) -> int:
    """The head of the keys and values that query head ``head`` uses."""
    return head // (heads // key_heads)


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def log_sum_exp(logits: Array) -> float:
    return float(logits.max() + np.log(np.exp(logits - logits.max()).sum())) if logits.size else -np.inf


# Decisions: hash codes, clusters, top keys.


def unpack_codes(codes: Array, bits: int) -> Array:
    """(..., words) int64 -> (..., P) bool; bit p is bit p % 64 of word p // 64. The bits above P must be 0."""
    words = codes.astype(np.uint64)
    unpacked = np.zeros((*codes.shape[:-1], 64 * codes.shape[-1]), dtype=bool)
    for p in range(unpacked.shape[-1]):
        unpacked[..., p] = (words[..., p // 64] >> np.uint64(p % 64)) & np.uint64(1)
    assert not unpacked[..., bits:].any(), f"codes have bits set beyond bit {bits - 1}"
    return unpacked[..., :bits]


def pack_codes(unpacked: Array) -> Array:
    """(..., P) bool -> (..., ceil(P/64)) int64, the inverse of :func:`unpack_codes`."""
    bits = unpacked.shape[-1]
    words = np.zeros((*unpacked.shape[:-1], -(-bits // 64)), dtype=np.uint64)
    for p in range(bits):
        words[..., p // 64] |= unpacked[..., p].astype(np.uint64) << np.uint64(p % 64)
    return words.astype(np.int64)


def check_codes(codes: Array, x: Array, planes: Array, mask: Array | None, tolerance: float) -> None:
    """Bit p is [x . h_p > 0], or either value where |x . h_p| <= tolerance * sum |x_d h_pd|; 0 for padded tokens."""
    got = unpack_codes(codes, planes.shape[0])
    for batch, head in cells(x):
        valid = valid_positions(mask, batch, x.shape[2])
        for i in range(x.shape[2]):
            if i not in valid:
                assert not got[batch, head, i].any(), f"padded token {(batch, head, i)} has code {got[batch, head, i]}"
                continue
            product = planes @ x[batch, head, i]
            slack = tolerance * (np.abs(planes) @ np.abs(x[batch, head, i]))
            wrong = (got[batch, head, i] != (product > 0)) & (np.abs(product) > slack)
            assert not wrong.any(), f"token {(batch, head, i)}, bits {np.flatnonzero(wrong)}: products {product[wrong]}"


def nearest(codes: Array, centroids: Array) -> Array:
    """(n, P) bool, (C, P) bool -> (n,) the centroid at the smallest Hamming distance, the lowest of several."""
    return np.array([np.argmin([(code != centroid).sum() for centroid in centroids]) for code in codes], dtype=np.int64)


def lloyd(codes: Array, clusters: int, iterations: int) -> tuple[Array, Array]:
    """K-means in Hamming space on the n valid tokens of one (batch, head).

    (n, P) bool -> clusters (n,), centroids (C, P) bool.
    """
    n = len(codes)
    if n == 0:
        return np.zeros(0, dtype=np.int64), np.zeros((clusters, codes.shape[1]), dtype=bool)
    centroids = np.array([codes[c * n // clusters] for c in range(clusters)])
    for _ in range(iterations):
        assignment = nearest(codes, centroids)
        updated = centroids.copy()
        for c in range(clusters):
            members = codes[assignment == c]
            if len(members):
                updated[c] = 2 * members.sum(axis=0) > len(members)
        if (updated == centroids).all():
            break
        centroids = updated
    return nearest(codes, centroids), centroids


def cluster_codes(codes: Array, mask: Array | None, bits: int, clusters: int, iterations: int) -> tuple[Array, Array]:
    """(B, H, N, words) int64 -> assignment (B, H, N), centroids (B, H, C, words) int64.

    Integers only, so the result is exact.
    """
    unpacked = unpack_codes(codes, bits)
    assignment = np.full(codes.shape[:3], -1, dtype=np.int64)
    centroids = np.zeros((*codes.shape[:2], clusters, bits), dtype=bool)
    for batch, head in cells(codes):
        valid = valid_positions(mask, batch, codes.shape[2])
        assignment[batch, head, valid], centroids[batch, head] = lloyd(
            unpacked[batch, head, valid], clusters, iterations
        )
    return assignment, pack_codes(centroids)


def check_assignment(assignment: Array, codes: Array, centroids: Array, mask: Array | None, bits: int) -> None:
    """Every valid token is in the cluster of its nearest centroid, the lowest of several; padded tokens in -1."""
    tokens, starts = unpack_codes(codes, bits), unpack_codes(centroids, bits)
    for batch, head in cells(codes):
        valid = valid_positions(mask, batch, codes.shape[2])
        expected = np.full(codes.shape[2], -1)
        expected[valid] = nearest(tokens[batch, head, valid], starts[batch, head])
        np.testing.assert_array_equal(
            assignment[batch, head], expected, err_msg=f"clusters of (batch, head) {(batch, head)}"
        )


def top_keys(scores: Array, mask: Array | None, topk: int) -> Array:
    """The exact answer for scores (B, H, C, N) as they are: ties go to the lowest position, NaN is largest, -0 = +0."""
    tokens = scores.shape[3]
    top = np.full((*scores.shape[:3], min(topk, tokens)), -1, dtype=np.int64)
    for batch, head in cells(scores):
        valid = valid_positions(mask, batch, tokens)
        for c in range(scores.shape[2]):
            row = scores[batch, head, c]
            best = sorted(
                valid, key=lambda j, row=row: (not np.isnan(row[j]), 0.0 if np.isnan(row[j]) else -row[j], j)
            )[:topk]
            top[batch, head, c, : len(best)] = sorted(best)
    return top


def check_top_keys(top: Array, scores: Array, mask: Array | None, topk: int, tolerance: float) -> None:
    """``top`` lists min(K, n) valid positions, ascending, then -1; no key left out beats one by more than that."""
    tokens = scores.shape[3]
    assert top.shape == (*scores.shape[:3], min(topk, tokens)), f"top keys have shape {top.shape}"
    for batch, head in cells(scores):
        valid = valid_positions(mask, batch, tokens)
        count = min(topk, len(valid))
        for c in range(scores.shape[2]):
            where, row = (batch, head, c), top[batch, head, c]
            taken = row[:count]
            assert (row[count:] == -1).all(), f"{where}: {row} has more than {count} keys"
            assert np.isin(taken, valid).all() and (np.diff(taken) > 0).all(), (
                f"{where}: {row} is not ascending, distinct and valid"
            )
            left = np.setdiff1d(valid, taken)
            if count and len(left):
                worst, best = scores[where][taken].min(), scores[where][left].max()
                assert worst >= best - tolerance, f"{where}: took a key with score {worst}, left one with {best}"


# Values, given the decisions.


def group_mean(x: Array, assignment: Array, clusters: int, scale: float) -> Array:
    """(B, H, C, D): the mean of scale * x over each cluster's members (the paper's Q^c), 0 where there are none."""
    means = np.zeros((*x.shape[:2], clusters, x.shape[3]))
    for batch, head in cells(x):
        for c in range(clusters):
            members = x[batch, head, assignment[batch, head] == c]
            if len(members):
                means[batch, head, c] = scale * members.sum(axis=0) / len(members)
    return means


def centroid_scores(centroids: Array, k: Array, mask: Array | None) -> Array:
    """(B, H, C, N): centroid_c . k_j, -inf where token j is padded."""
    heads, tokens = centroids.shape[1], k.shape[2]
    scores = np.full((*centroids.shape[:3], tokens), -np.inf)
    for batch, head in cells(centroids):
        for j in valid_positions(mask, batch, tokens):
            scores[batch, head, :, j] = centroids[batch, head] @ k[batch, key_head(head, heads, k.shape[1]), j]
    return scores


def centroid_attention(scores: Array, v: Array, mask: Array | None, top: Array) -> tuple[Array, Array, Array]:
    """With A^c the softmax of the scores over the valid keys: what it makes of the keys outside and inside T_c.

    Returns rest (B, H, C, D) = sum_{j not in T_c} A^c_cj v_j, top mass (B, H, C) = sum_{j in T_c} A^c_cj, and log mass
    (B, H, C), the logarithm of the sum of the exponentials of the scores.
    """
    rest = np.zeros((*scores.shape[:3], v.shape[3]))
    top_mass, log_mass = np.zeros(scores.shape[:3]), np.full(scores.shape[:3], -np.inf)
    for batch, head in cells(scores):
        values = v[batch, key_head(head, scores.shape[1], v.shape[1])]
        valid = valid_positions(mask, batch, scores.shape[3])
        for c in range(scores.shape[2] if len(valid) else 0):
            weights = softmax(scores[batch, head, c, valid])
            log_mass[batch, head, c] = log_sum_exp(scores[batch, head, c, valid])
            for weight, j in zip(weights, valid, strict=True):
                if j in top[batch, head, c]:
                    top_mass[batch, head, c] += weight
                else:
                    rest[batch, head, c] += weight * values[j]
    return rest, top_mass, log_mass


def exact_attention(
    q: Array, k: Array, v: Array, assignment: Array, top: Array, top_mass: Array, scale: float
) -> Array:
    """(B, H, N, D): mass of the token's cluster times softmax over T_c of scale * q_i . k_j, times the values.

    0 on padding or without keys.
    """
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for batch, head in cells(q):
        source = key_head(head, q.shape[1], k.shape[1])
        for i in np.flatnonzero(assignment[batch, head] >= 0):
            c = assignment[batch, head, i]
            keys = top[batch, head, c][top[batch, head, c] >= 0]
            if len(keys):
                weights = softmax(scale * (k[batch, source, keys] @ q[batch, head, i]))
                out[batch, head, i] = top_mass[batch, head, c] * (weights @ v[batch, source, keys])
    return out


def group_scatter(values: Array, assignment: Array) -> Array:
    """(B, H, C, D) -> (B, H, N, D): each token gets the row of its cluster, padding gets 0."""
    out = np.zeros((*assignment.shape, values.shape[3]))
    for batch, head in cells(values):
        for i in np.flatnonzero(assignment[batch, head] >= 0):
            out[batch, head, i] = values[batch, head, assignment[batch, head, i]]
    return out


def full_attention(q: Array, k: Array, v: Array, mask: Array | None, scale: float) -> tuple[Array, Array]:
    """softmax(scale * q k^T) v over the valid keys -> output (B, H, N, D), log mass (B, H, N).

    0 and -inf on padding.
    """
    out, log_mass = np.zeros((*q.shape[:3], v.shape[3])), np.full(q.shape[:3], -np.inf)
    for batch, head in cells(q):
        source = key_head(head, q.shape[1], k.shape[1])
        valid = valid_positions(mask, batch, q.shape[2])
        for i in valid:
            logits = scale * (k[batch, source, valid] @ q[batch, head, i])
            out[batch, head, i] = softmax(logits) @ v[batch, source, valid]
            log_mass[batch, head, i] = log_sum_exp(logits)
    return out, log_mass


def improved_clustered(
    q: Array, k: Array, v: Array, mask: Array | None, assignment: Array, top: Array, scale: float, exact_below: int = 0
) -> tuple[Array, Array]:
    """Section 3.3, output (B, H, N, D), and log mass (B, H, N), the centroid's.

    With c its cluster, row i of A^t is mhat_c exp(q_i.k_l) / sum_{r in T_c} exp(q_i.k_r) for l in T_c, else A^c_cl.

    mhat_c is the sum of A^c_cl over T_c, A^c section 3.2's softmax of the centroid's scores. Without top keys this is
    section 3.2's clustered attention. Batch rows with fewer than ``exact_below`` valid tokens are exact.
    """
    out, log_mass = full_attention(q, k, v, mask, scale)
    for batch, head in cells(q):
        valid = valid_positions(mask, batch, q.shape[2])
        if len(valid) < exact_below:
            continue
        keys, values = (x[batch, key_head(head, q.shape[1], x.shape[1])] for x in (k, v))
        for c in np.unique(assignment[batch, head, valid]):
            members = np.flatnonzero(assignment[batch, head] == c)
            centroid = q[batch, head, members].mean(axis=0)
            scores = scale * (keys[valid] @ centroid)
            in_top = np.isin(valid, top[batch, head, c])
            for i in members:
                row = softmax(scores)
                if in_top.any():
                    row[in_top] = row[in_top].sum() * softmax(scale * (keys[valid[in_top]] @ q[batch, head, i]))
                out[batch, head, i] = row @ values[valid]
                log_mass[batch, head, i] = log_sum_exp(scores)
    return out, log_mass


def clustered(
    q: Array, k: Array, v: Array, mask: Array | None, assignment: Array, scale: float, exact_below: int = 0
) -> tuple[Array, Array]:
    """Section 3.2: every query gets its centroid's attention. Output (B, H, N, D) and log mass (B, H, N)."""
    nothing = np.full((*q.shape[:2], int(assignment.max(initial=0)) + 1, 0), -1)
    return improved_clustered(q, k, v, mask, assignment, nothing, scale, exact_below)
