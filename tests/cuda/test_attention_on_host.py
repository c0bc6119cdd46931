"""The attention stages and the fused operators by the CUDA kernels, executed on the host, against float64 given the decisions."""

from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from operator_cases import spread
from tolerance import assert_close, assert_same_bits, rounded_to
from torch import Tensor

pytestmark = pytest.mark.usefixtures("compiled")
cpu = torch.ops.cuda_ops
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Case:
    B: int = 2
    H: int = 2
    H_kv: int = 2
    N: int = 83
    D: int = 29
    C: int = 7
    K: int = 11
    M: int = 5
    W: int = 4

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v with NaN where the mask (the first row with holes, the last one padded on both sides) is false."""
        torch.manual_seed(self.N)
        mask = torch.rand(self.B, self.N) > 0.3
        mask[-1, :7] = False
        mask[-1, -5:] = False
        drawn = [torch.randn(self.B, self.N, heads, self.D) for heads in (self.H, self.H_kv, self.H_kv)]
        q, k, v = (x.to(dtype).transpose(1, 2).masked_fill(~mask[:, None, :, None], torch.nan) for x in drawn)
        return 1.5 * q, k, v, mask


CASES = [
    Case(),
    Case(H=4, N=131, D=64, C=3, K=67, M=2),
    Case(B=1, N=67, D=131, C=71, K=3, M=73, W=1),
    Case(B=1, N=61, D=200, C=2, K=0, M=1, W=0),
    Case(B=1, H=1, H_kv=1, N=97, D=7, C=2, K=90, M=66, W=23),
    Case(B=1, H=2, H_kv=1, N=149, D=104, C=3, K=70, M=41, W=6),
    Case(B=1, H=1, H_kv=1, N=541, D=16, C=2, K=277, M=2, W=1),
    Case(B=1, H=2, H_kv=1, N=149, D=256, C=2, K=70, M=41, W=6),
    Case(H=1, H_kv=1, N=97, D=160, C=2, K=37, M=17, W=2),
]
LARGE_HEADS = CASES[-1]
"""A team of two warps has each row on the tensor cores."""
SCALE = 0.4
ON_TENSOR_CORES = ("out", "refined_mass", "exact", "full")
"""Results that 16-bit weights, or cells stored in 16 bits, enter."""


def stages(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, case: Case) -> dict[str, Tensor]:
    """Decisions and the stages before attention, by the CPU operators in the accumulation type of the inputs."""
    queries = cpu.cluster_rows(q, mask, case.C, 3, 16)
    keys = cpu.cluster_rows(k, mask, case.M, 3, 16).repeat_interleave(case.H // case.H_kv, 1).contiguous()
    means = cpu.group_mean(q, queries, case.C, SCALE)
    scores = cpu.centroid_scores(means, k, mask)
    return {
        "queries": queries,
        "keys": keys,
        "means": means,
        "scores": scores,
        "top": cpu.top_keys(scores, mask, case.K),
    }


def outputs(operators: object, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, given: dict[str, Tensor], case: Case) -> dict[str, Tensor]:  # fmt: skip
    """Every attention stage, given the decisions and scores."""
    rest = operators.centroid_attention(given["scores"], v, mask, given["top"])  # type: ignore[attr-defined]
    tail = operators.tail(given["scores"], k, v, given["keys"], given["top"], case.M)  # type: ignore[attr-defined]
    decisions = (given["queries"], given["keys"], given["top"])
    refined = operators.refined_attention(  # type: ignore[attr-defined]
        q, k, v, mask, given["means"], given["scores"], *tail, *decisions, case.W, SCALE
    )
    exact = operators.exact_attention(q, k, v, given["queries"], given["top"], rest[1], SCALE)  # type: ignore[attr-defined]
    full = operators.full_attention(q, k, v, mask, SCALE)  # type: ignore[attr-defined]
    names = ("rest", "top_mass", "log_mass", "tail_mass", "spread", "tail_keys", "tail_values", "out", "refined_mass")
    return dict(zip((*names, "exact", "full", "full_mass"), (*rest, *tail, *refined, exact, *full), strict=True))


def check(case: Case, dtype: torch.dtype) -> None:
    q, k, v, mask = case.tensors(dtype)
    wide = [x.double() for x in (q, k, v)]
    exact = stages(*wide, mask, case)
    narrow = {name: x if x.dtype == torch.int32 else x.float() for name, x in exact.items()}
    wanted = outputs(cpu, *wide, mask, {name: narrow[name].to(x.dtype) for name, x in exact.items()}, case)
    got, reference = (outputs(ops, q, k, v, mask, narrow, case) for ops in (torch.ops.cuda_ops_host, cpu))
    for name, expected in wanted.items():
        assert got[name].dtype == reference[name].dtype
        with rounded_to(dtype) if name in ON_TENSOR_CORES else nullcontext():
            assert_close(name, got[name], expected, reference[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(host: None, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


def test_every_order_of_threads(order: str) -> None:
    check(CASES[0], torch.float32)
    check(CASES[0], torch.bfloat16)
    check(LARGE_HEADS, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_cell_of_very_many_keys(host: None, dtype: torch.dtype) -> None:
    """Parts of several tiles, and more segments than a warp has lanes."""
    N, D = 33001, 5
    torch.manual_seed(N)
    k, v = (torch.randn(1, 1, N, D).to(dtype) for _ in range(2))
    scores = torch.randn(1, 1, 3, N)
    top = cpu.top_keys(scores, None, 7)
    keys = torch.where(torch.arange(N) % 5 > 0, 0, -1).int().expand(1, 1, N).contiguous()
    wanted, got, reference = (
        (*ops.centroid_attention(s, x, None, top), *ops.tail(s, y, x, keys, top, 1))
        for ops, s, y, x in (
            (cpu, scores.double(), k.double(), v.double()),
            (torch.ops.cuda_ops_host, scores, k, v),
            (cpu, scores, k, v),
        )
    )
    names = ("rest", "top_mass", "log_mass", "tail_mass", "spread", "tail_keys", "tail_values")
    for name, *results in zip(names, got, wanted, reference, strict=True):
        assert_close(name, *results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("N", "C", "K"), [(384, 35, 20), (8324, 3, 131)])
def test_parts_of_neighbouring_tokens(host: None, dtype: torch.dtype, N: int, C: int, K: int) -> None:
    """Without a mask, N a multiple of four: scores are read four at once. Scores that grow along the row move the largest one from tile to tile."""
    torch.manual_seed(N)
    v = torch.randn(1, 2, N, 64).to(dtype)
    scores = torch.randn(1, 2, C, N) + torch.linspace(0, 8, N)
    scores[:, 0, 1, :300] = -torch.inf
    top = cpu.top_keys(scores, None, K)
    wanted, got, reference = (
        ops.centroid_attention(s, x, None, top)
        for ops, s, x in ((cpu, scores.double(), v.double()), (torch.ops.cuda_ops_host, scores, v), (cpu, scores, v))
    )
    for name, *results in zip(("rest", "top_mass", "log_mass"), got, wanted, reference, strict=True):
        assert_close(name, *results)


def test_more_parts_than_threads_add_up(host: None) -> None:
    N = 256 * 512 + 301
    torch.manual_seed(N)
    v, scores, top = (
        torch.randn(1, 1, N, 3).bfloat16(),
        torch.randn(1, 1, 1, N),
        torch.tensor([[[[5, 131072, -1]]]]).int(),
    )
    wanted, got, reference = (
        ops.centroid_attention(s, x, None, top)
        for ops, s, x in ((cpu, scores.double(), v.double()), (torch.ops.cuda_ops_host, scores, v), (cpu, scores, v))
    )
    for name, *results in zip(("rest", "top_mass", "log_mass"), got, wanted, reference, strict=True):
        assert_close(name, *results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_single_key_has_no_spread(host: None, dtype: torch.dtype) -> None:
    """Nor does its mean differ from it, whatever the other clusters' keys of the cell are."""
    torch.manual_seed(3)
    N, D, C = 9, 67, 35
    k, v = (torch.randn(1, 1, N, D).to(dtype) for _ in range(2))
    scores = 5 * torch.randn(1, 1, C, N)
    left = torch.arange(C) % N
    top = torch.stack([torch.tensor([j for j in range(N) if j != one]) for one in left.tolist()])[None, None].int()
    cells = torch.ops.cuda_ops_host.tail(scores, k, v, torch.zeros(1, 1, N).int(), top, 1)
    assert_same_bits("log mass", cells[0][0, 0, :, 0], scores[0, 0, torch.arange(C), left])
    assert (cells[1] == 0).all()
    assert_same_bits("keys", cells[2][0, 0, :, 0], k[0, 0, left].float())
    assert_same_bits("values", cells[3][0, 0, :, 0], v[0, 0, left].float())


