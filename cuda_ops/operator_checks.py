"""The checks of each operator, by its name, with its schema's arguments."""

from collections.abc import Sequence

from torch import Tensor

from cuda_ops import checks


def hash_vectors(x: Tensor, planes: Tensor, mask: Tensor | None) -> None:
    checks.vectors("x", x)
    checks.hash_planes(planes, "x", x)
    checks.token_mask(mask, "x", x)


def cluster_codes(codes: Tensor, mask: Tensor | None, bits: int, clusters: int, iterations: int) -> None:
    checks.codes(codes, bits)
    checks.token_mask(mask, "codes", codes)
    checks.cluster_count(clusters)
    checks.rounds(iterations)


def group_mean(x: Tensor, assignment: Tensor, clusters: int, scale: float) -> None:
    checks.vectors("x", x)
    checks.groups(assignment, x.shape[0], x.shape[1], x.shape[2], "x", x)
    checks.cluster_count(clusters)
    checks.positive(scale)


def centroid_scores(centroids: Tensor, k: Tensor, mask: Tensor | None) -> None:
    checks.vectors("k", k)
    checks.accumulated("centroids", centroids, 4, "(B, H, C, D)")
    checks.cluster_axis("centroids", centroids)
    checks.same_accumulation("centroids", centroids, "k", k)
    checks.head_groups("centroids", centroids.shape[1], "k", k.shape[1])
    checks.same_batch_and_size("centroids", centroids, "k", k)
    checks.token_mask(mask, "k", k)


def top_keys(scores: Tensor, mask: Tensor | None, topk: int) -> None:
    checks.accumulated("scores", scores, 4, "(B, H, C, N)")
    checks.token_mask(mask, "scores", scores, tokens_axis=3)
    checks.key_count(topk)


def centroid_attention(scores: Tensor, v: Tensor, mask: Tensor | None, top_keys: Tensor) -> None:
    checks.vectors("v", v)
    checks.accumulated("scores", scores, 4, "(B, H, C, N)")
    checks.cluster_axis("scores", scores)
    checks.same_accumulation("scores", scores, "v", v)
    checks.head_groups("scores", scores.shape[1], "v", v.shape[1])
    checks.scores_of("scores", scores, "v", v)
    checks.token_mask(mask, "v", v)
    checks.key_lists(top_keys, scores.shape[0], scores.shape[1], scores.shape[2], "scores", scores)


def exact_attention(
    q: Tensor, k: Tensor, v: Tensor, assignment: Tensor, top_keys: Tensor, top_mass: Tensor, scale: float
) -> None:
    checks.attention_inputs(q, k, v, None)
    checks.groups(assignment, q.shape[0], q.shape[1], q.shape[2], "q", q)
    checks.accumulated("top_mass", top_mass, 3, "(B, H, C)")
    checks.cluster_axis("top_mass", top_mass)
    checks.same_accumulation("top_mass", top_mass, "q", q)
    checks.same_batch_and_heads("top_mass", top_mass, "q", q)
    checks.key_lists(top_keys, q.shape[0], q.shape[1], top_mass.shape[2], "top_mass", top_mass)
    checks.positive(scale)


def group_scatter(values: Tensor, assignment: Tensor) -> None:
    checks.vectors("values", values)
    checks.accumulated("values", values, 4, "(B, H, C, D)")
    checks.cluster_axis("values", values)
    checks.groups(assignment, values.shape[0], values.shape[1], None, "values", values)


def cluster_rows(x: Tensor, mask: Tensor | None, clusters: int, rounds: int, sample: int) -> None:
    checks.vectors("x", x)
    checks.token_mask(mask, "x", x)
    checks.cluster_count(clusters)
    checks.updates(rounds)
    checks.sample_size(sample)


def tail(scores: Tensor, k: Tensor, v: Tensor, key_clusters: Tensor, top_keys: Tensor, key_clusters_count: int) -> None:
    checks.vectors("k", k)
    checks.same_as("v", v, "k", k)
    checks.accumulated("scores", scores, 4, "(B, H, C, N)")
    checks.cluster_axis("scores", scores)
    checks.same_accumulation("scores", scores, "k", k)
    checks.head_groups("scores", scores.shape[1], "k", k.shape[1])
    checks.scores_of("scores", scores, "k", k)
    batch, heads, clusters, tokens = scores.shape
    checks.groups(key_clusters, batch, heads, tokens, "scores", scores, "key_clusters")
    checks.key_lists(top_keys, batch, heads, clusters, "scores", scores)
    checks.key_cluster_count("key_clusters_count", key_clusters_count)


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
) -> None:
    checks.attention_inputs(q, k, v, mask)
    batch, heads, tokens, size = q.shape
    checks.accumulated("centroids", centroids, 4, "(B, H, C, D)")
    checks.cluster_axis("centroids", centroids)
    checks.same_accumulation("centroids", centroids, "q", q)
    clusters = centroids.shape[2]
    checks.cells("centroids", centroids, (batch, heads, clusters, size), "(B, H, C, D)", "centroids", centroids)
    checks.cells("scores", scores, (batch, heads, clusters, tokens), "(B, H, C, N)", "centroids", centroids)
    checks.accumulated("tail_keys", tail_keys, 5, "(B, H, C, M, D)")
    count = tail_keys.shape[3]
    checks.key_cluster_count("the number of tail_keys", count)
    for name, x in (("tail_log_mass", tail_log_mass), ("tail_spread", tail_spread)):
        checks.cells(name, x, (batch, heads, clusters, count), "(B, H, C, M)", "centroids", centroids)
    for name, x in (("tail_keys", tail_keys), ("tail_values", tail_values)):
        checks.cells(name, x, (batch, heads, clusters, count, size), "(B, H, C, M, D)", "centroids", centroids)
    for name, x in (("query_clusters", query_clusters), ("key_clusters", key_clusters)):
        checks.groups(x, batch, heads, tokens, "q", q, name)
    checks.key_lists(top_keys, batch, heads, clusters, "centroids", centroids)
    checks.band_width(band)
    checks.positive(scale)


def full_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> None:
    checks.attention_inputs(q, k, v, mask)
    checks.positive(scale)


def clustered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    planes: Tensor,
    clusters: int,
    iterations: int,
    scale: float,
    exact_below: int,
) -> None:
    checks.attention_inputs(q, k, v, mask)
    checks.hash_planes(planes, "q", q)
    checks.cluster_count(clusters)
    checks.rounds(iterations)
    checks.positive(scale)
    checks.exact_limit(exact_below)


def improved_clustered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    planes: Tensor,
    clusters: int,
    topk: int,
    iterations: int,
    scale: float,
    exact_below: int,
) -> None:
    clustered(q, k, v, mask, planes, clusters, iterations, scale, exact_below)
    checks.key_count(topk)


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
) -> None:
    checks.attention_inputs(q, k, v, mask)
    checks.cluster_count(clusters)
    checks.key_count(topk)
    checks.key_cluster_count("key_clusters", key_clusters)
    checks.band_width(band)
    checks.updates(rounds)
    checks.sample_size(sample)
    checks.positive(scale)
    checks.exact_limit(exact_below)
    checks.longer_steps(longer)


def gradient(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    """For the backward operators, which autograd calls with what the forward saved."""
    checks.attention_inputs(q, k, v, mask)
    checks.same_as("grad", grad, "q", q)
