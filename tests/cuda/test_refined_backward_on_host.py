"""The gradient of refined_clustered by the CUDA kernels, executed on the host, against the CPU operator in float64."""

from typing import Any

import pytest
import torch
from operator_cases import pad_with, spread
from refined_cases import Refined, refined
from tolerance import assert_close, assert_same_bits
from torch import Tensor

pytestmark = pytest.mark.usefixtures("compiled", "host")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES: list[dict[str, Any]] = [
    {"B": 6, "N": 19},
    {"B": 3, "H": 2, "N": 61, "D": 13, "C": 7, "K": 17, "M": 5, "W": 4, "S": 11},
    {"B": 2, "H": 6, "H_kv": 2, "N": 31, "D": 5, "C": 3, "K": 11, "M": 7, "W": 0},
    {"B": 5, "H": 2, "N": 23, "D": 64, "C": 5, "K": 16, "M": 3, "W": 1, "exact_below": 15},
    {"B": 1, "H": 2, "N": 17, "D": 31, "C": 29, "K": 0, "M": 31, "W": 29},
    {"B": 2, "H": 2, "H_kv": 1, "N": 29, "D": 131, "C": 2, "K": 5, "M": 1},
    {"B": 1, "H": 1, "N": 307, "D": 9, "C": 3, "K": 71, "M": 67, "W": 3, "mask": "holes"},
    {"B": 1, "H": 1, "N": 97, "D": 3, "C": 41, "K": 2, "M": 3, "W": 9, "mask": None},
]