def refined(operators: object, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, case: Case, *steps: int) -> tuple[Tensor, ...]:  # fmt: skip
    return operators.refined_clustered(  # type: ignore[attr-defined]
        q, k, v, mask, case.C, case.K, case.M, case.W, 3, 16, SCALE, 10, list(steps)
    )


def improved(operators: object, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, case: Case) -> tuple[Tensor, ...]:
    planes = torch.randn(63, case.D, generator=torch.Generator().manual_seed(3))
    return operators.improved_clustered(q, k, v, mask, planes, case.C, case.K, 4, SCALE, 10)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CASES[:3], LARGE_HEADS], ids=str)
def test_fused_equal_the_stages(host: None, case: Case, dtype: torch.dtype) -> None:
    """Bit for bit, for rows that are long enough to be clustered."""
    ours = torch.ops.cuda_ops_host
    q, k, v, mask = case.tensors(dtype)
    out, log_mass, queries, keys, top = refined(ours, q, k, v, mask, case)
    means = ours.group_mean(q, queries, case.C, SCALE)
    scores = ours.centroid_scores(means, k, mask)
    assert torch.equal(ours.top_keys(scores, mask, case.K), top)
    tail = ours.tail(scores, k, v, keys, top, case.M)
    again = ours.refined_attention(q, k, v, mask, means, scores, *tail, queries, keys, top, case.W, SCALE)
    assert_same_bits("refined", out, again[0].to(dtype))
    assert_same_bits("refined log mass", log_mass, again[1])
    assert torch.equal(ours.cluster_rows(q, mask, case.C, 3, 16), queries)

    out, log_mass, queries, top = improved(ours, q, k, v, mask, case)
    scores = ours.centroid_scores(ours.group_mean(q, queries, case.C, SCALE), k, mask)
    rest, top_mass, centroid_mass = ours.centroid_attention(scores, v, mask, top)
    again = ours.exact_attention(q, k, v, queries, top, top_mass, SCALE) + ours.group_scatter(rest, queries)
    assert_same_bits("improved", out, again.to(dtype))
    by_token = ours.group_scatter(centroid_mass[..., None].contiguous(), queries)[..., 0]
    assert_same_bits("improved log mass", log_mass, by_token.masked_fill(queries < 0, -torch.inf))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", [refined, improved])
