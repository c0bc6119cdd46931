"""refined_clustered gives a sequence the same bits alone, in a batch, under any padding, with any number of threads.

A promise of the compiled operators only.
"""

from typing import Any

import pytest
import torch
from operator_cases import DTYPES, spread
from refined_cases import NAMES, Refined, refined
from tolerance import assert_same_bits
from torch import Tensor

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.instruction_path]

GRADIENTS = ("dq", "dk", "dv")
SETTINGS: list[dict[str, Any]] = [
    {"D": 7, "C": 5, "K": 3, "M": 4, "W": 2},
    {"D": 64, "C": 25, "K": 64, "M": 32, "W": 4, "H": 2, "iterations": 3, "S": 31},
    {"D": 33, "C": 3, "K": 11, "M": 5, "W": 0, "H": 4, "H_kv": 2, "S": 1},
    {"D": 16, "C": 7, "K": 5, "M": 3, "W": 1, "exact_below": 40},
]


def run(inputs: Refined, grad: Tensor) -> dict[str, Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    results = inputs.changed(q=leaves[0], k=leaves[1], v=leaves[2]).run()
    gradients = torch.autograd.grad(results[0], leaves, grad)
    return dict(zip((*NAMES, *GRADIENTS), (*(x.detach() for x in results), *gradients), strict=True))


def sequence(tokens: int, dtype: torch.dtype, seed: int, settings: dict[str, Any]) -> tuple[Refined, Tensor]:
    inputs = refined(dtype, seed, B=1, N=tokens, mask=None, **settings)
    return inputs, torch.randn(inputs.q.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def row_mask(kind: str, tokens: int, padded: int, seed: int) -> Tensor:
    mask = torch.zeros(padded, dtype=torch.bool)
    order = torch.randperm(padded, generator=torch.Generator().manual_seed(seed))
    mask[{"left": slice(padded - tokens, None), "right": slice(tokens), "holes": order[:tokens]}[kind]] = True
    return mask


def compare(got: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    for name, result in expected.items():
        assert_same_bits(f"{name}, {where}", got[name], result)


def of_row(results: dict[str, Tensor], row: int, mask: Tensor) -> dict[str, Tensor]:
    """What a batch's row must share with the sequence alone."""
    rank = torch.full((len(mask),), -2, dtype=torch.int32)
    rank[mask] = torch.arange(int(mask.sum()), dtype=torch.int32)
    parts = {name: x[row : row + 1][:, :, mask] for name, x in results.items() if name != "top keys"}
    top = results["top keys"][row : row + 1]
    assert (top[..., int(mask.sum()) :] == -1).all()
    top = top[..., : int(mask.sum())]
    return parts | {"top keys": torch.where(top >= 0, rank[top.clamp(min=0).long()], top)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ["left", "right", "holes"])
def test_alone_and_in_a_padded_batch(settings: dict[str, Any], kind: str, dtype: torch.dtype) -> None:
    lengths = (37, 1, 64)
    alone = [sequence(n, dtype, seed, settings) for seed, n in enumerate(lengths)]
    masks = [row_mask(kind, n, 71, seed) for seed, n in enumerate(lengths)]
    rows = [
        [spread(x, mask) for x in (inputs.q, inputs.k, inputs.v, grad)]
        for (inputs, grad), mask in zip(alone, masks, strict=True)
    ]
    q, k, v, grad = (torch.cat(parts) for parts in zip(*rows, strict=True))
    together = run(alone[0][0].changed(q=q, k=k, v=v, mask=torch.stack(masks)), grad)
    for row, (one, mask) in enumerate(zip(alone, masks, strict=True)):
        compare(of_row(together, row, mask), run(*one), f"row {row} padded {kind}")


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_any_number_of_threads(threads: int, dtype: torch.dtype) -> None:
    inputs = refined(dtype, B=6, N=67, H=5, D=19, exact_below=30)
    grad = torch.randn(inputs.q.shape).to(dtype)
    torch.set_num_threads(1)
    expected = run(inputs, grad)
    torch.set_num_threads(threads)
    compare(run(inputs, grad), expected, f"{threads} threads")


@pytest.mark.cpu
def test_one_long_sequence_with_any_number_of_threads() -> None:
    """One (batch, head) among eight threads: a range of parallel_for must not bound a sum."""
    one = sequence(1031, torch.float32, 0, {"H": 1, "D": 16, "C": 25, "K": 64, "M": 32, "W": 4})
    torch.set_num_threads(1)
    expected = run(*one)
    torch.set_num_threads(8)
    compare(run(*one), expected, "8 threads")


def test_any_strides() -> None:
    inputs = refined(B=6, N=29, D=24, H=4, H_kv=2, exact_below=12)
    grad = torch.randn(inputs.q.shape)
    expected = run(inputs, grad)
    for order in ((0, 2, 1, 3), (0, 1, 3, 2)):
        views = {x: getattr(inputs, x).permute(order).contiguous().permute(order) for x in "qkv"}
        compare(run(inputs.changed(**views), grad.permute(order).contiguous().permute(order)), expected, str(order))


def test_exact_rows_are_full_attention_to_the_bit() -> None:
    import cuda_ops

    inputs = refined(B=6, N=31, exact_below=25)
    short = inputs.short()
    assert short.any() and not short.all()
    full = cuda_ops.full_attention(inputs.q, inputs.k, inputs.v, inputs.mask, inputs.scale)
    results, without = inputs.run(), inputs.changed(exact_below=0).run()
    for name, result, exact in zip(NAMES, results, full, strict=False):
        assert_same_bits(name, result[short], exact[short])
    for name, result, other in zip(NAMES, results, without, strict=True):
        assert_same_bits(name, result[~short], other[~short])


@pytest.mark.cpu
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_in_an_output_that_is_streamed(settings: dict[str, Any]) -> None:
    inputs, grad = sequence(37, torch.float32, 0, settings)
    tokens = 37 + 2**18 // settings["D"]  # more than STREAMED of rows.h
    mask = row_mask("holes", 37, tokens, 0)
    q, k, v, wide = (spread(x, mask) for x in (inputs.q, inputs.k, inputs.v, grad))
    together = run(inputs.changed(q=q, k=k, v=v, mask=mask[None]), wide)
    compare(of_row(together, 0, mask), run(inputs, grad), "1 MiB")
