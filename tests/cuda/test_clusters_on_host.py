"""K-means of rows, centroid scores and scattered rows by the CUDA kernels, executed on the host."""

from typing import Any

import numpy as np
import oracle
import oracle_refined
import pytest
import torch
from operator_cases import make_mask, numpy
from tolerance import assert_close, assert_same_bits
from torch import Tensor

import cuda_ops

pytestmark = pytest.mark.usefixtures("compiled", "host")
HALVES = [torch.float32, torch.bfloat16, torch.float16]


def run() -> Any:
    """The operators under test, as `torch.ops` has them."""
    return torch.ops.cuda_ops_host


def rows(B: int, H: int, N: int, D: int, dtype: torch.dtype = torch.float32, mask: Tensor | None = None) -> Tensor:
    """(B, H, N, D) with the strides of a (B, N, H, D), and NaN where a token is not valid."""
    x = torch.randn(B, N, H, D).to(dtype).transpose(1, 2)
    return x if mask is None else x.masked_fill(~mask[:, None, :, None], torch.nan)


# Centroid scores.


def check_scores(centroids: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Within the bound of one chain of D fused additions."""
    scores = run().centroid_scores(centroids, k, mask)
    assert scores.dtype == torch.float32
    clean = k if mask is None else k.masked_fill(~mask[:, None, :, None], 0)
    expected = oracle.centroid_scores(numpy(centroids), numpy(clean), numpy(mask))
    largest = np.abs(numpy(clean)).max(initial=0) * np.abs(numpy(centroids)).max(initial=0)
    assert_close("scores", scores, expected, scale=k.shape[3] * largest, units=0.5 * k.shape[3] + 1)
    return scores


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_scores(order: str, dtype: torch.dtype) -> None:
    mask = make_mask("mixed", 6, 71)
    check_scores(torch.randn(6, 4, 37, 41), rows(6, 2, 71, 41, dtype, mask), mask)


@pytest.mark.parametrize(("C", "N", "D"), [(1, 1, 1), (3, 131, 7), (67, 64, 65), (33, 1, 256)])
def test_shapes_of_scores(C: int, N: int, D: int) -> None:
    check_scores(torch.randn(1, 2, C, D), rows(1, 2, N, D), None)


def test_scores_are_sums_in_the_order_of_d() -> None:
    """The same number wherever a token and a centroid lie, and what one chain of fused additions gives."""
    centroids, k = torch.randn(1, 1, 35, 7), rows(1, 1, 67, 7)
    chain = torch.zeros(35, 67, dtype=torch.float64)
    for d in range(7):
        chain = (centroids[0, 0, :, d, None].double() * k[0, 0, None, :, d].double() + chain).float().double()
    assert_same_bits("scores", run().centroid_scores(centroids, k, None)[0, 0], chain.float())


@pytest.mark.parametrize("dtype", HALVES[1:], ids=str)
@pytest.mark.parametrize("D", [7, 64, 72, 256])
def test_scores_of_16_bit_keys_are_float32_sums(dtype: torch.dtype, D: int) -> None:
    """Centroids lose nothing to the 16 bits of the keys, and equal ones tie wherever they lie in a tile."""
    centroids, k = torch.randn(1, 2, 41, D), torch.randn(1, 2, 67, D).to(dtype)
    centroids[:, :, 1:41:13] = centroids[:, :, :1]
    scores = run().centroid_scores(centroids, k, None)
    exact, terms = centroids.double() @ k.double().mT, centroids.double().abs() @ k.double().abs().mT
    assert ((scores - exact).abs() <= 4 * 2.0**-23 * terms).all()
    for c in range(1, 41, 13):
        assert_same_bits("scores", scores[:, :, c], scores[:, :, 0])
    unaligned = torch.empty(2 * 67 * D + 1, dtype=dtype)[1:].view(1, 2, 67, D).copy_(k)
    by_columns = k.mT.contiguous().mT
    for same in (unaligned, by_columns):
        assert_same_bits("scores", run().centroid_scores(centroids, same, None), scores)


@pytest.mark.parametrize("dtype", HALVES[1:], ids=str)
def test_scores_by_blocks_with_several_tiles(dtype: torch.dtype) -> None:
    """Of so many tokens a block takes two to four tiles, the last one of a head fewer; of a part of them, one."""
    centroids, k = torch.randn(1, 5, 3, 7), rows(1, 5, 13619, 7, dtype)
    together = check_scores(centroids, k, None)
    for part in (slice(0, 1000), slice(5003, 6011), slice(13001, None)):
        assert_same_bits("scores", run().centroid_scores(centroids, k[:, :, part], None), together[..., part])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_scores_of_a_token_alone(dtype: torch.dtype) -> None:
    mask = make_mask("mixed", 6, 71)
    k, centroids = rows(6, 2, 71, 19, dtype, mask), torch.randn(6, 4, 5, 19)
    together = run().centroid_scores(centroids, k, mask)
    for b in range(6):
        alone = run().centroid_scores(centroids[b : b + 1], k[b : b + 1, :, mask[b]], None)
        assert_same_bits("scores", together[b : b + 1, ..., mask[b]], alone)


def test_bad_values_spoil_their_own_scores() -> None:
    centroids, k = torch.randn(1, 2, 5, 9), rows(1, 2, 70, 9)
    good = run().centroid_scores(centroids, k, None)
    k[0, 1, 3, 8], centroids[0, 0, 2, 1] = torch.nan, torch.inf
    scores = run().centroid_scores(centroids, k, None)
    assert scores[0, 1, :, 3].isnan().all() and scores[0, 0, 2].isinf().all()
    scores[0, 1, :, 3], scores[0, 0, 2] = good[0, 1, :, 3], good[0, 0, 2]
    assert_same_bits("scores", scores, good)


@pytest.mark.parametrize(("B", "N"), [(0, 5), (2, 0)])
def test_no_scores(B: int, N: int) -> None:
    assert run().centroid_scores(torch.randn(B, 2, 3, 7), rows(B, 1, N, 7), None).shape == (B, 2, 3, N)


# Scattered rows.


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("D", [1, 5, 8, 64])
def test_scatter(dtype: torch.dtype, D: int) -> None:
    values = torch.randn(2, 3, D, 11).to(dtype).transpose(2, 3)
    assignment = torch.randint(-1, 12, (2, 3, 71), dtype=torch.int32)
    inside = (assignment >= 0) & (assignment < 11)
    expected = values.gather(2, assignment.clamp(0, 10).long()[..., None].expand(2, 3, 71, D))
    assert_same_bits("rows", run().group_scatter(values, assignment), expected.masked_fill(~inside[..., None], 0))


def test_scatter_from_memory_that_is_not_aligned(order: str) -> None:
    values = torch.randn(1 * 1 * 3 * 8 + 1)[1:].view(1, 1, 3, 8)
    assignment = torch.tensor([2, 0, 1, -1, 1], dtype=torch.int32).view(1, 1, 5)
    expected = torch.cat([values, torch.zeros(1, 1, 1, 8)], 2)[:, :, [2, 0, 1, 3, 1]]
    assert_same_bits("rows", run().group_scatter(values, assignment), expected)


def test_scatter_nothing() -> None:
    assert run().group_scatter(torch.randn(1, 2, 3, 7), torch.empty(1, 2, 0, dtype=torch.int32)).shape == (1, 2, 0, 7)


# K-means of rows.


def check_clusters(x: Tensor, mask: Tensor | None, C: int, rounds: int, sample: int) -> Tensor:
    """Every token is in a cluster that is nearest to rounding, after the same rounds in float64."""
    assignment = run().cluster_rows(x, mask, C, rounds, sample)
    assert assignment.dtype == torch.int32
    slack = 32 * torch.finfo(torch.float32).eps * max(1, x.shape[3] / 8)
    oracle_refined.check_clusters(assignment.numpy(), numpy(x), numpy(mask), C, rounds, sample, slack)
    return assignment


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_clusters_are_nearest(order: str, dtype: torch.dtype) -> None:
    mask = make_mask("mixed", 6, 71)
    check_clusters(rows(6, 1, 71, 5, dtype, mask), mask, 7, 2, 9)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("N", "D", "C", "rounds", "sample"),
    [
        (67, 3, 1, 3, 1),  # one cluster
        (67, 3, 101, 2, 3),  # more clusters than tokens
        (67, 65, 37, 0, 9),  # the starts alone
        (1, 1, 1, 1, 1),
        (1, 256, 3, 1, 7),
        (263, 33, 3, 2, 257),  # a second tile of the sample, one row long
        (1103, 2, 5, 1, 1031),  # five of them
        (521, 4, 130, 2, 1),  # a sample of 4 C tokens, clusters in five tiles
        (307, 64, 67, 2, 293),  # whole pieces of 16-bit rows, the last of four sets of centroids not full
    ],
)
def test_shapes_of_clusters(N: int, D: int, C: int, rounds: int, sample: int, dtype: torch.dtype) -> None:
    check_clusters(rows(1, 2, N, D, dtype), None, C, rounds, sample)


@pytest.mark.parametrize("dtype", HALVES[1:], ids=str)
@pytest.mark.parametrize("C", [3, 35, 115])
def test_assignment_by_blocks_with_several_tiles(C: int, dtype: torch.dtype) -> None:
    """Of so many tokens a block takes two to four tiles, with centroids of one set, of several, and of more than a block splits at once."""
    check_clusters(rows(1, 5, 13619, 7, dtype), None, C, 1, 20)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_samples_beyond_shared_memory(dtype: torch.dtype) -> None:
    check_clusters(rows(1, 1, 1103, 3, dtype), None, 5, 2, 1031)


def integers(B: int, H: int, N: int, D: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Small integers: every product and sum is exact, so ties are ties for every way of adding."""
    return torch.randint(-3, 4, (B, N, H, D)).to(dtype).transpose(1, 2)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("N", "D", "C"), [(97, 2, 11), (61, 1, 40), (31, 3, 67)])