@pytest.mark.parametrize("D", [29, 160])
def test_alone_and_padded_in_a_batch(host: None, D: int, method: object, dtype: torch.dtype) -> None:
    """Sequences of 3 tokens (the exact path), 37 and 71, alone and with holes in a batch of 83."""
    ours, case = torch.ops.cuda_ops_host, Case(D=D)
    q, k, v, _ = case.tensors(dtype)
    q, k, v = (torch.randn_like(x) for x in (q, k, v))
    lengths, total = (3, 37, 71), 83
    rows, masks = [], []
    for n in lengths:
        mask = torch.zeros(total, dtype=torch.bool)
        mask[torch.randperm(total)[:n]] = True
        rows.append([spread(x[:1, :, :n], mask) for x in (q, k, v)])
        masks.append(mask)
    together = method(ours, *(torch.cat(x) for x in zip(*rows, strict=True)), torch.stack(masks), case)  # type: ignore[operator]
    for row, (n, mask) in enumerate(zip(lengths, masks, strict=True)):
        alone = method(ours, *(x[:1, :, :n] for x in (q, k, v)), None, case)  # type: ignore[operator]
        for name, one, batched in zip(("out", "log mass", "clusters"), alone, together, strict=False):
            assert_same_bits(f"{name} of {n} tokens", batched[row : row + 1][:, :, mask], one)
            padding = {"out": 0, "log mass": -torch.inf, "clusters": -1}[name]
            assert (batched[row][:, ~mask] == padding).all()


