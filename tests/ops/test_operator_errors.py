"""Every check says what is wrong, what was expected, what came and what to do; on every device, real or fake."""

import inspect
import re
from typing import Any

import pytest
import torch
from operator_errors import ASSIGNMENT, CENTROIDS, ERRORS, GOOD, MASS, TOP, K, V
from torch import Tensor
from torch._subclasses import FakeTensorMode

import cuda_ops

CASES = [(operator, *rest) for operators, *rest in ERRORS for operator in operators.split()]


def case_id(value: object) -> str:
    return (
        next(iter(value))
        if isinstance(value, dict)
        else re.sub(r"\W+", "-", value)[:40]
        if isinstance(value, str)
        else ""
    )


@pytest.mark.parametrize("operator", GOOD)
def test_the_good_arguments_are_good(operator: str) -> None:
    getattr(cuda_ops, operator)(**GOOD[operator])
    assert set(GOOD[operator]) == set(inspect.signature(getattr(cuda_ops, operator)).parameters)


@pytest.mark.parametrize(("operator", "changed", "error", "text"), CASES, ids=case_id)
def test_error(operator: str, changed: dict[str, Any], error: type[Exception], text: str) -> None:
    assert set(changed) <= set(GOOD[operator]), "the case names no argument of the operator"
    with pytest.raises(error, match=re.escape(text)):
        getattr(cuda_ops, operator)(**GOOD[operator] | changed)


DECISIONS = {"hash_vectors", "cluster_codes", "cluster_rows", "top_keys"}  # their derivative is 0


@pytest.mark.parametrize("operator", sorted(GOOD.keys() - DECISIONS))
def test_forward_mode_is_refused(operator: str) -> None:
    """PyTorch itself would give 0."""
    call, given = getattr(cuda_ops, operator), GOOD[operator]
    names = [name for name, x in given.items() if isinstance(x, Tensor) and x.is_floating_point() and name != "planes"]
    assert names
    for name in names:
        text = f"{name} must not carry a tangent, got one of forward-mode differentiation"
        with pytest.raises(NotImplementedError, match=text), torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(given[name], torch.ones_like(given[name]))
            call(**given | {name: dual})
        with pytest.raises(NotImplementedError, match=text):
            torch.func.jvp(lambda x, name=name: call(**given | {name: x}), (given[name],), (given[name],))


@pytest.mark.parametrize(
    ("operator", "changed", "error", "text"),
    [
        case
        for case in CASES
        if isinstance(next(iter(case[1].values())), Tensor) and next(iter(case[1].values())).device.type == "cpu"
    ],
    ids=case_id,
)
def test_the_fake_kernel_says_the_same(
    operator: str, changed: dict[str, Any], error: type[Exception], text: str
) -> None:
    """Called past the wrapper, as a compiler does."""
    schema = getattr(torch.ops.cuda_ops, operator).default._schema
    arguments = GOOD[operator] | changed
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.raises(error, match=re.escape(text)):
        fake = {name: mode.from_tensor(x) if isinstance(x, Tensor) else x for name, x in arguments.items()}
        getattr(torch.ops.cuda_ops, operator)(*(fake[argument.name] for argument in schema.arguments))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("operator", "changed"),
    [
        ("hash_vectors", {"planes": torch.zeros(67, 4)}),
        ("hash_vectors", {"mask": torch.ones(2, 5).bool()}),
        ("cluster_codes", {"bits": 200}),
        ("cluster_codes", {"clusters": 0}),
        ("group_mean", {"assignment": ASSIGNMENT[..., :3]}),
        ("group_mean", {"assignment": ASSIGNMENT.long()}),
        ("centroid_scores", {"centroids": CENTROIDS[:1]}),
        ("centroid_scores", {"centroids": CENTROIDS[..., :3]}),
        ("top_keys", {"mask": torch.ones(1, 11).bool()}),
        ("top_keys", {"topk": -3}),
        ("centroid_attention", {"top_keys": TOP[:, :1]}),
        ("centroid_attention", {"v": V[:, :, :3]}),
        ("exact_attention", {"top_mass": MASS[..., :1]}),
        ("exact_attention", {"k": K.double()}),
        ("group_scatter", {"assignment": ASSIGNMENT[:1]}),
        ("full_attention", {"k": K[:, :, :5]}),
        ("improved_clustered", {"v": V[..., :2]}),
        ("improved_clustered", {"clusters": 0}),
        ("improved_clustered", {"mask": torch.ones(2, 4).bool()}),
        ("clustered", {"k": torch.zeros(2, 3, 11, 5)}),
        ("refined_clustered", {"v": V[..., :2]}),
        ("refined_clustered", {"key_clusters": 0}),
        ("refined_clustered", {"longer": [9, 0, 3, 2, 7]}),
        ("refined_clustered", {"longer": [9, 5, 3, 2]}),
        ("refined_clustered", {"longer": [9, 5, 3, 2, 7, 9, 5, 3, 2, 7]}),
        ("refined_clustered", {"mask": torch.ones(2, 4).bool()}),
        ("cluster_rows", {"clusters": 0}),
        ("cluster_rows", {"mask": torch.ones(1, 11).bool()}),
        ("tail", {"key_clusters": ASSIGNMENT[..., :3]}),
        ("tail", {"v": V[:, :, :3]}),
        ("refined_attention", {"tail_keys": torch.zeros(2, 4, 3, 3, 5)}),
        ("refined_attention", {"scores": torch.zeros(2, 4, 2, 11)}),
    ],
    ids=case_id,
)
def test_the_compiled_operators_protect_memory(operator: str, changed: dict[str, Any]) -> None:
    """Past the wrapper what would read or write out of bounds is an error too."""
    schema = getattr(torch.ops.cuda_ops, operator).default._schema
    arguments = GOOD[operator] | changed
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        getattr(torch.ops.cuda_ops, operator)(*(arguments[argument.name] for argument in schema.arguments))


@pytest.mark.parametrize("bad", [-2, 3, 2**31 - 1, -(2**31)])
def test_a_cluster_out_of_range_is_like_padding(bad: int, backend: str) -> None:
    """Decisions are data, and a check of values would cost a pass over them: a wrong one must not leave the memory."""
    wrong, padded = ASSIGNMENT.clone(), ASSIGNMENT.clone()
    wrong[:, :, 4], padded[:, :, 4] = bad, -1
    for operator in ("group_mean", "group_scatter", "exact_attention"):
        results = [getattr(cuda_ops, operator)(**GOOD[operator] | {"assignment": x}) for x in (wrong, padded)]
        assert torch.equal(*results), operator


@pytest.mark.parametrize("bad", [-2, 11, 2**31 - 1, -(2**31)])
def test_a_top_key_out_of_range_is_no_key(bad: int, backend: str) -> None:
    wrong, absent = TOP.clone(), TOP.clone()
    wrong[..., 1], absent[..., 1] = bad, -1
    for operator in ("centroid_attention", "exact_attention"):
        results = [getattr(cuda_ops, operator)(**GOOD[operator] | {"top_keys": x}) for x in (wrong, absent)]
        for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in results), strict=True):
            assert torch.equal(one, other), operator
