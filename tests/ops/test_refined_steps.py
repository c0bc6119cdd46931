"""Budgets by length: a batch row takes those of the last step that its own valid tokens reach, and nothing else changes."""

from typing import Any

import operator_backend
import pytest
import torch
from operator_cases import DTYPES, spread
from refined_cases import NAMES, Refined, check, refined
from tolerance import assert_close, assert_same_bits
from torch import Tensor

import cuda_ops
from cuda_ops import reference_refined, reference_refined_backward

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.instruction_path]

STEPS = ((17, 7, 6, 5, 11), (29, 11, 2, 3, 40), (61, 5, 19, 13, 3))
LONGER = tuple(number for step in STEPS for number in step)
LENGTHS = (16, 17, 28, 29, 60, 61, 1)
GRADIENTS = ("dq", "dk", "dv")


def with_own_budgets(inputs: Refined, tokens: int) -> Refined:
    """The same without steps, the budgets that a row of so many tokens takes written out."""
    own = [step for step in STEPS if step[0] <= tokens]
    if not own:
        return inputs.changed(longer=())
    _, clusters, topk, key_clusters, sample = own[-1]
    budgets = {"clusters": clusters, "topk": topk, "key_clusters": key_clusters, "sample": sample}
    return inputs.changed(longer=(), **budgets)


def run(inputs: Refined, grad: Tensor) -> dict[str, Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    results = inputs.changed(q=leaves[0], k=leaves[1], v=leaves[2]).run()
    gradients = torch.autograd.grad(results[0], leaves, grad)
    return dict(zip((*NAMES, *GRADIENTS), (*(x.detach() for x in results), *gradients), strict=True))


def assert_equal(name: str, got: Tensor, expected: Tensor, backend: str) -> None:
    """To the bit for the compiled operators and for decisions, to rounding for the reference's values."""
    if backend == "reference" and got.is_floating_point():
        assert_close(name, got, expected.double(), units=64)
    elif operator_backend.wanted() and got.dtype == torch.float64:
        # A GPU has float64 on the reference. In a row with one token terms of order one cancel to rounding, not to nothing.
        assert_close(name, got, expected, units=64, scale=max(1.0, expected.abs().max().item()))
    else:
        assert_same_bits(name, got, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["left", "holes"])
def test_each_row_is_the_row_alone_with_its_own_budgets(kind: str, dtype: torch.dtype, backend: str) -> None:
    shape: dict[str, Any] = {"B": 1, "H": 4, "H_kv": 2, "D": 13, "C": 3, "K": 5, "M": 4, "W": 2, "mask": None}
    alone = [refined(dtype, seed, N=n, **shape) for seed, n in enumerate(LENGTHS)]
    grads = [torch.randn(one.q.shape).to(dtype) for one in alone]
    masks = []
    for seed, n in enumerate(LENGTHS):
        mask = torch.zeros(67, dtype=torch.bool)
        order = torch.randperm(67, generator=torch.Generator().manual_seed(seed))
        mask[slice(67 - n, None) if kind == "left" else order[:n]] = True
        masks.append(mask)
    q, k, v, grad = (
        torch.cat([spread(x, mask) for x, mask in zip(rows, masks, strict=True)])
        for rows in ([one.q for one in alone], [one.k for one in alone], [one.v for one in alone], grads)
    )
    together = run(alone[0].changed(q=q, k=k, v=v, mask=torch.stack(masks), longer=LONGER), grad)
    assert together["top keys"].shape == (len(LENGTHS), 4, 11, 19)
    for row, (one, own_grad, mask, tokens) in enumerate(zip(alone, grads, masks, LENGTHS, strict=True)):
        own = with_own_budgets(one, tokens)
        expected = run(own, own_grad)
        for name, result in expected.items():
            if name == "top keys":
                continue
            got = together[name][row : row + 1][:, :, mask]
            assert_equal(f"{name} of the row with {tokens} tokens", got, result, backend)
        top, listed = together["top keys"][row], expected["top keys"][0]
        positions = torch.cat([mask.nonzero().flatten(), torch.tensor([-1])]).int()[listed.long()]
        assert torch.equal(top[:, : own.clusters, : listed.shape[2]], positions)
        assert (top[:, own.clusters :] == -1).all() and (top[:, :, listed.shape[2] :] == -1).all()


@pytest.mark.parametrize("tokens", LENGTHS)
def test_without_a_mask_the_padded_length_decides(tokens: int) -> None:
    inputs = refined(N=tokens, mask=None)
    own = with_own_budgets(inputs, tokens)
    check(own)
    for name, one, other in zip(NAMES[:4], inputs.changed(longer=LONGER).run(), own.run(), strict=False):
        assert_same_bits(name, one, other)


def test_short_rows_stay_exact() -> None:
    inputs = refined(B=6, N=31, exact_below=25).changed(longer=LONGER)
    full = cuda_ops.full_attention(inputs.q, inputs.k, inputs.v, inputs.mask, inputs.scale)[0]
    assert_same_bits("out", inputs.run()[0][inputs.short()], full[inputs.short()])


def test_the_reference_agrees_given_the_decisions() -> None:
    """In float64: decisions equal, values and gradients to rounding."""
    inputs = refined(torch.float64, B=6, N=67, H=2, D=11).changed(longer=LONGER)
    grad = torch.randn(inputs.q.shape, dtype=torch.float64)
    got = run(inputs, grad)
    budgets = (inputs.clusters, inputs.topk, inputs.key_clusters, inputs.band, inputs.rounds, inputs.sample)
    qkv = (inputs.q, inputs.k, inputs.v, inputs.mask)
    expected = reference_refined.refined_clustered(*qkv, *budgets, inputs.scale, 0, LONGER)
    for name, result in zip(NAMES, expected, strict=True):
        if result.dtype == torch.int32:
            assert torch.equal(got[name], result), name
        else:
            assert_close(name, got[name], result, scale=10)
    gradients = reference_refined_backward.refined_clustered_backward(
        grad, *qkv, *expected, inputs.clusters, inputs.key_clusters, inputs.band, inputs.scale, 0, LONGER
    )
    for name, result in zip(GRADIENTS, gradients, strict=True):
        assert_close(name, got[name], result, gradient=True)


def test_gradcheck() -> None:
    inputs = refined(torch.float64, B=2, H=2, H_kv=1, N=19, D=3, C=2, K=2, M=3).changed(longer=LONGER[:5])
    leaves = [x.requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]

    def out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return inputs.changed(q=q, k=k, v=v).run()[0]

    assert torch.autograd.gradcheck(out, leaves)
