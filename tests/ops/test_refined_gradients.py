"""The gradient of refined_clustered and of its stages, decisions held constant."""

from typing import Any

import pytest
import torch
from operator_cases import DTYPES, spread
from refined_cases import Refined, refined
from tolerance import assert_close, assert_same_bits
from torch import Tensor

import cuda_ops
from cuda_ops import reference_refined_backward

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.instruction_path]

CASES: list[dict[str, Any]] = [
    {"B": 6, "N": 19},
    {"B": 3, "H": 2, "N": 61, "D": 13, "C": 7, "K": 17, "M": 5, "W": 4, "S": 11},
    {"B": 2, "H": 6, "H_kv": 2, "N": 31, "D": 5, "C": 3, "K": 11, "M": 7, "W": 0},
    {"B": 6, "N": 23, "D": 64, "C": 5, "K": 16, "M": 3, "W": 1, "exact_below": 15},
    {"B": 2, "N": 17, "D": 31, "C": 29, "K": 0, "M": 31},
    # more keys, cells, queries of a cluster, clusters, and longer heads than a GPU takes at a time
    {"B": 2, "H": 1, "H_kv": 1, "N": 307, "D": 9, "C": 3, "K": 71, "M": 67, "W": 3},
    {"B": 2, "H": 1, "H_kv": 1, "N": 97, "D": 3, "C": 41, "K": 2, "M": 3, "W": 9},
    {"B": 2, "H": 1, "H_kv": 1, "N": 29, "D": 131, "C": 2, "K": 5, "M": 1},
]


def backward(inputs: Refined, grad: Tensor, results: tuple[Tensor, ...], operator: Any) -> tuple[Tensor, ...]:
    qkv = inputs.q, inputs.k, inputs.v
    budgets = inputs.clusters, inputs.key_clusters, inputs.band
    return operator(grad, *qkv, inputs.mask, *results, *budgets, inputs.scale, inputs.exact_below)


