"""centroid_attention, exact_attention and full_attention: the stages that weigh values."""

import itertools

import numpy as np
import oracle
import pytest
import torch
from operator_cases import DTYPES, Case, accumulation, make_mask, numpy
from tolerance import assert_close
from torch import Tensor

import cuda_ops
from cuda_ops import reference

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.instruction_path]
SHAPES = [
    (19, 7, 5, 3),
    (61, 1, 3, 32),
    (5, 64, 11, 7),
    (131, 65, 2, 13),
    (23, 256, 7, 1),
    (17, 31, 1, 0),
    (1, 2, 3, 1),
    (2, 3, 1, 2),
]
DTYPES_AND_SHAPES = list(itertools.product(DTYPES, SHAPES))
LOG2, LOG3 = float(np.log(2.0)), float(np.log(3.0))


def centroid_arguments(dtype: torch.dtype, N: int, D: int, C: int, K: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores, v, mask = (
        3 * torch.randn(6, 4, C, N, dtype=accumulation(dtype)),
        torch.randn(6, 2, N, D).to(dtype),
        make_mask("mixed", 6, N),
    )
    assert mask is not None
    top = torch.from_numpy(oracle.top_keys(scores.numpy(), mask.numpy(), K)).int()
    return scores.masked_fill(~mask[:, None, None], -torch.inf), v, mask, top


def test_centroid_attention_by_hand() -> None:
    scores = torch.tensor([[0.0, 0.0, LOG2, LOG3, torch.nan]]).view(1, 1, 1, 5)
    v = torch.tensor([[1.0], [2.0], [3.0], [4.0], [torch.inf]]).view(1, 1, 5, 1)
    mask, top = torch.tensor([[True, True, True, True, False]]), torch.tensor([[[[2, 3]]]]).int()
    rest, top_mass, log_mass = cuda_ops.centroid_attention(scores, v, mask=mask, top_keys=top)
    torch.testing.assert_close(
        [rest.item(), top_mass.item(), log_mass.item()], [3 / 7, 5 / 7, float(np.log(7))], rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(("dtype", "shape"), DTYPES_AND_SHAPES, ids=str)
def test_centroid_attention(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    arguments = centroid_arguments(dtype, *shape)
    results = cuda_ops.centroid_attention(*arguments)
    expected = oracle.centroid_attention(*map(numpy, arguments))
    for name, result, exact, same_dtype in zip(
        ("rest", "top mass", "log mass"), results, expected, reference.centroid_attention(*arguments), strict=True
    ):
        assert result.dtype == accumulation(dtype) and result.is_contiguous()
        assert_close(name, result, exact, same_dtype)
        assert_close(name, result, exact, scale=max(1.0, np.abs(exact[np.isfinite(exact)]).max(initial=0)))


def test_a_list_of_top_keys_need_not_be_the_best() -> None:
    """The lists are data: rest and top mass follow them whatever the scores say."""
    scores, v, mask, _ = centroid_arguments(torch.float32, 23, 5, 3, 0)
    top = torch.full((6, 4, 3, 4), -1, dtype=torch.int32)
    for b in range(6):
        valid = mask[b].nonzero().flatten()
        top[b, ..., : min(3, len(valid))] = valid[-3:].int()
    rest, top_mass, _ = cuda_ops.centroid_attention(scores, v, mask, top)
    expected = oracle.centroid_attention(numpy(scores), numpy(v), mask.numpy(), top.numpy())
    assert_close("rest", rest, expected[0])
    assert_close("top mass", top_mass, expected[1])


def exact_arguments(dtype: torch.dtype, N: int, D: int, C: int, K: int) -> tuple[Tensor, ...]:
    q, k, v = torch.randn(6, 4, N, D).to(dtype), torch.randn(6, 2, N, D).to(dtype), torch.randn(6, 2, N, D).to(dtype)
    _, _, mask, top = centroid_arguments(dtype, N, D, C, K)
    assignment = torch.randint(0, C, (6, 4, N), dtype=torch.int32).masked_fill(~mask[:, None], -1)
    top_mass = torch.rand(6, 4, C, dtype=accumulation(dtype))
    # One cluster without keys, one with fewer than the others.
    top[:, :, 0] = -1
    top[:, :, -1, K // 2 :] = -1
    return q, k, v, assignment, top, top_mass


def test_exact_attention_by_hand() -> None:
    q = torch.tensor([[1.0], [2.0], [0.0], [torch.nan]]).view(1, 1, 4, 1)
    k = torch.tensor([[0.0], [0.0], [LOG2], [LOG3]]).view(1, 1, 4, 1)
    v = torch.tensor([[1.0], [2.0], [3.0], [4.0]]).view(1, 1, 4, 1)
    assignment, top = torch.tensor([[[1, 0, 1, -1]]]).int(), torch.tensor([[[[-1, -1], [2, 3]]]]).int()
    out = cuda_ops.exact_attention(q, k, v, assignment, top, torch.tensor([[[0.5, 0.75]]]), 1.0)
    # Query 0 is 1, so its weights on keys 2 and 3 are as 2 to 3; query 2 is 0: equal.
    torch.testing.assert_close(
        out.flatten(), torch.tensor([0.75 * (2 * 3 + 3 * 4) / 5, 0, 0.75 * 3.5, 0]), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(("dtype", "shape"), DTYPES_AND_SHAPES, ids=str)
def test_exact_attention(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    arguments, scale = exact_arguments(dtype, *shape), 1.3 * shape[1] ** -0.5
    out = cuda_ops.exact_attention(*arguments, scale)
    assert out.dtype == accumulation(dtype)
    expected = oracle.exact_attention(*map(numpy, arguments), scale)
    assert_close("out", out, expected, reference.exact_attention(*arguments, scale))
    assert_close("out", out, expected)


def test_full_attention_by_hand() -> None:
    q = torch.tensor([[1.0], [0.0], [torch.nan], [2.0]]).view(1, 1, 4, 1)
    k = torch.tensor([[0.0], [LOG2], [torch.inf], [LOG3]]).view(1, 1, 4, 1)
    v = torch.tensor([[1.0], [2.0], [torch.nan], [4.0]]).view(1, 1, 4, 1)
    out, log_mass = cuda_ops.full_attention(q, k, v, mask=torch.tensor([[True, True, False, True]]), scale=1.0)
    torch.testing.assert_close(
        out.flatten(), torch.tensor([17 / 6, 7 / 3, 0, (1 + 4 * 2 + 9 * 4) / 14]), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(log_mass.flatten(), torch.tensor([6.0, 3.0, 0.0, 14.0]).log(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(B=6, N=19),
        Case(B=6, N=61, D=1),
        Case(B=2, N=131, D=65, H=4, H_kv=2),
        Case(N=23, D=256),
        Case(N=1),
        Case(B=6, D=64, N=67),
    ],
    ids=str,
)
def test_full_attention(dtype: torch.dtype, case: Case) -> None:
    inputs = case.inputs(dtype)
    out, log_mass = inputs.full()
    assert out.dtype == dtype and log_mass.dtype == accumulation(dtype)
    expected = oracle.full_attention(*inputs.numpy(), inputs.scale)
    same_dtype = reference.full_attention(inputs.q, inputs.k, inputs.v, inputs.mask, inputs.scale)
    for name, result, exact, other in zip(("out", "log mass"), (out, log_mass), expected, same_dtype, strict=True):
        assert_close(name, result, exact, other)
        assert_close(name, result, exact)


@pytest.mark.parametrize("N", range(1, 71))
def test_full_attention_with_every_number_of_tokens(N: int) -> None:
    inputs = Case(B=1, H=2, N=N, D=17, mask=None).inputs()
    expected = oracle.full_attention(*inputs.numpy(), inputs.scale)
    for name, result, exact in zip(("out", "log mass"), inputs.full(), expected, strict=True):
        assert_close(name, result, exact)


def test_large_scores_do_not_overflow() -> None:
    """Scores in the thousands: weights are 0 or 1 but for a few, and every result is finite."""
    inputs = Case(B=6, N=41).inputs(torch.float64)
    inputs = inputs.changed(scale=1000.0)
    out, log_mass = inputs.full()
    expected = oracle.full_attention(*inputs.numpy(), inputs.scale)
    assert np.abs(expected[1][np.isfinite(expected[1])]).max() > 3000
    assert_close("out", out, expected[0], units=1e5)
    assert_close("log mass", log_mass, expected[1])


@pytest.mark.parametrize(("B", "H", "N"), [(0, 3, 5), (2, 3, 0)])
def test_empty(B: int, H: int, N: int) -> None:
    q, top, assignment = torch.empty(B, H, N, 7), torch.zeros(B, H, 3, min(2, N)).int(), torch.zeros(B, H, N).int()
    rest, top_mass, log_mass = cuda_ops.centroid_attention(torch.empty(B, H, 3, N), q, mask=None, top_keys=top)
    assert rest.shape == (B, H, 3, 7) and not rest.any()
    assert top_mass.shape == log_mass.shape == (B, H, 3) and not top_mass.any() and (log_mass == -torch.inf).all()
    assert cuda_ops.exact_attention(q, q, q, assignment, top, top_mass, 1.0).shape == (B, H, N, 7)
    out, log_mass = cuda_ops.full_attention(q, q, q, mask=None, scale=1.0)
    assert out.shape == (B, H, N, 7) and log_mass.shape == (B, H, N)


def test_strides_do_not_matter() -> None:
    q, k, v, assignment, top, top_mass = exact_arguments(torch.float32, 19, 7, 5, 3)
    scores, _, mask, _ = centroid_arguments(torch.float32, 19, 7, 5, 3)

    def turned(x: Tensor) -> Tensor:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)

    def heads_inside(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    plain = cuda_ops.exact_attention(q, k, v, assignment, top, top_mass, 0.4)
    strided = cuda_ops.exact_attention(
        turned(q), heads_inside(k), turned(v), heads_inside(assignment), turned(top), turned(top_mass), 0.4
    )
    assert_close("exact", strided, plain.double())
    for one, other in zip(
        cuda_ops.centroid_attention(scores, v, mask, top),
        cuda_ops.centroid_attention(turned(scores), heads_inside(v), turned(mask), heads_inside(top)),
        strict=True,
    ):
        assert_close("centroid", other, one.double())
    for one, other in zip(
        cuda_ops.full_attention(q, k, v, mask=mask, scale=0.4),
        cuda_ops.full_attention(heads_inside(q), turned(k), heads_inside(v), mask=turned(mask), scale=0.4),
        strict=True,
    ):
        assert_close("full", other, one.double())
