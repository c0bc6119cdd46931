"""Good arguments of every operator, and what each check says about arguments that are not."""

from typing import Any

import torch
from operator_cases import Case

INPUTS = Case(B=2, H=4, H_kv=2, N=11, D=5, C=3, K=2, P=67).inputs()
Q, K, V, MASK, PLANES = INPUTS.q, INPUTS.k, INPUTS.v, INPUTS.mask, INPUTS.planes
CODES = torch.zeros(2, 4, 11, 2, dtype=torch.int64)
ASSIGNMENT = torch.zeros(2, 4, 11, dtype=torch.int32)
CENTROIDS, SCORES, MASS = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 11), torch.rand(2, 4, 3)
TOP = torch.zeros(2, 4, 3, 2, dtype=torch.int32)

GOOD: dict[str, dict[str, Any]] = {
    "hash_vectors": {"x": Q, "planes": PLANES, "mask": MASK},
    "cluster_codes": {"codes": CODES, "mask": MASK, "bits": 67, "clusters": 3, "iterations": 2},
    "group_mean": {"x": Q, "assignment": ASSIGNMENT, "clusters": 3, "scale": 0.5},
    "centroid_scores": {"centroids": CENTROIDS, "k": K, "mask": MASK},
    "top_keys": {"scores": SCORES, "mask": MASK, "topk": 2},
    "centroid_attention": {"scores": SCORES, "v": V, "mask": MASK, "top_keys": TOP},
    "exact_attention": {
        "q": Q,
        "k": K,
        "v": V,
        "assignment": ASSIGNMENT,
        "top_keys": TOP,
        "top_mass": MASS,
        "scale": 0.5,
    },
    "group_scatter": {"values": CENTROIDS, "assignment": ASSIGNMENT},
    "full_attention": {"q": Q, "k": K, "v": V, "mask": MASK, "scale": 0.5},
    "clustered": {
        "q": Q,
        "k": K,
        "v": V,
        "mask": MASK,
        "planes": PLANES,
        "clusters": 3,
        "iterations": 2,
        "scale": 0.5,
        "exact_below": 0,
    },
}
GOOD["improved_clustered"] = GOOD["clustered"] | {"topk": 2}
GOOD["refined_clustered"] = {name: GOOD["clustered"][name] for name in ("q", "k", "v", "mask", "clusters", "scale")} | {
    "topk": 2,
    "key_clusters": 4,
    "band": 1,
    "rounds": 2,
    "sample": 7,
    "exact_below": 0,
    "longer": [9, 5, 3, 2, 7],
}
GOOD["cluster_rows"] = {"x": Q, "mask": MASK, "clusters": 3, "rounds": 2, "sample": 7}
GOOD["tail"] = {
    "scores": SCORES,
    "k": K,
    "v": V,
    "key_clusters": ASSIGNMENT,
    "top_keys": TOP,
    "key_clusters_count": 4,
}
GOOD["refined_attention"] = {
    "q": Q,
    "k": K,
    "v": V,
    "mask": MASK,
    "centroids": CENTROIDS,
    "scores": SCORES,
    "tail_log_mass": torch.zeros(2, 4, 3, 4),
    "tail_spread": torch.zeros(2, 4, 3, 4),
    "tail_keys": torch.zeros(2, 4, 3, 4, 5),
    "tail_values": torch.zeros(2, 4, 3, 4, 5),
    "query_clusters": ASSIGNMENT,
    "key_clusters": ASSIGNMENT,
    "top_keys": TOP,
    "band": 1,
    "scale": 0.5,
}

FLOATING = "float32, float64, bfloat16 or float16"
ONE_DTYPE = (
    r"q, k and v must have one dtype, got torch.float32, torch.float64 and torch.float32. Convert them to the same."
)
PAIRS = "Pass the padding mask of the tokens; masks of token pairs are not supported."
NOT_BOOL = (
    "mask must be a bool tensor (B, N), true where a token is valid, got {}. Convert it, for example with mask.bool()."
)