def test_steps_and_shapes(host: None) -> None:
    """Budgets by length give what each row gets alone with its own; layouts are those of the CPU operator."""
    ours, case = torch.ops.cuda_ops_host, Case(B=1)
    q, k, v, _ = (torch.randn(2, case.H, case.N, case.D) for _ in range(4))
    mask = torch.ones(2, case.N, dtype=torch.bool)
    mask[1, 40:] = False
    stepped = refined(ours, q, k, v, mask, case, 50, case.C + 3, case.K + 5, case.M + 1, 33)
    first = refined(ours, q[1:], k[1:], v[1:], mask[1:], case)
    second = ours.refined_clustered(q[:1], k[:1], v[:1], None, 10, 16, 6, case.W, 3, 33, SCALE, 10, [])
    for index in range(4):
        assert_same_bits("first step", stepped[index][1:], first[index])
        assert_same_bits("second step", stepped[index][:1], second[index])
    assert torch.equal(stepped[4][:1], second[4])
    assert torch.equal(stepped[4][1:, :, : case.C, : case.K], first[4])
    assert (stepped[4][1:, :, case.C :] == -1).all() and (stepped[4][1:, :, :, case.K :] == -1).all()
    on_cpu = refined(cpu, q, k, v, mask, case, 50, case.C + 3, case.K + 5, case.M + 1, 33)
    assert [x.stride() for x in stepped] == [x.stride() for x in on_cpu]


def test_nothing_to_attend_to(host: None) -> None:
    ours, case = torch.ops.cuda_ops_host, Case(B=1)
    for tokens in (0, 3):
        q, k, v = (torch.full((1, 2, tokens, case.D), torch.nan) for _ in range(3))
        mask = torch.zeros(1, tokens, dtype=torch.bool)
        for out, log_mass, *_ in (refined(ours, q, k, v, mask, case), improved(ours, q, k, v, mask, case)):
            assert torch.equal(out, torch.zeros(1, 2, tokens, case.D))
            assert torch.equal(log_mass, torch.full((1, 2, tokens), -torch.inf))


@pytest.mark.parametrize(("D", "dtype"), [(29, torch.float32), (160, torch.bfloat16)])
def test_a_bad_value_stays_in_its_head(host: None, D: int, dtype: torch.dtype) -> None:
    ours, case = torch.ops.cuda_ops_host, Case(D=D)
    q, k, v, mask = case.tensors(dtype)
    clean = (refined(ours, q, k, v, mask, case), improved(ours, q, k, v, mask, case))
    place = int(mask[0].nonzero()[4])
    for bad in (torch.nan, torch.inf, -torch.inf):
        for x in (q, k, v):
            spoilt = [y.clone() for y in (q, k, v)]
            next(s for s, y in zip(spoilt, (q, k, v), strict=True) if y is x)[0, 1, place, 3] = bad
            for method, expected in zip((refined, improved), clean, strict=True):
                out = method(ours, *spoilt, mask, case)[0]
                assert_same_bits("another head", out[0, 0], expected[0][0, 0])
                assert_same_bits("another row", out[1], expected[0][1])
