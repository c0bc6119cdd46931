"""hash_vectors: bit p of a token's code is [x . h_p > 0]."""

import numpy as np
import oracle
import pytest
import torch
from operator_cases import DTYPES, accumulation, make_mask, numpy
from torch import Tensor

import cuda_ops

pytestmark = pytest.mark.usefixtures("backend")


def tolerance(dtype: torch.dtype, size: int) -> float:
    """How far, relative to sum |x_d h_pd|, a sum of ``size`` products may round to the other side of zero."""
    return size * torch.finfo(accumulation(dtype)).eps


def check(x: Tensor, planes: Tensor, mask: Tensor | None) -> Tensor:
    codes = cuda_ops.hash_vectors(x, planes, mask=mask)
    assert codes.dtype == torch.int64 and codes.is_contiguous()
    assert codes.shape == (*x.shape[:3], -(-planes.shape[0] // 64))
    oracle.check_codes(codes.numpy(), numpy(x), numpy(planes), numpy(mask), tolerance(x.dtype, x.shape[3]))
    return codes


def test_by_hand() -> None:
    planes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    x = torch.tensor([[3.0, -1.0], [-1.0, 2.0], [-3.0, 1.0], [0.0, 0.0], [1.0, 1.0]]).view(1, 1, 5, 2)
    mask = torch.tensor([[True, True, True, True, False]])
    # Bits are 1, 2, 4 for the planes; a product of exactly 0 gives no bit, and neither does padding.
    assert cuda_ops.hash_vectors(x, planes, mask=mask).flatten().tolist() == [1, 2, 2 + 4, 0, 0]


def test_bit_63_is_the_sign_of_the_word() -> None:
    planes = torch.zeros(65, 1)
    planes[63:] = 1
    assert cuda_ops.hash_vectors(torch.ones(1, 1, 1, 1), planes).flatten().tolist() == [-(2**63), 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("P", "D"), [(1, 1), (63, 2), (64, 3), (65, 31), (128, 64), (256, 65), (61, 128), (7, 256)])
def test_against_the_oracle(dtype: torch.dtype, P: int, D: int) -> None:
    x = torch.randn(2, 3, 19, D).to(dtype)
    check(x, torch.randn(P, D), make_mask("mixed", 2, 19))


@pytest.mark.parametrize("mask", [None, "all", "left", "right", "holes", "one", "none"])
def test_masks(mask: str | None) -> None:
    check(torch.randn(2, 3, 17, 5), torch.randn(67, 5), make_mask(mask, 2, 17))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_that_are_exact_have_no_tolerance(dtype: torch.dtype) -> None:
    """Small integers are exact in every dtype and order, with many products of exactly 0."""
    x, planes = torch.randint(-3, 4, (2, 3, 23, 13)), torch.randint(-3, 4, (71, 13))
    codes = cuda_ops.hash_vectors(x.to(dtype), planes.float())
    expected = (x @ planes.T > 0).numpy()
    assert (x @ planes.T == 0).sum() > 100
    np.testing.assert_array_equal(oracle.unpack_codes(codes.numpy(), 71), expected)


@pytest.mark.parametrize("N", range(1, 41))
def test_every_number_of_tokens(N: int) -> None:
    check(torch.randn(1, 2, N, 11), torch.randn(19, 11), None)


@pytest.mark.parametrize("shape", [(0, 3, 5, 7), (2, 3, 0, 7)])
def test_empty(shape: tuple[int, ...]) -> None:
    assert cuda_ops.hash_vectors(torch.empty(shape), torch.randn(65, 7)).shape == (*shape[:3], 2)


def test_strides_do_not_matter() -> None:
    planes = torch.randn(65, 7)
    x = torch.randn(2, 3, 19, 7)
    expected = check(x, planes, None)
    views = [
        x.transpose(1, 2).contiguous().transpose(1, 2),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.randn(2, 3, 19, 14)[..., ::2].copy_(x),
        torch.randn(4, 3, 38, 7)[::2, :, ::2].copy_(x),
    ]
    for view in views:
        assert torch.equal(cuda_ops.hash_vectors(view, planes), expected)
    assert torch.equal(cuda_ops.hash_vectors(x, planes.T.contiguous().T), expected)
    expanded = x[:, :1].expand(2, 3, 19, 7)
    assert torch.equal(cuda_ops.hash_vectors(expanded, planes), cuda_ops.hash_vectors(expanded.contiguous(), planes))
