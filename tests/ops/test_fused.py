"""clustered and improved_clustered: optimal decisions, right values given the decisions, limits and corner values."""

import numpy as np
import oracle
import pytest
import torch
from fused_checks import check_clustered, check_improved, exact_rows
from operator_cases import DTYPES, Case, numpy
from tolerance import assert_close, assert_same_bits

import cuda_ops

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.instruction_path]

PRIMES = [
    Case(B=6, N=19),
    Case(B=3, H=2, N=61, D=13, C=7, K=17, P=23, iterations=5),
    Case(B=2, H=6, H_kv=2, N=31, D=5, C=3, K=11, P=61),
    Case(B=2, H=4, H_kv=1, N=53, D=23, C=11, K=2, P=67),
    Case(B=6, N=37, D=64, C=5, K=32, P=63, exact_below=27),
    Case(B=1, H=2, N=127, D=32, C=25, K=32, P=63, iterations=10, mask="holes"),
]


def test_by_hand() -> None:
    """The second component makes the clusters {0, 1} and {2, 3}; the numbers are those of test_oracle.py."""
    log2, log3 = float(np.log(2.0)), float(np.log(3.0))
    q = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, -1.0], [0.0, -1.0]]).view(1, 1, 4, 2)
    k = torch.tensor([[0.0, 0.0], [0.0, 0.0], [log2, 0.0], [log3, 0.0]]).view(1, 1, 4, 2)
    v = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]).view(1, 1, 4, 2)
    settings = {"mask": None, "planes": torch.tensor([[0.0, 1.0]]), "clusters": 2, "iterations": 3, "scale": 1.0}
    out, log_mass, assignment = cuda_ops.clustered(q, k, v, **settings)
    expected = torch.tensor([3.0, 3.0, 2.5, 2.5])
    torch.testing.assert_close(out[0, 0], torch.stack([expected, 10 * expected], 1))
    torch.testing.assert_close(log_mass[0, 0], torch.tensor([7.0, 7.0, 4.0, 4.0]).log())
    assert assignment.tolist() == [[[0, 0, 1, 1]]]
    out, _, assignment, top = cuda_ops.improved_clustered(q, k, v, **settings, topk=2)
    expected = torch.tensor([3 / 7 + 5 / 7 * 48 / 13, 3 / 7 + 5 / 7 * 3.5, 2.5, 2.5])
    torch.testing.assert_close(out[0, 0], torch.stack([expected, 10 * expected], 1))
    assert assignment.tolist() == [[[0, 0, 1, 1]]] and top.tolist() == [[[[2, 3], [0, 1]]]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", PRIMES, ids=str)
def test_against_the_oracle(case: Case, dtype: torch.dtype) -> None:
    check_improved(case.inputs(dtype))
    check_clustered(case.inputs(dtype))


@pytest.mark.parametrize("mask", [None, "all", "left", "right", "holes", "one", "none"])
def test_masks(mask: str | None) -> None:
    inputs = Case(N=23, mask=mask).inputs()
    out, log_mass, assignment, top = check_improved(inputs)
    check_clustered(inputs)
    if inputs.mask is not None:
        padded = ~inputs.mask[:, None].expand(2, 3, 23)
        assert not out[padded].any() and (log_mass[padded] == -torch.inf).all() and (assignment[padded] == -1).all()
    if mask == "none":
        assert (top == -1).all()


@pytest.mark.parametrize("N", range(1, 71))
def test_every_number_of_tokens(N: int) -> None:
    check_improved(Case(B=1, H=2, N=N, D=17, C=5, K=7, mask=None).inputs())


@pytest.mark.parametrize("D", [1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 255, 256])
def test_head_sizes(D: int) -> None:
    check_improved(Case(N=29, D=D, C=3, K=5, mask="holes").inputs())


@pytest.mark.parametrize("P", [1, 63, 64, 65, 127, 128, 129, 255, 256])
def test_numbers_of_planes(P: int) -> None:
    check_improved(Case(N=29, P=P).inputs())


@pytest.mark.parametrize("C", [1, 2, 12, 13, 14, 31, 97])
@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_numbers_of_clusters_and_rounds(C: int, iterations: int) -> None:
    check_improved(Case(B=6, C=C, iterations=iterations).inputs())
    check_clustered(Case(B=6, C=C, iterations=iterations).inputs())


@pytest.mark.parametrize("K", [0, 1, 12, 13, 14, 47, 1000])
def test_numbers_of_top_keys(K: int) -> None:
    _, _, _, top = check_improved(Case(B=6, K=K).inputs())
    assert top.shape == (6, 3, 5, min(K, 13))


@pytest.mark.parametrize(
    "case",
    [
        Case(N=1031, B=1, H=2, D=64, C=25, K=32, P=63, iterations=10, mask="holes"),
        Case(N=1031, B=1, H=1, D=33, C=101, K=67, mask=None),
    ],
    ids=str,
)
def test_a_long_sequence(case: Case) -> None:
    check_improved(case.inputs())


@pytest.mark.parametrize(("B", "H", "N"), [(0, 3, 5), (2, 3, 0)])
def test_empty(B: int, H: int, N: int) -> None:
    inputs = Case(B=B, H=H, N=N, mask=None).inputs()
    out, log_mass, assignment, top = inputs.improved()
    assert (
        out.shape == (B, H, N, 7)
        and log_mass.shape == assignment.shape == (B, H, N)
        and top.shape == (B, H, 5, min(3, N))
    )
    assert (top == -1).all()
    assert inputs.clustered()[0].shape == inputs.full()[0].shape == (B, H, N, 7)


def test_an_empty_cluster_lists_the_first_valid_keys() -> None:
    """Its centroid is 0, so all its scores are 0 and ties go to the lowest positions."""
    inputs = Case(B=6, N=19, C=29, K=4).inputs()
    _, _, assignment, top = inputs.improved()
    assert inputs.mask is not None
    found = 0
    for b in range(6):
        first = inputs.mask[b].nonzero().flatten()[:4].tolist()
        for h in range(3):
            for c in set(range(29)) - set(assignment[b, h].tolist()):
                assert top[b, h, c].tolist() == first + [-1] * (4 - len(first))
                found += 1
    assert found > 100


# What makes it attention.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("K", [23, 24, 61])
def test_all_keys_exact_is_exact_attention(dtype: torch.dtype, K: int) -> None:
    inputs = Case(B=6, N=23, K=K).inputs(dtype)
    expected, _ = oracle.full_attention(*inputs.numpy(), inputs.scale)
    assert_close("out", inputs.improved()[0], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("C", [23, 29])
def test_a_cluster_for_every_query_is_exact_attention(dtype: torch.dtype, C: int) -> None:
    inputs = Case(B=6, N=23, C=C, P=67).inputs(dtype)
    out, log_mass, assignment = inputs.clustered()
    for row in assignment.flatten(0, 1):
        clusters = row[row >= 0]
        assert len(clusters.unique()) == len(clusters), "the codes are not distinct: nothing would be tested"
    expected = oracle.full_attention(*inputs.numpy(), inputs.scale)
    assert_close("out", out, expected[0])
    assert_close("log mass", log_mass, expected[1])
    assert_close("out", inputs.improved()[0], expected[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("K", [0, 3, 19])
def test_weights_sum_to_one(dtype: torch.dtype, K: int) -> None:
    inputs = Case(B=6, N=19, K=K).inputs(dtype)
    inputs = inputs.changed(v=torch.ones_like(inputs.v))
    assert inputs.mask is not None
    expected = inputs.mask[:, None, :, None].expand(inputs.q.shape).double()
    assert_close("rows", inputs.improved()[0], expected)
    assert_close("rows", inputs.clustered()[0], expected)
    assert_close("rows", inputs.full()[0], expected)


def test_without_top_keys_it_is_clustered_attention() -> None:
    inputs = Case(B=6, K=0, N=31, exact_below=12).inputs()
    for name, one, other in zip(("out", "log mass", "assignment"), inputs.improved(), inputs.clustered(), strict=False):
        assert_same_bits(name, one, other)


def test_large_scores_do_not_overflow() -> None:
    inputs = Case(B=6, N=41).inputs(torch.float64).changed(scale=1000.0)
    out, log_mass, assignment, top = inputs.improved()
    expected = oracle.improved_clustered(*inputs.numpy(), assignment.numpy(), top.numpy(), 1000.0)
    assert np.abs(expected[1][np.isfinite(expected[1])]).max() > 1000
    assert_close("out", out, expected[0], units=1e5)
    assert_close("log mass", log_mass, expected[1])


def test_defaults() -> None:
    """The paper's budgets, 1 / sqrt(D), no mask, no exact rows."""
    inputs = Case(N=61, B=1, D=11, P=63, mask=None).inputs()
    q, k, v, planes = inputs.q, inputs.k, inputs.v, inputs.planes
    spelled_out = inputs.changed(clusters=25, topk=32, iterations=10, scale=11**-0.5)
    for one, other in zip(cuda_ops.improved_clustered(q, k, v, None, planes), spelled_out.improved(), strict=True):
        assert_same_bits("improved_clustered", one, other)
    for one, other in zip(cuda_ops.clustered(q, k, v, None, planes), spelled_out.clustered(), strict=True):
        assert_same_bits("clustered", one, other)
    for one, other in zip(cuda_ops.full_attention(q, k, v), spelled_out.full(), strict=True):
        assert_same_bits("full_attention", one, other)


# Short rows.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exact_below", [1, 2, 9, 10, 13, 14, 100])
def test_rows_with_few_valid_tokens_are_exact(dtype: torch.dtype, exact_below: int) -> None:
    inputs = Case(B=6, exact_below=exact_below).inputs(dtype)
    exact = exact_rows(inputs)
    assert exact.any()
    _, _, assignment, top = check_improved(inputs)
    check_clustered(inputs)
    assert (assignment[exact] == -1).all() and (top[exact] == -1).all()


def test_exact_rows_are_full_attention_to_the_bit(compiled: None) -> None:
    """... and the other rows are as without exact_below."""
    inputs = Case(B=6, N=31, exact_below=25).inputs()
    exact = exact_rows(inputs)
    assert exact.any() and not exact.all()
    for results in (inputs.improved(), inputs.clustered()):
        for name, result, full in zip(("out", "log mass"), results, inputs.full(), strict=False):
            assert_same_bits(name, result[exact], full[exact])
    for name, result, without in zip(
        ("out", "log mass", "assignment", "top keys"),
        inputs.improved(),
        inputs.changed(exact_below=0).improved(),
        strict=True,
    ):
        assert_same_bits(name, result[~exact], without[~exact])


# Layout of the inputs.


def test_strides_do_not_matter() -> None:
    inputs = Case(B=6, H=4, H_kv=2, N=29, exact_below=12).inputs()
    expected = inputs.improved()

    def views(x: torch.Tensor) -> list[torch.Tensor]:
        return [
            x.transpose(1, 2).contiguous().transpose(1, 2),
            x.transpose(2, 3).contiguous().transpose(2, 3),
            torch.zeros(*x.shape[:3], 3 * x.shape[3]).unflatten(3, (x.shape[3], 3))[..., 1].copy_(x),
            x.flip(2).contiguous().flip(2),
        ]

    for q, k, v in zip(views(inputs.q), reversed(views(inputs.k)), views(inputs.v), strict=True):
        strided = inputs.changed(
            q=q, k=k, v=v, mask=inputs.mask.T.contiguous().T, planes=inputs.planes.T.contiguous().T
        )
        out, _, assignment, _ = check_improved(strided)
        assert torch.equal(assignment, expected[2])
        assert_close("out", out, numpy(expected[0]))


def test_expanded_inputs() -> None:
    """Stride 0: one head's keys for all, one row's mask for the batch."""
    inputs = Case(B=3, N=29).inputs()
    k, v = (x[:, :1].expand(3, 3, 29, 7) for x in (inputs.k, inputs.v))
    expanded = inputs.changed(k=k, v=v, mask=inputs.mask[:1].expand(3, 29))
    for name, one, other in zip(
        ("out", "log mass", "assignment", "top keys"),
        check_improved(expanded),
        expanded.changed(k=k.contiguous(), v=v.contiguous(), mask=expanded.mask.contiguous()).improved(),
        strict=True,
    ):
        assert_same_bits(name, one, other)


def test_fewer_key_heads_are_repeated_ones() -> None:
    """Query head h uses key head h // (H / H_kv)."""
    inputs = Case(B=2, H=6, H_kv=2, N=31).inputs(torch.float64)
    repeated = inputs.changed(k=inputs.k.repeat_interleave(3, 1), v=inputs.v.repeat_interleave(3, 1))
    for run in ("improved", "clustered", "full"):
        for one, other in zip(getattr(inputs, run)(), getattr(repeated, run)(), strict=True):
            assert_close(run, one.double(), other.double())
