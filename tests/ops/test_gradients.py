"""Gradients: the full ones, decisions held constant, against finite differences and a float64 emulation."""

from collections.abc import Callable

import numpy as np
import oracle
import pytest
import torch
from emulation import gradients, improved_clustered
from everything import random_batch, run_backward
from operator_cases import DTYPES, Case, Inputs, numpy
from tolerance import assert_close, assert_same_bits
from torch import Tensor

import cuda_ops
from cuda_ops import reference_backward

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.instruction_path]

CASES = [
    Case(B=6, N=19),
    Case(B=3, H=2, N=61, D=13, C=7, K=17, P=23, iterations=5),
    Case(B=2, H=6, H_kv=2, N=31, D=5, C=3, K=11, P=61),
    Case(B=6, N=23, D=64, C=5, K=32, P=63, exact_below=15),
    Case(B=2, N=17, D=31, C=29, K=0),
    Case(B=1, H=1, N=131, D=16, C=25, K=32, mask=None),
]


def test_the_emulation_is_the_oracle() -> None:
    inputs = Case(B=6, H=4, H_kv=2, N=23, exact_below=12).inputs(torch.float64)
    _, _, assignment, top = inputs.improved()
    out = improved_clustered(inputs.q, inputs.k, inputs.v, inputs, assignment, top)
    expected, _ = oracle.improved_clustered(
        *inputs.numpy(), assignment.numpy(), top.numpy(), inputs.scale, inputs.exact_below
    )
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-14)


