"""top_keys: scores are compared exactly as they are, so there is one right answer for any bit pattern."""

import numpy as np
import oracle
import pytest
import torch
from operator_cases import make_mask, numpy
from torch import Tensor

import cuda_ops

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.instruction_path]
INF, NAN = torch.inf, torch.nan


def check(scores: Tensor, mask: Tensor | None, topk: int) -> None:
    top = cuda_ops.top_keys(scores, mask=mask, topk=topk)
    assert top.dtype == torch.int32 and top.is_contiguous()
    np.testing.assert_array_equal(top.numpy(), oracle.top_keys(scores.numpy(), numpy(mask), topk))


@pytest.mark.parametrize(
    ("scores", "topk", "expected"),
    [
        ([1.0, 3.0, 2.0, 0.0], 2, [1, 2]),
        ([1.0, 3.0, 2.0, 9.0], 1, [3]),
        ([5.0, 5.0, 5.0, 5.0], 2, [0, 1]),
        ([0.0, 7.0, 5.0, 5.0], 2, [1, 2]),
        ([-0.0, 0.0, -0.0, 0.0], 3, [0, 1, 2]),
        ([-1.0, NAN, 8.0, INF], 1, [1]),
        ([-1.0, -NAN, 8.0, INF], 2, [1, 3]),
        ([NAN, INF, NAN, 8.0], 2, [0, 2]),
        ([-INF, -INF, -INF, -INF], 2, [0, 1]),
        ([-INF, -3e38, -INF, -INF], 2, [0, 1]),
        ([1e-45, 0.0, -1e-45, 2e-45], 2, [0, 3]),
        ([1.0, 2.0, 3.0, 4.0], 0, []),
        ([1.0, 2.0, 3.0, 4.0], 7, [0, 1, 2, 3]),
    ],
)
def test_by_hand(scores: list[float], topk: int, expected: list[int]) -> None:
    top = cuda_ops.top_keys(torch.tensor(scores).view(1, 1, 1, 4), mask=None, topk=topk)
    assert top.flatten().tolist() == expected


def test_padding_is_never_taken() -> None:
    scores = torch.tensor([9.0, 1.0, NAN, 3.0, INF]).view(1, 1, 1, 5)
    mask = torch.tensor([[False, True, False, True, False]])
    assert cuda_ops.top_keys(scores, mask=mask, topk=1).flatten().tolist() == [3]
    assert cuda_ops.top_keys(scores, mask=mask, topk=4).flatten().tolist() == [1, 3, -1, -1]
    assert cuda_ops.top_keys(scores, mask=torch.zeros(1, 5, dtype=torch.bool), topk=3).flatten().tolist() == [-1] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("topk", [0, 1, 3, 16, 31, 32, 61, 67])
def test_against_the_oracle(dtype: torch.dtype, topk: int) -> None:
    check(torch.randn(6, 2, 3, 61, dtype=dtype), make_mask("mixed", 6, 61), topk)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("values", [1, 2, 5])
@pytest.mark.parametrize("topk", [1, 13, 32, 200])
def test_massive_ties(dtype: torch.dtype, values: int, topk: int) -> None:
    check(torch.randint(0, values, (2, 2, 2, 331)).to(dtype), make_mask("mixed", 2, 331), topk)


@pytest.mark.parametrize("N", [127, 128, 129, 1031, 2053, 4099])
def test_many_tokens(N: int) -> None:
    rows = torch.randn(1, 1, 6, N)
    rows[0, 0, 1] = torch.randint(0, 3, (N,))
    rows[0, 0, 2] = torch.arange(N)
    rows[0, 0, 3] = -torch.arange(N)
    rows[0, 0, 4] = 1 + torch.randint(0, 40, (N,)) * torch.finfo(torch.float32).eps
    rows[0, 0, 5] *= 1e38
    for topk in (1, 32, 64, N // 2):
        check(rows, make_mask("holes", 1, N), topk)


@pytest.mark.parametrize("N", range(1, 71))
def test_every_number_of_tokens(N: int) -> None:
    check(torch.randint(-9, 9, (1, 2, 2, N)).float(), None, 7)


@pytest.mark.parametrize(
    ("dtype", "integer"), [(torch.float32, torch.int32), (torch.float64, torch.int64)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("N", [5, 67, 1031])
def test_any_bit_pattern(dtype: torch.dtype, integer: torch.dtype, N: int) -> None:
    """Random bits are NaN of either sign with any payload, infinities, denormals and everything else."""
    random = np.random.RandomState(N)
    bits = torch.from_numpy(random.randint(torch.iinfo(integer).min, torch.iinfo(integer).max, (2, 2, 3, N))).to(
        integer
    )
    # Half of the exponents all ones: NaN (or, with no payload, infinity) often enough to fill the list.
    exponent = 0x7F800000 if integer == torch.int32 else 0x7FF0000000000000
    bits[:, :, 1] |= torch.from_numpy(random.rand(2, 2, N) < 0.5).to(integer) * exponent
    bits[:, :, 2] = torch.iinfo(integer).min | (bits[:, :, 2] & 1)
    scores = bits.view(dtype)
    assert N < 60 or (scores.isnan().sum() > N and (scores == 0).any())
    for topk in (1, 7, 32, N):
        check(scores, make_mask("mixed", 2, N), topk)


@pytest.mark.parametrize("shape", [(0, 3, 5, 7), (2, 3, 5, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    assert cuda_ops.top_keys(torch.empty(shape), mask=None, topk=4).shape == (*shape[:3], min(4, shape[3]))


def test_strides_do_not_matter() -> None:
    scores, mask = torch.randn(2, 3, 5, 41), make_mask("mixed", 2, 41)
    expected = cuda_ops.top_keys(scores, mask=mask, topk=6)
    for permute in ([0, 2, 1, 3], [3, 2, 1, 0], [0, 1, 3, 2]):
        strided = scores.permute(permute).contiguous().permute([permute.index(axis) for axis in range(4)])
        assert torch.equal(cuda_ops.top_keys(strided, mask=mask, topk=6), expected)
    expanded = scores[:, :, :1].expand(2, 3, 5, 41)
    assert torch.equal(cuda_ops.top_keys(expanded, mask=mask, topk=6), expected[:, :, :1].expand(2, 3, 5, 6))
