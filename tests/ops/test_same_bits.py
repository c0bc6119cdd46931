"""The same sequence gives the same bits alone, in a batch, under any padding, and with any number of threads.

A promise of the compiled operators only: the reference's matrix products sum in an order that depends on the shapes.
"""

from collections.abc import Callable

import pytest
import torch
from everything import Sequence, batch_of, of_one_row, random_batch, run_backward, run_forward, sequence
from operator_cases import DTYPES
from tolerance import assert_same_bits
from torch import Tensor

import cuda_ops

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.instruction_path]

SETTINGS = [
    {"D": 7, "C": 5, "K": 3},
    {"D": 64, "C": 25, "K": 32, "P": 63, "H": 2},
    {"D": 33, "C": 3, "K": 11, "P": 65, "H": 4, "H_kv": 2},
    {"D": 16, "C": 7, "K": 5, "exact_below": 40},
]
LENGTHS = [(37, 1, 64), (131, 5, 31), (16, 17, 15)]


def run(sequence: Sequence) -> dict[str, Tensor]:
    return run_forward(sequence.inputs) | run_backward(sequence.inputs, sequence.grad)


def compare(got: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    for name, result in expected.items():
        assert_same_bits(f"{name}, {where}", got[name], result)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ["left", "right", "holes"])
def test_alone_and_in_a_padded_batch(settings: dict[str, int], kind: str, dtype: torch.dtype) -> None:
    lengths = LENGTHS[["left", "right", "holes"].index(kind)]
    sequences = [sequence(n, dtype, seed, **settings) for seed, n in enumerate(lengths)]
    sequences = [Sequence(s.inputs.changed(planes=sequences[0].inputs.planes), s.grad) for s in sequences]
    batch = batch_of(sequences, kind, extra=9)
    together = run(batch)
    for row, alone in enumerate(sequences):
        compare(
            of_one_row(together, row, batch.inputs.mask), run(alone), f"row {row}, {alone.tokens} tokens padded {kind}"
        )


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_padding_of_any_length(settings: dict[str, int]) -> None:
    alone = sequence(23, torch.float32, 0, **settings)
    expected = run(alone)
    for extra in (0, 1, 2, 7, 16, 64, 201):
        batch = batch_of([alone], "holes", extra)
        compare(of_one_row(run(batch), 0, batch.inputs.mask), expected, f"{extra} padded tokens")