def backward(operator: Any, inputs: Refined, grad: Tensor, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """By one of the namespaces' operators, given the decisions."""
    budgets = inputs.clusters, inputs.key_clusters, inputs.band
    limits = inputs.scale, inputs.exact_below, list(inputs.longer)
    qkv = inputs.q, inputs.k, inputs.v
    return operator.refined_clustered_backward(grad, *qkv, inputs.mask, *results, *budgets, *limits)


def poisoned(inputs: Refined) -> Refined:
    """NaN in every padded place."""
    if inputs.mask is None:
        return inputs
    return inputs.changed(**{x: pad_with(getattr(inputs, x), inputs.mask, torch.nan) for x in "qkv"})


def check(inputs: Refined) -> tuple[Tensor, ...]:
    """As close to float64 as the CPU operator of the same dtype allows, given its decisions."""
    grad = torch.randn(inputs.q.shape).to(inputs.q.dtype)
    if inputs.mask is not None:
        grad = pad_with(grad, inputs.mask, torch.nan)
    results = inputs.run()
    wide = inputs.changed(**{x: getattr(inputs, x).double() for x in "qkv"})
    expected = backward(torch.ops.cuda_ops, wide, grad.double(), results)
    reference = backward(torch.ops.cuda_ops_reference, inputs, grad, results)
    got = backward(torch.ops.cuda_ops_host, inputs, grad, results)
    for name, x, one, other in zip("qkv", got, expected, reference, strict=True):
        assert x.dtype == inputs.q.dtype and x.transpose(1, 2).is_contiguous()
        assert_close(f"d{name}", x, one, other, gradient=True)
        assert_close(f"d{name}", x, one, units=64)
        if inputs.mask is not None:
            assert not x.transpose(1, 2)[~inputs.mask].any()
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64_given_the_decisions(case: dict[str, Any], dtype: torch.dtype) -> None:
    check(poisoned(refined(dtype, **case)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_order_of_threads(order: str, dtype: torch.dtype) -> None:
    check(poisoned(refined(dtype, B=4, H=2, H_kv=1, N=37, D=37, C=3, K=5, M=4, W=2)))


@pytest.mark.parametrize("longer", [(9, 3, 4, 2, 256, 16, 11, 9, 7, 64), (13, 2, 1, 2, 256)], ids=str)
def test_steps(longer: tuple[int, ...]) -> None:
    """Rows of one batch with budgets of their own."""
    inputs = poisoned(refined(B=6, H=2, H_kv=1, N=23, D=7, C=5, K=3, M=4))
    check(inputs.changed(longer=longer, exact_below=7))


@pytest.mark.parametrize("scale", [0.01, 3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_second_order_term_below_and_above_its_cap(dtype: torch.dtype, scale: float) -> None:
    check(refined(dtype, N=41, D=11, C=3, K=4, M=5, W=1).changed(scale=scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_inputs(dtype: torch.dtype) -> None:
    inputs = refined(dtype, N=29, H=4, H_kv=2, D=10)
    turned = {x: getattr(inputs, x).transpose(1, 2).contiguous().transpose(1, 2) for x in "qkv"}
    check(inputs.changed(**turned))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_without_strides(dtype: torch.dtype) -> None:
    """As that of a sum comes: one number for all."""
    inputs = refined(dtype, N=29)
    results = inputs.run()
    one = torch.ones(1, 1, 1, 1, dtype=dtype).expand(inputs.q.shape)
    for name, *both in zip(
        "qkv", *(backward(torch.ops.cuda_ops_host, inputs, x, results) for x in (one, one.contiguous())), strict=True
    ):
        assert_same_bits(f"d{name}", *both)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tokens_of_no_cluster(dtype: torch.dtype) -> None:
    """Queries without a cluster have no gradient, keys without one are in no cell."""
    inputs = refined(dtype, B=2, H=2, N=37, D=5, C=4, K=3, M=5, mask="holes")
    grad = torch.randn(inputs.q.shape).to(dtype)
    results = list(inputs.run())
    for decision in results[2:4]:
        decision[:, :, ::5] = -1
        decision[:, 1, 3] = 99
    wide = inputs.changed(**{x: getattr(inputs, x).double() for x in "qkv"})
    expected = backward(torch.ops.cuda_ops_reference, wide, grad.double(), tuple(results))
    got = backward(torch.ops.cuda_ops_host, inputs, grad, tuple(results))
    assert not got[0][:, :, ::5].any()
    for name, x, y in zip("qkv", got, expected, strict=True):
        assert_close(f"d{name}", x, y, units=64)


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_few_tokens(tokens: int) -> None:
    check(refined(B=2, N=tokens, mask=None))


def test_no_valid_tokens() -> None:
    gradients = check(poisoned(refined(B=2, mask="none")))
    assert not any(x.any() for x in gradients)


@pytest.mark.parametrize("exact_below", [0, 43])
@pytest.mark.parametrize("W", [0, 3, 30])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_alone_and_in_a_padded_batch(dtype: torch.dtype, W: int, exact_below: int) -> None:
    tokens, longest = 41, 97
    alone = refined(dtype, B=1, H=4, H_kv=2, N=tokens, D=17, C=5, K=7, M=4, W=W, mask=None).changed(
        exact_below=exact_below
    )
    grad = torch.randn(alone.q.shape).to(dtype)
    results = alone.run()
    one = backward(torch.ops.cuda_ops_host, alone, grad, results)
    mask = torch.zeros(longest, dtype=torch.bool)
    mask[torch.randperm(longest)[:tokens]] = True
    other = refined(dtype, B=1, H=4, H_kv=2, N=longest, D=17, mask=None)
    batch = {x: torch.cat([getattr(other, x), spread(getattr(alone, x), mask)]) for x in "qkv"}
    together = alone.changed(**batch, mask=torch.stack([torch.ones(longest, dtype=torch.bool), mask]))
    grads = torch.cat([torch.randn(other.q.shape).to(dtype), spread(grad, mask)])
    decided = list(together.run())
    decided[2][1].fill_(-1)[:, mask] = results[2][0]
    decided[3][1].fill_(-1)[:, mask] = results[3][0]
    positions = mask.nonzero()[:, 0].int()
    decided[4][1] = torch.where(results[4][0] < 0, -1, positions[results[4][0].clamp(min=0).long()])
    batched = backward(torch.ops.cuda_ops_host, together, grads, tuple(decided))
    for name, x, y in zip("qkv", one, batched, strict=True):
        assert_same_bits(f"d{name}", y[1][:, mask], x[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bad_values_stay_in_their_head(dtype: torch.dtype) -> None:
    inputs = refined(dtype, B=2, H=3, N=31, D=7, mask=None)
    grad = torch.randn(inputs.q.shape).to(dtype)
    results = inputs.run()
    good = backward(torch.ops.cuda_ops_host, inputs, grad, results)
    q, k = inputs.q.clone(), inputs.k.clone()
    q[0, 1, 5], k[0, 1, 7] = torch.nan, torch.inf
    bad = backward(torch.ops.cuda_ops_host, inputs.changed(q=q, k=k), grad, results)
    for name, x, y in zip("qkv", good, bad, strict=True):
        assert y[0, 1].isnan().any()
        x[0, 1] = y[0, 1] = 0
        assert_same_bits(f"d{name}", y, x)


def test_wrong_shapes_are_refused() -> None:
    inputs = refined()
    results = list(inputs.run())
    results[4] = results[4][:, :, 1:]
    with pytest.raises(RuntimeError, match="top_keys"):
        backward(torch.ops.cuda_ops_host, inputs, torch.randn(inputs.q.shape), tuple(results))