def vectors(name: str, operators: str) -> list[tuple[str, dict[str, Any], type[Exception], str]]:
    """What holds of a tensor (B, H, N, D) of queries, keys or values."""
    return [
        (
            operators,
            {name: [1.0]},
            TypeError,
            f"{name} must be a tensor (B, H, N, D), got list. Convert it, for example with torch.as_tensor.",
        ),
        (
            operators,
            {name: torch.zeros(2, 11, 5)},
            ValueError,
            f"{name} must have 4 axes (B, H, N, D), got shape (2, 11, 5). Reshape it.",
        ),
        (
            operators,
            {name: torch.zeros(2, 4, 11, 5).int()},
            TypeError,
            f"{name} must be {FLOATING}, got torch.int32. Convert it with .to(torch.float32).",
        ),
        (
            operators,
            {name: torch.zeros(2, 4, 11, 257)},
            ValueError,
            f"{name} must have a head size D from 1 to 256, got shape (2, 4, 11, 257). Split its heads",
        ),
        (
            operators,
            {name: torch.zeros(2, 4, 11, 0)},
            ValueError,
            f"{name} must have a head size D from 1 to 256, got shape (2, 4, 11, 0).",
        ),
        (
            operators,
            {name: torch.zeros(2, 0, 11, 5)},
            ValueError,
            f"{name} must have at least one head, got shape (2, 0, 11, 5).",
        ),
    ]


HASHED = "clustered improved_clustered"
FUSED = f"{HASHED} refined_clustered"
ATTENTION = f"{FUSED} full_attention"
SAME_SHAPE = f"{ATTENTION} exact_attention refined_attention"
WITH_MASK = (
    f"{ATTENTION} refined_attention cluster_rows hash_vectors cluster_codes centroid_scores top_keys centroid_attention"
)
SCALED = f"{SAME_SHAPE} group_mean"

