"""refined_clustered: optimal decisions, right values given the decisions, exact limits and corner values."""

from typing import Any

import numpy as np
import operator_backend
import oracle
import oracle_refined
import pytest
import torch
from operator_cases import DTYPES, numpy, spread
from refined_cases import NAMES, Refined, check, check_decisions, oracle_given, refined
from tolerance import assert_close, assert_same_bits

import cuda_ops

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.instruction_path]

PRIMES: list[dict[str, Any]] = [
    {"B": 6, "N": 19},
    {"B": 3, "H": 2, "N": 61, "D": 13, "C": 7, "K": 17, "iterations": 5, "M": 5, "W": 4, "S": 11},
    {"B": 2, "H": 6, "H_kv": 2, "N": 31, "D": 5, "C": 3, "K": 11, "M": 7, "W": 0},
    {"B": 2, "H": 4, "H_kv": 1, "N": 53, "D": 23, "C": 11, "K": 2, "M": 3, "W": 4, "S": 1},
    {"B": 6, "N": 37, "D": 64, "C": 5, "K": 16, "M": 3, "W": 1, "exact_below": 27},
    # more clusters than a word of marks has bits, more cells than two registers have lanes, bands of more than one vector
    {"B": 2, "H": 1, "N": 131, "D": 16, "C": 37, "K": 13, "M": 41, "W": 11},
    {"B": 1, "H": 1, "N": 127, "D": 32, "C": 13, "K": 31, "M": 11, "W": 4, "iterations": 3, "S": 67, "mask": "holes"},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", PRIMES, ids=str)
def test_against_the_oracle(case: dict[str, Any], dtype: torch.dtype) -> None:
    check(refined(dtype, **case))


@pytest.mark.parametrize("W", [0, 4])
@pytest.mark.parametrize("mask", [None, "left", "right", "holes", "one", "none"])
def test_masks(mask: str | None, W: int) -> None:
    inputs = refined(N=23, mask=mask, W=W)
    out, log_mass, queries, keys, top = check(inputs)
    if inputs.mask is not None:
        padded = ~inputs.mask[:, None].expand(2, 3, 23)
        assert not out[padded].any() and (log_mass[padded] == -torch.inf).all()
        assert (queries[padded] == -1).all() and (keys[padded] == -1).all()
    if mask == "none":
        assert (top == -1).all()


@pytest.mark.parametrize("N", [1, 2, 3, 7, 8, 9, 15, 16, 17, 33])
def test_numbers_of_tokens(N: int) -> None:
    check(refined(B=1, H=2, N=N, D=17, K=7, mask=None))


@pytest.mark.parametrize("D", [1, 2, 16, 31, 65, 256])
def test_head_sizes(D: int) -> None:
    check(refined(B=1, N=29, D=D, C=3, K=5, mask="holes"))


@pytest.mark.parametrize(
    "budget",
    [
        *({"K": 0}, {"K": 1}, {"K": 1000}, {"C": 1}, {"C": 31}, {"M": 1}, {"M": 31}, {"W": 1}, {"W": 1000}, {"S": 1}),
        *({"iterations": 0}, {"iterations": 7}, {"K": 0, "M": 1, "C": 1, "W": 0}, {"C": 31, "M": 31, "K": 0, "W": 0}),
    ],
    ids=str,
)
def test_corner_budgets(budget: dict[str, int]) -> None:
    inputs = refined(B=6, **budget)
    *_, top = check(inputs)
    assert top.shape == (6, 3, inputs.clusters, min(inputs.topk, 13))


@pytest.mark.parametrize(("B", "H", "N"), [(0, 3, 5), (2, 3, 0)])
def test_empty(B: int, H: int, N: int) -> None:
    out, log_mass, queries, keys, top = refined(B=B, H=H, N=N, mask=None).run()
    assert out.shape == (B, H, N, 7) and top.shape == (B, H, 5, min(3, N))
    assert log_mass.shape == queries.shape == keys.shape == (B, H, N)


def test_defaults() -> None:
    inputs = refined(B=1, H=1, N=89, D=11, mask=None)
    spelled_out = inputs.changed(clusters=25, topk=96, key_clusters=32, band=4, rounds=3, sample=256, scale=11**-0.5)
    for name, one, other in zip(
        NAMES, cuda_ops.refined_clustered(inputs.q, inputs.k, inputs.v), spelled_out.run(), strict=True
    ):
        assert_same_bits(name, one, other)


# What makes it attention.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("W", [0, 4])
@pytest.mark.parametrize(
    "limit", [{"K": 23}, {"K": 61}, {"C": 23}, {"C": 31, "S": 1}, {"M": 23}, {"M": 31, "S": 1}], ids=str
)
def test_exact_in_three_limits(dtype: torch.dtype, W: int, limit: dict[str, int]) -> None:
    """K, C or M of at least the number of tokens, also where the rounds see fewer tokens than there are."""
    inputs = refined(dtype, B=6, N=23, W=W, **limit)
    expected, log_mass = oracle.full_attention(*inputs.numpy(), inputs.scale)
    out, mass, *_ = inputs.run()
    assert_close("out", out, expected)
    assert_close("log mass", mass, log_mass, scale=max(1.0, np.abs(log_mass[np.isfinite(log_mass)]).max()))


def test_a_cluster_for_every_query_of_a_sampled_sequence() -> None:
    """N = 61 tokens, C = 61 and rounds on a sample: each query keeps its own start, so the limit holds."""
    inputs = refined(B=1, H=2, N=61, D=5, C=61, K=2, S=7, mask=None)
    out, _, queries, *_ = inputs.run()
    assert all(len(row.unique()) == 61 for row in queries[0])
    assert_close("out", out, oracle.full_attention(*inputs.numpy(), inputs.scale)[0])


@pytest.mark.parametrize("W", [12, 1000])
def test_a_band_as_wide_as_the_sequence_is_exact_attention(W: int) -> None:
    inputs = refined(B=6, W=W)
    assert_close("out", inputs.run()[0], oracle.full_attention(*inputs.numpy(), inputs.scale)[0])


@pytest.mark.parametrize("seed", range(20))
def test_without_band_and_second_order_the_mass_is_never_larger(seed: int) -> None:
    """By Jensen, with any decisions; of the oracle, since the operator has the second-order term."""
    inputs = refined(torch.float64, seed, B=2, N=29, W=0).changed(scale=1.0 + seed)
    expected = oracle.full_attention(*inputs.numpy(), inputs.scale)[1]
    _, log_mass = oracle_given(inputs, inputs.run(), second_order=False)
    finite = np.isfinite(expected)
    assert (log_mass[finite] <= expected[finite] + 1e-12 * np.abs(expected[finite])).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("W", [0, 4])
def test_weights_sum_to_one(dtype: torch.dtype, W: int) -> None:
    inputs = refined(dtype, B=6, N=19, W=W)
    inputs = inputs.changed(v=torch.ones_like(inputs.v))
    assert inputs.mask is not None
    assert_close("rows", inputs.run()[0], inputs.mask[:, None, :, None].expand(inputs.q.shape).double())


def with_scores_to(inputs: Refined, largest: float) -> Refined:
    q, k, *_ = inputs.numpy()
    scores = np.abs(np.einsum("bhid,bhjd->bhij", q, k)).max()
    return inputs.changed(scale=largest / float(scores))


@pytest.mark.parametrize("W", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_large_scores(dtype: torch.dtype, W: int, seed: int) -> None:
    """Scores to +-200: within 8 units of max |score| max |v|, and inside the hull of the values."""
    inputs = with_scores_to(refined(dtype, seed, B=2, N=43, D=9, C=5, K=4, M=5, W=W), 200.0)
    results = inputs.run()
    out, (expected, _) = numpy(results[0]), oracle_given(inputs, results)
    v = numpy(inputs.v)
    bound = 8 * 2**-23 * 200 * np.abs(v).max()
    if dtype == torch.bfloat16:  # the output is rounded; on tensor cores so are the weights and the cells' values
        bound += (2**-7 if operator_backend.wanted() else 2**-8) * np.abs(v).max()
    assert np.abs(out - expected).max() <= bound
    for b in range(2):
        valid = inputs.mask[b].nonzero().flatten().numpy()
        low, high = v[b][:, valid].min(axis=1), v[b][:, valid].max(axis=1)
        slack = bound if dtype == torch.bfloat16 else 6e-6 * np.abs(v).max()
        assert (out[b][:, valid] >= low[:, None] - slack).all() and (out[b][:, valid] <= high[:, None] + slack).all()


def test_a_cell_of_a_cluster_is_relative_to_its_own_maximum() -> None:
    """Scores far below the cluster's largest: an offset per cluster would lose the cell's mean."""
    scores = torch.tensor([[0.0, -300.0, -301.0]]).view(1, 1, 1, 3)
    k = torch.tensor([[1.0], [2.0], [3.0]]).view(1, 1, 3, 1)
    log_mass, spread, keys, values = cuda_ops.tail(
        scores, k, k, torch.tensor([0, 1, 1]).int().view(1, 1, 3), torch.empty(1, 1, 1, 0).int(), 3
    )
    share = 1 / (1 + np.exp(-1.0))
    assert_close("log mass", log_mass[0, 0, 0], np.array([0.0, -300 + np.log1p(np.exp(-1.0)), -np.inf]))
    assert_close("keys", keys[0, 0, 0, :, 0], np.array([1.0, 2 * share + 3 * (1 - share), 0.0]))
    assert_close("values", values, numpy(keys))
    assert_close("spread", spread[0, 0, 0], np.array([0.0, share * (1 - share), 0.0]))


# Decisions.


def test_clusters_by_hand() -> None:
    """Starts 0 and 4; the sample of 8 tokens has the means 1 and 11; then 6 is a tie, which goes to the lowest."""
    x = torch.tensor([0.0, 1.0, 2.0, 1.0, 10.0, 11.0, 12.0, 11.0]).view(1, 1, 8, 1)
    assert cuda_ops.cluster_rows(x, None, 2, 3, 8).flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    tie = torch.tensor([0.0, 2.0, 1.0]).view(1, 1, 3, 1)
    assert cuda_ops.cluster_rows(tie[:, :, [0, 2, 1]], None, 3, 0, 8).flatten().tolist() == [0, 1, 2]
    middle = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 4, 1)
    assert cuda_ops.cluster_rows(middle, None, 2, 0, 8).flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("C", "rounds", "S"), [(1, 3, 1), (5, 0, 9), (5, 3, 1), (5, 3, 1000), (101, 2, 3)])