def given_decisions(inputs: Refined, grad: Tensor, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Autograd through the stages in float64, given the decisions; the stages' own gradients are checked below."""
    q, k, v = (x.double().requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
    mask, scale, decisions = inputs.mask, inputs.scale, results[2:]
    centroids = cuda_ops.group_mean(q, decisions[0], inputs.clusters, scale)
    scores = cuda_ops.centroid_scores(centroids, k, mask)
    tail = cuda_ops.tail(scores, k, v, decisions[1], decisions[2], inputs.key_clusters)
    out, _ = cuda_ops.refined_attention(q, k, v, mask, centroids, scores, *tail, *decisions, inputs.band, scale)
    full, _ = cuda_ops.full_attention(q, k, v, mask, scale)
    out = torch.where(inputs.short()[:, None, None, None], full, out)
    return torch.autograd.grad(out, (q, k, v), grad.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64_given_the_decisions(case: dict[str, Any], dtype: torch.dtype) -> None:
    inputs = refined(dtype, **case)
    grad = torch.randn(inputs.q.shape).to(dtype)
    leaves = [x.clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    results = inputs.changed(q=leaves[0], k=leaves[1], v=leaves[2]).run()
    gradients = torch.autograd.grad(results[0], leaves, grad)
    expected = given_decisions(inputs, grad, results)
    same_dtype = backward(
        inputs, grad, [x.detach() for x in results], reference_refined_backward.refined_clustered_backward
    )
    for name, x, one, other in zip("qkv", gradients, expected, same_dtype, strict=True):
        assert x.dtype == dtype and x.transpose(1, 2).is_contiguous()
        assert_close(f"d{name}", x, one, other, gradient=True)
        assert_close(f"d{name}", x, one, units=64)


@pytest.mark.parametrize("W", [0, 2])
@pytest.mark.parametrize("limit", [{}, {"K": 9}, {"C": 9}, {"M": 9}, {"exact_below": 8}, {"K": 0, "M": 1}], ids=str)
def test_gradcheck(limit: dict[str, int], W: int) -> None:
    """Finite differences, the three exact limits included."""
    inputs = refined(torch.float64, W=W, **{"B": 2, "H": 2, "H_kv": 1, "N": 9, "D": 3, "C": 2, "K": 2, "M": 3} | limit)
    leaves = [x.requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]

    def out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return inputs.changed(q=q, k=k, v=v).run()[0]

    assert torch.autograd.gradcheck(out, leaves)


@pytest.mark.parametrize("scale", [0.2, 4.0])
def test_gradcheck_of_the_stages(scale: float) -> None:
    """With the second-order term below its cap and above it; of every tensor that the stages take."""
    inputs = refined(torch.float64, B=2, H=2, H_kv=1, N=9, D=3, C=2, K=2, M=3).changed(scale=scale)
    mask, decisions = inputs.mask, inputs.run()[2:]
    q, k, v = (x.requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
    centroids = cuda_ops.group_mean(q, decisions[0], 2, scale).detach().requires_grad_()
    scores = cuda_ops.centroid_scores(centroids, k, mask).detach()
    scores = scores.masked_fill(scores == -torch.inf, 0).requires_grad_()

    def tail(scores: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        log_mass, *others = cuda_ops.tail(scores, k, v, decisions[1], decisions[2], 3)
        return (log_mass.masked_fill(log_mass == -torch.inf, 0), *others)

    assert torch.autograd.gradcheck(tail, (scores, k, v))
    log_mass, *others = (x.detach().requires_grad_() for x in tail(scores, k, v))

    def attention(*x: Tensor) -> Tensor:
        return cuda_ops.refined_attention(*x[:3], mask, *x[3:], *decisions, 2, scale)[0]

    assert torch.autograd.gradcheck(attention, (q, k, v, centroids, scores, log_mass, *others))


@pytest.mark.parametrize("wanted", ["q", "k", "v"])
def test_one_gradient_alone(wanted: str) -> None:
    inputs = refined(H=4, H_kv=2)
    leaf = getattr(inputs, wanted).requires_grad_()
    (alone,) = torch.autograd.grad(inputs.run()[0].sum(), leaf)
    together = [x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    all_three = torch.autograd.grad(
        inputs.changed(q=together[0], k=together[1], v=together[2]).run()[0].sum(), together
    )
    assert_same_bits(wanted, alone, all_three["qkv".index(wanted)])


def test_only_the_output_has_a_gradient() -> None:
    inputs = refined()
    out, *others = inputs.changed(q=inputs.q.requires_grad_()).run()
    assert out.requires_grad and not any(x.requires_grad for x in others)


def test_the_second_derivative_raises() -> None:
    inputs = refined()
    q = inputs.q.requires_grad_()
    (gradient,) = torch.autograd.grad(inputs.run()[0].square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="refined_clustered has no second derivative"):
        torch.autograd.grad(gradient.sum(), q)


def test_the_gradient_of_a_padded_sequence_is_that_of_the_sequence() -> None:
    alone = refined(torch.float64, B=1, N=23, mask=None, W=4)
    mask = torch.zeros(41, dtype=torch.bool)
    mask[torch.randperm(41)[:23]] = True
    grad = torch.randn(alone.q.shape, dtype=torch.float64)
    gradients = []
    for inputs, out_grad in (
        (alone, grad),
        (
            alone.changed(**{x: spread(getattr(alone, x), mask) for x in "qkv"}, mask=mask[None]),
            spread(grad, mask),
        ),
    ):
        leaves = [x.clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
        gradients.append(
            torch.autograd.grad(inputs.changed(**dict(zip("qkv", leaves, strict=True))).run()[0], leaves, out_grad)
        )
    for name, one, other in zip("qkv", *gradients, strict=True):
        assert_close(name, other[:, :, mask], one)
        assert not other[:, :, ~mask].any()