ERRORS = [
    *vectors("q", SAME_SHAPE),
    *vectors("x", "hash_vectors group_mean cluster_rows"),
    *vectors("k", "centroid_scores"),
    *vectors("v", "centroid_attention"),
    (SAME_SHAPE, {"k": K.double()}, TypeError, ONE_DTYPE),
    (
        SAME_SHAPE,
        {"k": torch.zeros(2, 3, 11, 5)},
        ValueError,
        "k must have a number of heads that divides the 4 heads of q, got 3. Each head of k serves equally",
    ),
    (
        SAME_SHAPE,
        {"k": torch.zeros(2, 2, 12, 5)},
        ValueError,
        "k must have shape (B, H_kv, N, D), with B, N and D of q, = (2, 2, 11, 5), got (2, 2, 12, 5). Only self",
    ),
    (
        SAME_SHAPE,
        {"v": torch.zeros(2, 2, 11, 6)},
        ValueError,
        "v must have shape (B, H_kv, N, D) of k = (2, 2, 11, 5), got (2, 2, 11, 6). Only self",
    ),
    (WITH_MASK, {"mask": torch.ones(2, 11)}, TypeError, NOT_BOOL.format("torch.float32")),
    (WITH_MASK, {"mask": True}, TypeError, NOT_BOOL.format("bool")),
    (
        WITH_MASK,
        {"mask": torch.ones(2, 12).bool()},
        ValueError,
        f"mask must have shape (B, N) = (2, 11), got (2, 12). {PAIRS}",
    ),
    (
        WITH_MASK,
        {"mask": torch.ones(2, 1, 11, 11).bool()},
        ValueError,
        f"mask must have shape (B, N) = (2, 11), got (2, 1, 11, 11). {PAIRS}",
    ),
    (WITH_MASK, {"mask": torch.ones(2, 11, device="meta").bool()}, ValueError, "mask must be on the device of "),
    (
        ATTENTION,
        {"k": K.to("meta")},
        ValueError,
        "k must be on the device of q, cpu, got meta. Move it with .to(q.device).",
    ),
    (
        HASHED,
        {"planes": PLANES.half()},
        TypeError,
        "planes must be float32 whatever the type of q, got torch.float16. Keep them in float32.",
    ),
    (
        "hash_vectors",
        {"planes": PLANES.half()},
        TypeError,
        "planes must be float32 whatever the type of x, got torch.float16.",
    ),
    (
        HASHED,
        {"planes": torch.zeros(257, 5)},
        ValueError,
        "planes must have shape (P, D) with P from 1 to 256 and D = 5, got (257, 5). Draw one normal vector",
    ),
    (HASHED, {"planes": torch.zeros(0, 5)}, ValueError, "with P from 1 to 256 and D = 5, got (0, 5)."),
    (HASHED, {"planes": torch.zeros(63, 6)}, ValueError, "with P from 1 to 256 and D = 5, got (63, 6)."),
    (HASHED, {"planes": torch.zeros(63)}, ValueError, "planes must have 2 axes (P, D), got shape (63,)."),
    (
        f"{FUSED} cluster_codes cluster_rows group_mean",
        {"clusters": 0},
        ValueError,
        "clusters must be from 1 to 65536, got 0. More clusters than tokens are allowed, none are not.",
    ),
    (
        f"{FUSED} cluster_codes cluster_rows group_mean",
        {"clusters": 65537},
        ValueError,
        "clusters must be from 1 to 65536, got 65537.",
    ),
    (
        f"{FUSED} cluster_codes cluster_rows group_mean",
        {"clusters": 2.0},
        TypeError,
        "clusters must be an int, got float. Pass a Python int.",
    ),
    (
        "improved_clustered refined_clustered top_keys",
        {"topk": -1},
        ValueError,
        "topk must be at least 0, got -1. Use 0 for no exact keys.",
    ),
    (
        f"{HASHED} cluster_codes",
        {"iterations": -1},
        ValueError,
        "iterations must be at least 0, got -1. Use 0 to assign the tokens to the starting centroids.",
    ),
    (
        FUSED,
        {"exact_below": -1},
        ValueError,
        "exact_below must be at least 0, got -1. Use 0 to cluster rows of any length.",
    ),
    (FUSED, {"exact_below": True}, TypeError, "exact_below must be an int, got bool."),
    (SCALED, {"scale": 0.0}, ValueError, "scale must be finite and greater than 0, got 0.0. D ** -0.5 is usual."),
    (SCALED, {"scale": -1.0}, ValueError, "scale must be finite and greater than 0, got -1.0."),
    (SCALED, {"scale": float("inf")}, ValueError, "scale must be finite and greater than 0, got inf."),
    (SCALED, {"scale": float("nan")}, ValueError, "scale must be finite and greater than 0, got nan."),
    (
        SCALED,
        {"scale": "0.5"},
        TypeError,
        "scale must be a float, got str. Pass a Python float, or None for D ** -0.5.",
    ),
    (
        "cluster_codes",
        {"codes": CODES.int()},
        TypeError,
        "codes must be int64, got torch.int32. Make them with hash_vectors.",
    ),
    (
        "cluster_codes",
        {"bits": 64},
        ValueError,
        "codes must have ceil(bits / 64) = 1 words for 64 bits, got shape (2, 4, 11, 2). Pass the bits that made them.",
    ),
    (
        "cluster_codes",
        {"bits": 0},
        ValueError,
        "bits must be from 1 to 256, got 0. Pass the number of planes that made the codes.",
    ),
    (
        "group_mean group_scatter exact_attention",
        {"assignment": ASSIGNMENT.long()},
        TypeError,
        "assignment must be int32, got torch.int64. Convert it with .int().",
    ),
    (
        "group_mean exact_attention",
        {"assignment": ASSIGNMENT[..., 1:]},
        ValueError,
        "assignment must have shape (B, H, N) of ",
    ),
    (
        "group_scatter",
        {"assignment": ASSIGNMENT[:, 1:]},
        ValueError,
        "assignment must have shape (B, H, N) of values = (2, 4, 11), got (2, 3, 11).",
    ),
    (
        "centroid_scores",
        {"centroids": CENTROIDS.half()},
        TypeError,
        "centroids must be float32 or float64, the type the stages accumulate in, got torch.float16.",
    ),
    (
        "centroid_scores",
        {"centroids": CENTROIDS.double()},
        TypeError,
        "centroids must be torch.float32 where k is torch.float32, got torch.float64.",
    ),
    (
        "centroid_scores",
        {"centroids": torch.zeros(2, 4, 3, 6)},
        ValueError,
        "centroids must have shape (B, H, C, D), with B and D of k, = (2, 4, 3, 5)",
    ),
    (
        "centroid_scores",
        {"centroids": torch.zeros(2, 3, 3, 5)},
        ValueError,
        "k must have a number of heads that divides the 3 heads of centroids, got 2.",
    ),
    (
        "centroid_scores",
        {"centroids": torch.zeros(2, 4, 0, 5)},
        ValueError,
        "centroids must have 1 to 65536 clusters on axis 2",
    ),
    (
        "centroid_attention",
        {"scores": torch.zeros(2, 4, 3, 12)},
        ValueError,
        "scores must have shape (B, H, C, N), with B and N of v, = (2, 4, 3, 11)",
    ),
    (
        "centroid_attention exact_attention",
        {"top_keys": TOP.long()},
        TypeError,
        "top_keys must be int32, got torch.int64. Convert it with .int().",
    ),
    (
        "centroid_attention exact_attention",
        {"top_keys": TOP[:, :, 1:]},
        ValueError,
        "top_keys must have shape (B, H, C, K), with B, H and C of ",
    ),
    (
        "exact_attention",
        {"top_mass": MASS.double()},
        TypeError,
        "top_mass must be torch.float32 where q is torch.float32, got torch.float64.",
    ),
    (
        "exact_attention",
        {"top_mass": MASS[:, 1:]},
        ValueError,
        "top_mass must have shape (B, H, C), with B and H of q, = (2, 4, 3), got (2, 3, 3).",
    ),
    (
        "refined_clustered",
        {"key_clusters": 0},
        ValueError,
        "key_clusters must be from 1 to 65536, got 0. More key clusters than tokens are allowed, none are not.",
    ),
    ("tail", {"key_clusters_count": 65537}, ValueError, "key_clusters_count must be from 1 to 65536, got 65537."),
    (
        "refined_clustered refined_attention",
        {"band": -1},
        ValueError,
        "band must be at least 0, got -1. Use 0 for no exact neighbours.",
    ),
    (
        "refined_clustered cluster_rows",
        {"rounds": -1},
        ValueError,
        "rounds must be at least 0, got -1. Use 0 to assign the tokens to the starting centroids.",
    ),
    (
        "refined_clustered cluster_rows",
        {"sample": 0},
        ValueError,
        "sample must be at least 1, got 0. A sample of at least 4 tokens per cluster is taken in any case.",
    ),
    ("refined_clustered cluster_rows", {"sample": 2.5}, TypeError, "sample must be an int, got float."),
    (
        "tail refined_attention",
        {"key_clusters": ASSIGNMENT.long()},
        TypeError,
        "key_clusters must be int32, got torch.int64. Convert it with .int().",
    ),
    (
        "refined_attention",
        {"query_clusters": ASSIGNMENT[..., 1:]},
        ValueError,
        "query_clusters must have shape (B, H, N) of q = (2, 4, 11), got (2, 4, 10).",
    ),
    (
        "tail refined_attention",
        {"top_keys": TOP[:, :, 1:]},
        ValueError,
        "top_keys must have shape (B, H, C, K), with B, H and C of ",
    ),
    (
        "tail",
        {"scores": torch.zeros(2, 4, 3, 12)},
        ValueError,
        "scores must have shape (B, H, C, N), with B and N of k, = (2, 4, 3, 11), got (2, 4, 3, 12).",
    ),
    ("tail", {"v": [1.0]}, TypeError, "v must be a tensor (B, H, N, D) of k, got list. Convert it, for example with"),
    ("tail", {"v": V.double()}, TypeError, "v must be torch.float32 as k, got torch.float64."),
    (
        "refined_attention",
        {"tail_spread": torch.zeros(2, 4, 3, 5)},
        ValueError,
        "tail_spread must have shape (B, H, C, M) = (2, 4, 3, 4), got (2, 4, 3, 5). Pass the one that was made from",
    ),
    (
        "refined_attention",
        {"tail_values": torch.zeros(2, 4, 3, 4, 5).double()},
        TypeError,
        "tail_values must be torch.float32 as centroids, got torch.float64. Make it with tail.",
    ),
    (
        "refined_attention",
        {"centroids": CENTROIDS.double()},
        TypeError,
        "centroids must be torch.float32 where q is torch.float32, got torch.float64.",
    ),
    ("group_scatter", {"values": CENTROIDS.half()}, TypeError, "values must be float32 or float64"),
    (
        "refined_clustered",
        {"longer": [9, 5, 3, 2]},
        ValueError,
        "longer must hold steps of 5 numbers (tokens, clusters, topk, key_clusters, sample), got 4.",
    ),
    (
        "refined_clustered",
        {"longer": [9, 5, 3, 2, 7, 9, 6, 4, 3, 7]},
        ValueError,
        "The steps of longer must ascend in tokens, got 9 after 9. Sort them.",
    ),
    (
        "refined_clustered",
        {"longer": [0, 5, 3, 2, 7]},
        ValueError,
        "tokens of a step of longer must be at least 1, got 0. Shorter rows take the budgets given singly.",
    ),
    ("refined_clustered", {"longer": [9, 0, 3, 2, 7]}, ValueError, "clusters must be from 1 to 65536, got 0."),
    ("refined_clustered", {"longer": [9, 5, -3, 2, 7]}, ValueError, "topk must be at least 0, got -3."),
]
