"""The refined method as plain loops in float64, given its decisions; ``oracle.py`` says how it is used.

M key clusters, W the half-width of the band. Nothing of ours is imported.
"""

import numpy as np
from oracle import Array, cells, full_attention, key_head, valid_positions


def kmeans(x: Array, clusters: int, rounds: int, sample: int) -> Array:
    """(n, D) -> the centroids (C, D) after `rounds` Lloyd updates on an evenly spaced sample of the n valid tokens."""
    n = len(x)
    centroids = np.array([x[c * n // clusters] for c in range(clusters)])
    size = min(n, max(sample, 4 * clusters))
    rows = np.array([x[j * n // size] for j in range(size)])
    for _ in range(rounds):
        nearest = np.array([np.argmin(((row - centroids) ** 2).sum(1)) for row in rows])
        for c in range(clusters):
            if (nearest == c).any():
                centroids[c] = rows[nearest == c].mean(axis=0)
    return centroids


def check_clusters(
    assignment: Array, x: Array, mask: Array | None, clusters: int, rounds: int, sample: int, tolerance: float
) -> None:
    """Each valid token is in a cluster whose centroid is nearest to ``tolerance`` (C |x|^2); padded tokens in -1.

    ``assignment`` has the heads of x or a multiple of them.
    """
    heads = assignment.shape[1]
    for batch, head in cells(assignment):
        valid = valid_positions(mask, batch, x.shape[2])
        rows = x[batch, key_head(head, heads, x.shape[1]), valid]
        padded = np.delete(assignment[batch, head], valid)
        assert (padded == -1).all(), f"padded tokens of {(batch, head)} have clusters {padded}"
        if not len(valid):
            continue
        got = assignment[batch, head, valid]
        assert ((got >= 0) & (got < clusters)).all(), f"clusters of {(batch, head)} out of range: {got}"
        distances = ((rows[:, None] - kmeans(rows, clusters, rounds, sample)) ** 2).sum(2)
        excess = distances[np.arange(len(valid)), got] - distances.min(axis=1)
        assert excess.max() <= tolerance * (rows**2).sum(1).max(), (
            f"(batch, head) {(batch, head)}: token {valid[excess.argmax()]} is {excess.max()} farther than the nearest"
        )


def cell(scores: Array, keys: Array, values: Array) -> tuple[float, float, Array, Array]:
    """The tail of one cell, over its keys: log Z, sigma, the weighted means of keys and values."""
    if not len(scores):
        return -np.inf, 0.0, np.zeros(keys.shape[1]), np.zeros(values.shape[1])
    weights = np.exp(scores - scores.max())
    mass, weights = weights.sum(), weights / weights.sum()
    mean = weights @ keys
    return (
        float(scores.max() + np.log(mass)),
        float(weights @ ((keys - mean) ** 2).mean(axis=1)),
        mean,
        weights @ values,
    )


def attend(
    query: Array,
    centroid: Array,
    scores: Array,
    keys: Array,
    values: Array,
    key_clusters: Array,
    exact: Array,
    near: Array,
    second_order: bool,
) -> tuple[Array, float]:
    """Step 5 for one query. ``exact`` (n,) says which keys are in T_c, ``near`` which are in the band."""
    away = query - centroid
    logits, signs, vectors = [], [], []
    shift = {}
    for m in np.unique(key_clusters):
        chosen = (key_clusters == m) & ~exact
        log_mass, spread, mean, value = cell(scores[chosen], keys[chosen], values[chosen])
        shift[m] = away @ mean + (min(1.0, away @ away * spread / 2) if second_order else 0.0)
        logits.append(log_mass + shift[m])
        signs.append(1.0)
        vectors.append(value)
    for j in np.flatnonzero(exact | near):
        logits.append(query @ keys[j])
        signs.append(1.0)
        vectors.append(values[j])
        if not exact[j]:
            logits.append(scores[j] + shift[key_clusters[j]])
            signs.append(-1.0)
            vectors.append(values[j])
    largest = max(logits)
    weights = np.array(signs) * np.exp(np.array(logits) - largest)
    return weights @ np.array(vectors) / weights.sum(), float(largest + np.log(weights.sum()))


def refined_clustered(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    query_clusters: Array,
    key_clusters: Array,
    top: Array,
    band: int,
    scale: float,
    exact_below: int = 0,
    second_order: bool = True,
) -> tuple[Array, Array]:
    """Output (B, H, N, D) and log mass (B, H, N). Rows with fewer than ``exact_below`` valid tokens are exact."""
    out, log_mass = full_attention(q, k, v, mask, scale)
    for batch, head in cells(q):
        valid = valid_positions(mask, batch, q.shape[2])
        if len(valid) < exact_below:
            continue
        keys, values = (x[batch, key_head(head, q.shape[1], x.shape[1]), valid] for x in (k, v))
        queries, clusters = scale * q[batch, head, valid], query_clusters[batch, head, valid]
        for rank, c in enumerate(clusters):
            centroid = queries[clusters == c].mean(axis=0)
            near = np.abs(np.arange(len(valid)) - rank) <= band if band else np.zeros(len(valid), dtype=bool)
            out[batch, head, valid[rank]], log_mass[batch, head, valid[rank]] = attend(
                queries[rank],
                centroid,
                keys @ centroid,
                keys,
                values,
                key_clusters[batch, head, valid],
                np.isin(valid, top[batch, head, c]),
                near,
                second_order,
            )
    return out, log_mass