def test_the_emulated_gradients_are_finite_differences_of_the_oracle() -> None:
    inputs = Case(B=2, H=2, H_kv=1, N=7, D=3, C=2, K=2, exact_below=6, mask="right").inputs(torch.float64)
    inputs.mask[1] = True
    _, _, assignment, top = inputs.improved()
    grad = torch.randn_like(inputs.q)
    arrays = dict(zip("qkv", inputs.numpy(), strict=False))
    for name, gradient in zip("qkv", gradients(inputs, grad, assignment, top), strict=True):
        for position in np.ndindex(arrays[name].shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = arrays | {name: arrays[name].copy()}
                moved[name][position] += step
                out, _ = oracle.improved_clustered(
                    *moved.values(),
                    numpy(inputs.mask),
                    assignment.numpy(),
                    top.numpy(),
                    inputs.scale,
                    inputs.exact_below,
                )
                ends.append((out * grad.numpy()).sum())
            assert abs((ends[0] - ends[1]) / 2e-5 - gradient[position].item()) < 1e-8, f"{name}{position}"


def reference_gradients(operator: str, inputs: Inputs, grad: Tensor) -> tuple[Tensor, ...]:
    """What the reference's backward makes of the same results and decisions, in the same dtype."""
    q, k, v, mask, scale = inputs.q, inputs.k, inputs.v, inputs.mask, inputs.scale
    with torch.no_grad():
        out, log_mass, *decisions = getattr(inputs, operator)()
    if operator == "full":
        return reference_backward.full_attention_backward(grad, q, k, v, mask, out, log_mass, scale)
    backward = getattr(
        reference_backward, "improved_clustered_backward" if operator == "improved" else "clustered_backward"
    )
    return backward(grad, q, k, v, mask, out, log_mass, *decisions, inputs.clusters, scale, inputs.exact_below)


def check_gradients(inputs: Inputs, grad: Tensor) -> None:
    results = run_backward(inputs, grad)
    _, _, assignment, top = inputs.improved()
    expected = {
        "improved": gradients(inputs, grad, assignment, top),
        "clustered": gradients(inputs, grad, assignment, top[..., :0]),
        "full": gradients(inputs.changed(exact_below=inputs.q.shape[2] + 1), grad, assignment, top),
    }
    names = {"improved": "improved_clustered", "clustered": "clustered", "full": "full_attention"}
    for operator, exact in expected.items():
        for x, gradient, same_dtype in zip("qkv", exact, reference_gradients(operator, inputs, grad), strict=True):
            name = f"{names[operator]}.grad_{x}"
            assert results[name].dtype == inputs.q.dtype
            assert_close(name, results[name], gradient, same_dtype, gradient=True)
            assert_close(name, results[name], gradient)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_emulation(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    check_gradients(inputs, torch.randn(inputs.q.shape).to(dtype))


@pytest.mark.parametrize("N", range(1, 41))
def test_every_number_of_tokens(N: int) -> None:
    inputs = Case(B=1, H=1, N=N, D=19, C=5, K=7, mask=None).inputs()
    check_gradients(inputs, torch.randn_like(inputs.q))


@pytest.mark.parametrize("D", [1, 2, 3, 31, 33, 64, 65, 128, 256])
def test_head_sizes(D: int) -> None:
    inputs = Case(N=29, D=D, mask="holes").inputs()
    check_gradients(inputs, torch.randn_like(inputs.q))


def test_a_long_sequence() -> None:
    inputs = Case(N=1031, B=1, H=1, D=32, C=25, K=32, P=63, mask="holes").inputs()
    check_gradients(inputs, torch.randn_like(inputs.q))


def test_the_mass_is_differentiated() -> None:
    """With the mass of the top keys held constant the gradient is far off, so the comparisons above would notice."""
    inputs = Case(B=2, N=31, K=7).inputs(torch.float64)
    grad = torch.randn_like(inputs.q)
    _, _, assignment, top = inputs.improved()
    results = run_backward(inputs, grad)
    for x, full, detached in zip(
        "qk",
        gradients(inputs, grad, assignment, top),
        gradients(inputs, grad, assignment, top, detach_mass=True),
        strict=False,
    ):
        assert (full - detached).norm() > 0.02 * full.norm()
        assert (results[f"improved_clustered.grad_{x}"] - full).norm() < 1e-12 * full.norm()


# Finite differences of the operators themselves.


def operator_calls() -> dict[str, tuple[Callable[..., object], list[Tensor]]]:
    """Every differentiable operator as a function of what it can be differentiated by, in float64."""
    inputs = Case(B=2, H=2, H_kv=1, N=7, D=3, C=3, K=2, mask="holes", exact_below=5).inputs(torch.float64)
    q, k, v, mask = inputs.q, inputs.k, inputs.v, inputs.mask
    plain = inputs.changed(exact_below=0)
    _, _, assignment, top = plain.improved()
    centroids = cuda_ops.group_mean(q, assignment, clusters=3, scale=0.7)
    scores = cuda_ops.centroid_scores(centroids, k, mask=None)
    top_mass = torch.rand(2, 2, 3, dtype=torch.float64)
    calls: dict[str, tuple[Callable[..., object], list[Tensor]]] = {
        "group_mean": (lambda x: cuda_ops.group_mean(x, assignment, clusters=3, scale=0.7), [q]),
        "centroid_scores": (
            lambda c, k: cuda_ops.centroid_scores(c, k, mask=mask).masked_fill(~mask[:, None, None], 0),
            [centroids, k],
        ),
        "centroid_attention": (lambda s, v: cuda_ops.centroid_attention(s, v, mask, top)[:2], [scores, v]),
        "exact_attention": (
            lambda q, k, v, m: cuda_ops.exact_attention(q, k, v, assignment, top, m, 0.7),
            [q, k, v, top_mass],
        ),
        "group_scatter": (
            lambda x: cuda_ops.group_scatter(x, assignment),
            [torch.randn(2, 2, 3, 3, dtype=torch.float64)],
        ),
        "full_attention": (lambda q, k, v: cuda_ops.full_attention(q, k, v, mask=mask, scale=0.7)[0], [q, k, v]),
    }
    for name, settings in {
        "": plain,
        ", short rows exact": inputs,
        ", all keys": plain.changed(topk=7),
        ", a cluster for every query": plain.changed(clusters=9),
        ", one cluster": plain.changed(clusters=1),
    }.items():
        calls[f"improved_clustered{name}"] = (
            lambda q, k, v, s=settings: s.changed(q=q, k=k, v=v).improved()[0],
            [q, k, v],
        )
        calls[f"clustered{name}"] = (lambda q, k, v, s=settings: s.changed(q=q, k=k, v=v).clustered()[0], [q, k, v])
    return calls


CALLS = [
    *("group_mean", "centroid_scores", "centroid_attention", "exact_attention", "group_scatter", "full_attention"),
    *(
        f"{x}{y}"
        for x in ("improved_clustered", "clustered")
        for y in ("", ", short rows exact", ", all keys", ", a cluster for every query", ", one cluster")
    ),
]


@pytest.mark.parametrize("name", CALLS)
def test_gradcheck(name: str) -> None:
    function, leaves = operator_calls()[name]
    assert torch.autograd.gradcheck(function, [x.detach().clone().requires_grad_() for x in leaves])


@pytest.mark.parametrize("name", ["improved_clustered", "clustered", "full_attention"])
def test_double_backward_raises(name: str) -> None:
    """... and does not give zeros with a warning, as an operator without a second gradient does by itself."""
    function, leaves = operator_calls()[name]
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    first = torch.autograd.grad((function(*leaves) ** 2).sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="twice|second|double"):
        sum(x.sum() for x in first).backward()


@pytest.mark.parametrize("name", CALLS[:5])
def test_double_backward_of_a_stage_is_right_or_raises(name: str) -> None:
    function, leaves = operator_calls()[name]
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    try:
        assert torch.autograd.gradgradcheck(function, leaves)
    except RuntimeError as error:
        assert any(word in str(error) for word in ("twice", "second", "double")), error


def test_log_mass_and_decisions_have_no_gradient() -> None:
    inputs = Case().inputs()
    q = inputs.q.requires_grad_()
    out, log_mass, assignment, top = inputs.changed(q=q).improved()
    assert out.requires_grad and not (log_mass.requires_grad or assignment.requires_grad or top.requires_grad)
    assert not inputs.clustered()[1].requires_grad and not inputs.full()[1].requires_grad
    with torch.no_grad():
        assert not inputs.improved()[0].requires_grad


@pytest.mark.parametrize("operator", ["improved", "clustered", "full"])
@pytest.mark.parametrize("wanted", ["q", "k", "v", "qv"])
def test_some_inputs_only(operator: str, wanted: str) -> None:
    batch = random_batch(torch.float32, N=23)
    leaves = {x: getattr(batch.inputs, x).detach().clone().requires_grad_(x in wanted) for x in "qkv"}
    out = getattr(batch.inputs.changed(**leaves), operator)()[0]
    out.backward(batch.grad)
    expected = run_backward(batch.inputs, batch.grad)
    name = {"improved": "improved_clustered", "clustered": "clustered", "full": "full_attention"}[operator]
    for x, leaf in leaves.items():
        if x in wanted:
            assert_same_bits(x, leaf.grad, expected[f"{name}.grad_{x}"])
        else:
            assert leaf.grad is None


def test_an_expanded_gradient() -> None:
    """``out.sum().backward()`` hands over a gradient of stride 0."""
    inputs = Case(B=6, N=23).inputs()
    leaves = [x.detach().clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    for operator in ("improved", "clustered", "full"):
        out = getattr(inputs.changed(q=leaves[0], k=leaves[1], v=leaves[2]), operator)()[0]
        ones = torch.ones_like(out)
        expected = torch.autograd.grad(out, leaves, ones, retain_graph=True)
        for one, other in zip(torch.autograd.grad(out.sum(), leaves), expected, strict=True):
            assert_same_bits(operator, one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_keys_exact_has_the_gradient_of_exact_attention(dtype: torch.dtype) -> None:
    inputs = Case(B=6, N=19, K=19).inputs(dtype)
    grad = torch.randn(inputs.q.shape).to(dtype)
    results = run_backward(inputs, grad)
    nobody = torch.full(inputs.q.shape[:3], -1)
    expected = gradients(inputs.changed(exact_below=20), grad, nobody, torch.full((6, 3, 5, 0), -1))
    for x, gradient in zip("qkv", expected, strict=True):
        assert_close(
            x, results[f"improved_clustered.grad_{x}"], gradient, scale=float(max(g.abs().max() for g in expected))
        )


@pytest.mark.parametrize(("B", "H", "N"), [(0, 3, 5), (2, 3, 0)])
def test_empty(B: int, H: int, N: int) -> None:
    inputs = Case(B=B, H=H, N=N, mask=None).inputs()
    for gradient in run_backward(inputs, torch.zeros(B, H, N, 7)).values():
        assert gradient.shape == (B, H, N, 7)


def test_a_row_without_valid_tokens() -> None:
    inputs = Case(B=2, mask="none").inputs()
    for name, gradient in run_backward(inputs, torch.randn_like(inputs.q)).items():
        assert (gradient == 0).all(), name