def test_clusters_are_nearest(C: int, rounds: int, S: int, dtype: torch.dtype) -> None:
    check_nearest(refined(dtype, B=6, N=67, D=3), C, rounds, S)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("N", "D", "C", "rounds", "S"),
    [(307, 64, 67, 2, 293), (521, 4, 130, 2, 1), (1103, 3, 5, 2, 1031), (1103, 4, 1031, 1, 1)],
)
def test_clusters_are_nearest_in_long_samples(N: int, D: int, C: int, rounds: int, S: int, dtype: torch.dtype) -> None:
    """More tokens and centroids than a GPU takes at a time."""
    check_nearest(refined(dtype, B=2, H=1, H_kv=1, N=N, D=D), C, rounds, S)


def check_nearest(inputs: Refined, C: int, rounds: int, S: int) -> None:
    assignment = cuda_ops.cluster_rows(inputs.q, inputs.mask, C, rounds, S)
    accumulated = torch.float64 if inputs.q.dtype == torch.float64 else torch.float32
    slack = 32 * torch.finfo(accumulated).eps * max(1, inputs.q.shape[-1] / 8)
    oracle_refined.check_clusters(assignment.numpy(), numpy(inputs.q), numpy(inputs.mask), C, rounds, S, slack)


def test_a_token_that_is_no_number_is_in_the_first_cluster() -> None:
    x = torch.randn(1, 1, 9, 3)
    x[0, 0, 4] = float("nan")
    assignment = cuda_ops.cluster_rows(x, None, 3, 0, 9)
    assert assignment[0, 0, 4] == 0 and assignment.min() >= 0 and assignment.max() < 3


