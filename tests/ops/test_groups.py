"""group_mean, group_scatter and centroid_scores: into the clusters and out of them."""

import numpy as np
import oracle
import pytest
import torch
from operator_cases import DTYPES, accumulation, make_mask, numpy
from tolerance import assert_close
from torch import Tensor

import cuda_ops
from cuda_ops import reference

pytestmark = pytest.mark.usefixtures("backend")


def random_assignment(*shape: int, clusters: int) -> Tensor:
    """Clusters of tokens, about one in six padded (-1), and the last cluster empty."""
    drawn = torch.randint(0, max(clusters - 1, 1), shape, dtype=torch.int32)
    return torch.where(torch.rand(shape) < 0.16, -1, drawn).int()


def test_group_mean_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0], [torch.nan, torch.inf], [7.0, 8.0]]).view(1, 1, 4, 2)
    means = cuda_ops.group_mean(x, torch.tensor([[[1, 1, -1, 2]]]).int(), clusters=4, scale=0.5)
    assert means[0, 0].tolist() == [[0, 0], [1, 1.75], [3.5, 4], [0, 0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("N", "D", "C"), [(19, 7, 5), (61, 1, 3), (5, 64, 11), (131, 65, 2), (23, 256, 7), (17, 31, 1)]
)
def test_group_mean(dtype: torch.dtype, N: int, D: int, C: int) -> None:
    x, assignment = torch.randn(2, 3, N, D).to(dtype), random_assignment(2, 3, N, clusters=C)
    means = cuda_ops.group_mean(x, assignment, clusters=C, scale=0.37)
    assert means.dtype == accumulation(dtype) and means.is_contiguous()
    expected = oracle.group_mean(numpy(x), assignment.numpy(), C, 0.37)
    assert_close("means", means, expected, reference.group_mean(x, assignment, C, 0.37))
    assert_close("means", means, expected)


def test_group_scatter_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    out = cuda_ops.group_scatter(values, torch.tensor([[[1, -1, 0, 1]]]).int())
    assert out[0, 0].tolist() == [[3, 4], [0, 0], [1, 2], [3, 4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("N", "D", "C"), [(19, 7, 5), (61, 1, 3), (5, 64, 11), (1, 65, 2)])
def test_group_scatter_copies_exactly(dtype: torch.dtype, N: int, D: int, C: int) -> None:
    values, assignment = torch.randn(2, 3, C, D).to(dtype), random_assignment(2, 3, N, clusters=C)
    out = cuda_ops.group_scatter(values, assignment)
    assert out.dtype == dtype and out.is_contiguous()
    np.testing.assert_array_equal(numpy(out), oracle.group_scatter(numpy(values), assignment.numpy()))


def test_scores_by_hand() -> None:
    centroids = torch.tensor([[1.0, 2.0], [0.0, -1.0]]).view(1, 1, 2, 2)
    k = torch.tensor([[1.0, 1.0], [torch.nan, 0.0], [3.0, 0.5]]).view(1, 1, 3, 2)
    scores = cuda_ops.centroid_scores(centroids, k, mask=torch.tensor([[True, False, True]]))
    assert scores[0, 0].tolist() == [[3, -torch.inf, 4], [-1, -torch.inf, -0.5]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("N", "D", "C"), [(19, 7, 5), (61, 1, 3), (5, 64, 11), (131, 65, 2), (23, 256, 7), (17, 31, 1)]
)
def test_centroid_scores(dtype: torch.dtype, N: int, D: int, C: int) -> None:
    centroids, k, mask = (
        torch.randn(6, 4, C, D, dtype=accumulation(dtype)),
        torch.randn(6, 2, N, D).to(dtype),
        make_mask("mixed", 6, N),
    )
    scores = cuda_ops.centroid_scores(centroids, k, mask=mask)
    assert scores.dtype == accumulation(dtype) and scores.is_contiguous()
    expected = oracle.centroid_scores(numpy(centroids), numpy(k), numpy(mask))
    assert_close("scores", scores, expected, reference.centroid_scores(centroids, k, mask))
    assert_close("scores", scores, expected)


@pytest.mark.parametrize(("B", "H", "N"), [(0, 3, 5), (2, 3, 0)])
def test_empty(B: int, H: int, N: int) -> None:
    x, assignment = torch.empty(B, H, N, 7), torch.zeros(B, H, N, dtype=torch.int32)
    means = cuda_ops.group_mean(x, assignment, clusters=3, scale=1.0)
    assert means.shape == (B, H, 3, 7) and not means.any()
    assert cuda_ops.centroid_scores(means, x, mask=None).shape == (B, H, 3, N)
    assert cuda_ops.group_scatter(means, assignment).shape == (B, H, N, 7)


def test_strides_do_not_matter() -> None:
    x, centroids, assignment = (
        torch.randn(2, 3, 19, 7),
        torch.randn(2, 3, 5, 7),
        random_assignment(2, 3, 19, clusters=5),
    )
    for permute in ([0, 2, 1, 3], [3, 2, 1, 0], [0, 1, 3, 2]):
        back = [permute.index(axis) for axis in range(4)]
        strided = x.permute(permute).contiguous().permute(back)
        groups = assignment.transpose(1, 2).contiguous().transpose(1, 2)
        turned = centroids.permute(permute).contiguous().permute(back)
        assert torch.equal(
            cuda_ops.group_mean(strided, groups, clusters=5, scale=2.0),
            cuda_ops.group_mean(x, assignment, clusters=5, scale=2.0),
        )
        assert torch.equal(cuda_ops.group_scatter(turned, groups), cuda_ops.group_scatter(centroids, assignment))
        assert_close(
            "scores",
            cuda_ops.centroid_scores(turned, strided, mask=None),
            oracle.centroid_scores(numpy(centroids), numpy(x), None),
        )