def test_starts_of_integers_give_the_clusters_of_the_cpu(
    order: str, dtype: torch.dtype, N: int, D: int, C: int
) -> None:
    mask = make_mask("mixed", 6, N)
    x = integers(6, 1, N, D, dtype).masked_fill(~mask[:, None, :, None], torch.nan)
    assert_same_bits("clusters", run().cluster_rows(x, mask, C, 0, 1), cuda_ops.cluster_rows(x, mask, C, 0, 1))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("C", "rounds", "sample"), [(5, 1, 64), (13, 3, 1), (11, 4, 300), (70, 2, 5)])
def test_rounds_of_integers_give_the_clusters_of_the_cpu(C: int, rounds: int, sample: int, dtype: torch.dtype) -> None:
    """Sums are exact, and with D = 1 nothing else depends on how it is added: all decisions are the same."""
    mask = make_mask("mixed", 6, 331)
    x = torch.randint(-40, 41, (6, 2, 331, 1)).to(dtype).masked_fill(~mask[:, None, :, None], torch.nan)
    clusters = run().cluster_rows(x, mask, C, rounds, sample)
    assert_same_bits("clusters", clusters, cuda_ops.cluster_rows(x, mask, C, rounds, sample))


def test_rounds_with_exact_means_give_the_clusters_of_the_cpu() -> None:
    """16 corners of a cube, with 16 tokens on either side of each: a cluster has 4 tokens of the sample, or 32."""
    corners = 8 * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4).repeat_interleave(32, 0)
    x = (corners + (torch.arange(512) // 16 % 2 * 2 - 1.0)[:, None]).view(1, 1, 512, 4)
    for sample in (1, 512):
        clusters = run().cluster_rows(x, None, 16, 3, sample)
        assert (clusters.flatten() == torch.arange(512) // 32).all()
        assert_same_bits("clusters", clusters, cuda_ops.cluster_rows(x, None, 16, 3, sample))


def test_clusters_by_hand(order: str) -> None:
    """Starts 0 and 4; the sample of 8 tokens has the means 1 and 11; a tie goes to the lowest."""
    x = torch.tensor([0.0, 1.0, 2.0, 1.0, 10.0, 11.0, 12.0, 11.0]).view(1, 1, 8, 1)
    assert run().cluster_rows(x, None, 2, 3, 8).flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    tie = torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 3, 1)
    assert run().cluster_rows(tie, None, 3, 0, 8).flatten().tolist() == [0, 1, 2]
    middle = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 4, 1)
    assert run().cluster_rows(middle, None, 2, 0, 8).flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("C", [3, 40])
def test_equal_tokens_are_in_the_first_of_equal_clusters(C: int, dtype: torch.dtype) -> None:
    """Starts are equal then, and a round empties all but the first: those keep their centroid."""
    x = torch.randint(-9, 9, (1, 1, 1, 37)).to(dtype).expand(1, 1, 53, 37)
    assert not run().cluster_rows(x, None, C, 2, 53).any()
    twice = torch.randn(1, 1, 23, 37).to(dtype).repeat_interleave(2, 2)
    clusters = run().cluster_rows(twice, None, 46, 2, 46)
    assert (clusters == torch.arange(23).repeat_interleave(2) * 2).all()


def test_many_clusters() -> None:
    """More than the ends of shared memory: every distinct token keeps a cluster of its own."""
    x = torch.randperm(1100).float().view(1, 1, 1100, 1)
    assert (run().cluster_rows(x / 64, None, 1100, 1, 1).flatten() == torch.arange(1100)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_clusters_of_a_sequence_alone(dtype: torch.dtype) -> None:
    mask = make_mask("mixed", 6, 331)
    x = rows(6, 2, 331, 11, dtype, mask)
    together = run().cluster_rows(x, mask, 13, 3, 67)
    for b in range(6):
        assert (together[b, :, ~mask[b]] == -1).all()
        if mask[b].any():
            alone = run().cluster_rows(x[b : b + 1, :, mask[b]], None, 13, 3, 67)
            assert_same_bits("clusters", together[b : b + 1, :, mask[b]], alone)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_bad_values_stay_in_their_head(bad: float) -> None:
    x = rows(2, 2, 71, 9)
    good = run().cluster_rows(x, None, 7, 3, 32)
    x[1, 0, 0, 3] = x[1, 0, 40, 8] = bad
    clusters = run().cluster_rows(x, None, 7, 3, 32)
    assert (clusters >= 0).all() and (clusters < 7).all()
    clusters[1, 0] = good[1, 0]
    assert_same_bits("clusters", clusters, good)


def test_a_token_that_is_no_number_is_in_the_first_cluster() -> None:
    x = rows(1, 1, 9, 3)
    x[0, 0, 4] = torch.nan
    clusters = run().cluster_rows(x, None, 3, 0, 9)
    assert clusters[0, 0, 4] == 0 and clusters.min() >= 0 and clusters.max() < 3


@pytest.mark.parametrize(("B", "N"), [(0, 5), (2, 0)])
def test_no_tokens(B: int, N: int) -> None:
    assert run().cluster_rows(rows(B, 2, N, 7), None, 3, 2, 4).shape == (B, 2, N)