def test_key_clusters_are_equal_for_the_heads_of_a_group() -> None:
    inputs = refined(H=6, H_kv=2, N=31)
    keys = inputs.run()[3]
    for head in range(6):
        assert torch.equal(keys[:, head], keys[:, head // 3 * 3])
    repeated = inputs.changed(k=inputs.k.repeat_interleave(3, 1), v=inputs.v.repeat_interleave(3, 1))
    for name, one, other in zip(NAMES, inputs.run(), repeated.run(), strict=True):
        assert_close(name, one.float(), other.double())


# Padding, short rows, bad values, the stages.


def test_padding_reaches_nothing() -> None:
    inputs = refined(B=6, N=31, H=4, H_kv=2, W=4)
    grad = torch.randn(inputs.q.shape)
    results = []
    for garbage in (0.0, float("nan"), float("inf")):
        outside = ~inputs.mask[:, None, :, None]
        leaves = [x.masked_fill(outside, garbage).requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
        out = inputs.changed(q=leaves[0], k=leaves[1], v=leaves[2]).run()
        results.append([*out, *torch.autograd.grad(out[0], leaves, grad.masked_fill(outside, garbage))])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_same_bits("result", two.detach(), one.detach())


@pytest.mark.parametrize("W", [0, 4])
def test_the_band_counts_valid_tokens(W: int) -> None:
    alone = refined(torch.float64, B=1, N=23, mask=None, W=W)
    mask = torch.zeros(41, dtype=torch.bool)
    mask[torch.randperm(41)[:23]] = True
    q, k, v = (spread(x, mask) for x in (alone.q, alone.k, alone.v))
    padded = alone.changed(q=q, k=k, v=v, mask=mask[None]).run()
    for name, one, other in zip(NAMES[:4], alone.run(), padded, strict=False):
        assert_close(name, other[:, :, mask].double(), one.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exact_below", [1, 9, 14])
def test_rows_with_few_valid_tokens_are_exact(dtype: torch.dtype, exact_below: int) -> None:
    inputs = refined(dtype, B=6, exact_below=exact_below)
    assert inputs.short().any()
    check(inputs)


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_values_stay_in_their_head(name: str, bad: float) -> None:
    inputs = refined(B=2, H=3, N=29, mask=None, W=2)
    x = getattr(inputs, name).clone()
    x[1, 2, 5, 3] = bad
    good, results = inputs.run(), inputs.changed(**{name: x}).run()
    others = torch.ones(2, 3, dtype=torch.bool)
    others[1, 2] = False
    for label, one, other in zip(NAMES, results, good, strict=True):
        assert_same_bits(label, one[others], other[others])
    queries, keys, top = (x[1, 2] for x in results[2:])
    assert (queries >= 0).all() and (queries < 5).all() and (keys >= 0).all() and (keys < 4).all()
    assert (top >= 0).all() and all(len(row.unique()) == 3 for row in top)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_to_its_stages(dtype: torch.dtype) -> None:
    inputs = refined(dtype, B=6, H=4, H_kv=2, N=31)
    q, k, v, mask, scale = inputs.q, inputs.k, inputs.v, inputs.mask, inputs.scale
    queries = cuda_ops.cluster_rows(q, mask, inputs.clusters, inputs.rounds, inputs.sample)
    keys = cuda_ops.cluster_rows(k, mask, inputs.key_clusters, inputs.rounds, inputs.sample).repeat_interleave(2, 1)
    centroids = cuda_ops.group_mean(q, queries, inputs.clusters, scale)
    scores = cuda_ops.centroid_scores(centroids, k, mask)
    top = cuda_ops.top_keys(scores, mask, inputs.topk)
    tail = cuda_ops.tail(scores, k, v, keys, top, inputs.key_clusters)
    out, log_mass = cuda_ops.refined_attention(
        q, k, v, mask, centroids, scores, *tail, queries, keys, top, inputs.band, scale
    )
    results = inputs.run()
    for name, one, other in zip(NAMES[2:], (queries, keys, top), results[2:], strict=True):
        assert_same_bits(name, one, other)
    assert_close("out", results[0], numpy(out))
    assert_close("log mass", results[1], numpy(log_mass))


def test_autocast_changes_nothing() -> None:
    inputs = refined(B=2, N=31, H=4, H_kv=2)
    expected = inputs.run()
    with torch.autocast("cpu", torch.bfloat16):
        results = inputs.run()
    for name, one, other in zip(NAMES, results, expected, strict=True):
        assert_same_bits(name, one, other)


def test_strides_do_not_matter() -> None:
    inputs = refined(B=6, H=4, H_kv=2, N=29, exact_below=12)
    expected = inputs.run()
    strided = inputs.changed(
        q=inputs.q.transpose(1, 2).contiguous().transpose(1, 2),
        k=inputs.k.flip(2).contiguous().flip(2),
        v=inputs.v.transpose(2, 3).contiguous().transpose(2, 3),
    )
    results = strided.run()
    check_decisions(strided, results)
    for name, one, other in zip(NAMES, results, expected, strict=True):
        assert_close(name, one.float(), other.double())