@pytest.mark.cpu
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_in_an_output_that_is_streamed(settings: dict[str, int]) -> None:
    alone = sequence(37, torch.float32, 0, **settings)
    batch = batch_of([alone], "holes", 2**18 // settings["D"])  # more than STREAMED of rows.h
    compare(of_one_row(run(batch), 0, batch.inputs.mask), run(alone), "1 MiB")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_head_alone(dtype: torch.dtype) -> None:
    batch = random_batch(dtype, N=31, H=4, H_kv=2, exact_below=15)
    together = run(batch)
    for key_head in range(2):
        heads, keys = slice(2 * key_head, 2 * key_head + 2), slice(key_head, key_head + 1)
        inputs = batch.inputs.changed(q=batch.inputs.q[:, heads], k=batch.inputs.k[:, keys], v=batch.inputs.v[:, keys])
        expected = run(Sequence(inputs, batch.grad[:, heads]))
        of_these = {name: x[:, keys if name.endswith(("grad_k", "grad_v")) else heads] for name, x in together.items()}
        compare(of_these, expected, f"key head {key_head}")


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_any_number_of_threads(threads: int, dtype: torch.dtype) -> None:
    batch = random_batch(dtype, N=67, H=5, D=19, exact_below=30)
    torch.set_num_threads(1)
    expected = run(batch)
    torch.set_num_threads(threads)
    compare(run(batch), expected, f"{threads} threads")


@pytest.mark.cpu
def test_one_long_sequence_with_any_number_of_threads() -> None:
    """One (batch, head) among eight threads: a range of parallel_for must not bound a sum."""
    one = sequence(1031, torch.float32, 0, H=1, D=16, C=25, K=32)
    torch.set_num_threads(1)
    expected = run(one)
    torch.set_num_threads(8)
    compare(run(one), expected, "8 threads")


@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "heads"])
def test_permuting_commutes(axis: int) -> None:
    batch = random_batch(torch.float32, N=31, H=5, exact_below=20)
    order = torch.randperm(batch.inputs.q.shape[axis])

    def permuted(x: Tensor) -> Tensor:
        return x.index_select(axis, order)

    inputs = batch.inputs.changed(q=permuted(batch.inputs.q), k=permuted(batch.inputs.k), v=permuted(batch.inputs.v))
    if axis == 0:
        inputs = inputs.changed(mask=permuted(batch.inputs.mask))
    compare(
        run(Sequence(inputs, permuted(batch.grad))), {name: permuted(x) for name, x in run(batch).items()}, "permuted"
    )


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.zeros(*x.shape[:3], 2 * x.shape[3], dtype=x.dtype)[..., ::2].copy_(x),
        lambda x: torch.zeros(x.shape[0], x.shape[1] + 1, x.shape[2] + 3, x.shape[3] + 5, dtype=x.dtype)[
            :, 1:, 2:-1, 3:-2
        ].copy_(x),
    ],
    ids=["tokens-before-heads", "size-before-tokens", "every-other", "unaligned"],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(view: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Strides say where a number stands, not which it is."""
    batch = random_batch(dtype, N=29, D=24, H=4, H_kv=2, exact_below=12)
    inputs = batch.inputs.changed(q=view(batch.inputs.q), k=view(batch.inputs.k), v=view(batch.inputs.v))
    expected = run(batch)
    compare(run_forward(inputs) | run_backward(inputs, view(batch.grad)), expected, "other strides")
    leaves = [view(x).requires_grad_() for x in (batch.inputs.q, batch.inputs.k, batch.inputs.v)]
    out = batch.inputs.changed(q=leaves[0], k=leaves[1], v=leaves[2]).improved()[0]
    for name, gradient in zip("qkv", torch.autograd.grad(out, leaves, view(batch.grad)), strict=True):
        assert_same_bits(name, gradient, expected[f"improved_clustered.grad_{name}"])


def test_a_query_does_not_depend_on_the_others_of_its_cluster() -> None:
    """exact_attention of one token alone in its cluster has the bits that it has among 40."""
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 1, 41, 33) for _ in range(3))
    top, top_mass = torch.arange(0, 38, 2).int().view(1, 1, 1, -1), torch.rand(1, 1, 1)
    together = cuda_ops.exact_attention(q, k, v, torch.zeros(1, 1, 41).int(), top, top_mass, 0.3)
    for i in range(41):
        only = torch.full((1, 1, 41), -1).int()
        only[..., i] = 0
        alone = cuda_ops.exact_attention(q, k, v, only, top, top_mass, 0.3)
        assert_same_bits(f"query {i}", alone[:, :, i], together[:, :, i])


def test_a_centroid_does_not_depend_on_the_others() -> None:
    torch.manual_seed(1)
    centroids, k, v = torch.randn(1, 1, 29, 19), torch.randn(1, 1, 53, 19), torch.randn(1, 1, 53, 19)
    top = torch.arange(0, 30, 3).int().expand(1, 1, 29, 10)
    scores = cuda_ops.centroid_scores(centroids, k, mask=None)
    together = cuda_ops.centroid_attention(scores, v, mask=None, top_keys=top)
    for c in range(29):
        one = slice(c, c + 1)
        assert_same_bits(
            f"scores of centroid {c}", cuda_ops.centroid_scores(centroids[:, :, one], k, mask=None), scores[:, :, one]
        )
        alone = cuda_ops.centroid_attention(scores[:, :, one], v, mask=None, top_keys=top[:, :, one])
        for name, x, y in zip(("rest", "top mass", "log mass"), alone, together, strict=True):
            assert_same_bits(f"{name} of centroid {c}", x, y[:, :, one])


def test_equal_queries_get_equal_bits() -> None:
    """Wherever in the sequence they stand, and whatever else is computed beside them."""
    alone = sequence(61, torch.float32, 0, D=17, H=1)
    q = alone.inputs.q.clone()
    q[:, :, ::7] = q[:, :, :1]
    inputs = alone.inputs.changed(q=q)
    for out in (inputs.improved()[0], inputs.clustered()[0], inputs.full()[0]):
        for i in range(0, 61, 7):
            assert_same_bits(f"token {i}", out[:, :, i], out[:, :, 0])
