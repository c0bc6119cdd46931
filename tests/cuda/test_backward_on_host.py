"""The gradients of full, clustered and improved clustered attention by the CUDA kernels, executed on the host."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import host_library
import pytest
import torch
from tolerance import assert_close, assert_same_bits
from torch import Tensor

from cuda_ops import reference_backward

pytestmark = pytest.mark.usefixtures("compiled", "host")

METHODS = ("full_attention", "clustered", "improved_clustered")
NAMES = ("grad_q", "grad_k", "grad_v")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Case:
    """A shape. Row 0 has all tokens, row 1 holes, row 2 few tokens in the middle, row 3 none."""

    B: int = 4
    H: int = 2
    H_kv: int = 2
    N: int = 83
    D: int = 7
    C: int = 5
    K: int = 11
    exact_below: int = 0

    def __str__(self) -> str:
        default = Case()
        return (
            "-".join(f"{name}{value}" for name, value in vars(self).items() if value != getattr(default, name))
            or "default"
        )


@dataclass(frozen=True)
class Inputs:
    """What the operators take, NaN in padded places."""

    grad: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    assignment: Tensor
    top_keys: Tensor
    clusters: int
    exact_below: int

    @property
    def scale(self) -> float:
        return 1.3 * max(self.q.shape[3], 1) ** -0.5

    def arguments(self, method: str, as_type: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[object, ...]:
        """`as_type` converts what is floating point. `out` and `log_mass` are not read."""
        grad, q, k, v = map(as_type, (self.grad, self.q, self.k, self.v))
        log_mass = torch.full(q.shape[:3], torch.nan, dtype=torch.promote_types(q.dtype, torch.float32))
        before = (grad, q, k, v, self.mask, torch.full_like(q, torch.nan), log_mass)
        if method == "full_attention":
            return (*before, self.scale)
        decisions = (self.assignment,) if method == "clustered" else (self.assignment, self.top_keys)
        return (*before, *decisions, self.clusters, self.scale, self.exact_below)

    def named(self) -> Tensor:
        """Which top keys name a valid token."""
        inside = (self.top_keys >= 0) & (self.top_keys < self.q.shape[2])
        if self.mask is None or not self.q.shape[2]:
            return inside
        rows = torch.arange(len(self.mask))[:, None, None, None]
        return inside & self.mask[rows, self.top_keys.masked_fill(~inside, 0).long()]

    def without_padding(self) -> "Inputs":
        """The same decisions, without padded tokens: the reference takes them at their word."""
        assignment = self.assignment if self.mask is None else self.assignment.masked_fill(~self.mask[:, None], -1)
        return replace(self, assignment=assignment, top_keys=self.top_keys.masked_fill(~self.named(), -1))

    def of_row(self, b: int) -> "Inputs":
        """The valid tokens of one row alone, without a mask."""
        assert self.mask is not None
        valid = self.mask[b].nonzero()[:, 0]
        rank = torch.cumsum(self.mask[b], 0) - 1
        named, top = self.named()[b : b + 1], self.top_keys[b : b + 1]
        top = torch.where(named, rank[top.masked_fill(~named, 0).long()], -1).int()
        heads = (x[b : b + 1, :, valid].clone() for x in (self.grad, self.q, self.k, self.v))
        alone = self.assignment[b : b + 1, :, valid].clone()
        return Inputs(*heads, None, alone, top, self.clusters, self.exact_below)


def make_mask(case: Case) -> Tensor:
    mask = torch.rand(case.B, case.N) < 0.7
    mask[0] = True
    if case.B > 2:
        mask[2] = False
        mask[2, case.N // 3 : case.N // 3 + 9] = True
    if case.B > 3:
        mask[3] = False
    return mask


def strided(*shape: int) -> Tensor:
    """(B, H, N, D) with the strides of a (B, N, H, D)."""
    B, H, N, D = shape
    return torch.randn(B, N, H, D).transpose(1, 2)


def make_inputs(case: Case, dtype: torch.dtype = torch.float32, masked: bool = True) -> Inputs:
    """Decisions at random: every fifth token in no cluster, an empty cluster, top keys with gaps, on padding and outside."""
    torch.manual_seed(7)
    mask = make_mask(case) if masked else torch.ones(case.B, case.N, dtype=torch.bool)
    queries, keys = (case.B, case.H, case.N, case.D), (case.B, case.H_kv, case.N, case.D)
    padded = ~mask[:, None, :, None]
    grad, q, k, v = (
        strided(*shape).to(dtype).masked_fill(padded, torch.nan) for shape in (queries, queries, keys, keys)
    )
    assignment = torch.randint(0, case.C, queries[:3], dtype=torch.int32)
    if case.C > 2:
        assignment[assignment == 1] = 0
    assignment[torch.rand(queries[:3]) < 0.1] = case.C + 3
    assignment = torch.where(mask[:, None], assignment, torch.randint(-9, 99, queries[:3]).int())
    top = torch.rand(case.B, case.H, case.C, case.N).topk(min(case.K, case.N), -1).indices.sort(-1).values.int()
    top[torch.rand(top.shape) < 0.1] = -1
    if case.K > 3:
        top[..., -1] = case.N + 5
        top[:, :, case.C // 2] = -1  # a cluster without keys
    return Inputs(
        grad, q, k, v, mask if masked else None, assignment, top.contiguous(), case.C, exact_below=case.exact_below
    )


def on_host(method: str, inputs: Inputs) -> tuple[Tensor, ...]:
    return getattr(torch.ops.cuda_ops_host, f"{method}_backward")(*inputs.arguments(method))


def check(method: str, inputs: Inputs) -> None:
    """Against the CPU operator in float64, within the error of the reference in the same dtype."""
    actual = on_host(method, inputs)
    expected = getattr(torch.ops.cuda_ops, f"{method}_backward")(*inputs.arguments(method, lambda x: x.double()))
    reference = getattr(reference_backward, f"{method}_backward")(*inputs.without_padding().arguments(method))
    for name, got, want, same_dtype in zip(NAMES, actual, expected, reference, strict=True):
        assert got.dtype == inputs.q.dtype
        assert got.transpose(1, 2).is_contiguous()
        assert_close(f"{method}.{name}", got, want, same_dtype, gradient=True)
        if inputs.mask is not None:
            assert (got.transpose(1, 2)[~inputs.mask] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", [Case(exact_below=70), Case(H=4, D=64), Case(B=2, D=131, N=71)], ids=str)
def test_gradients(case: Case, method: str, dtype: torch.dtype) -> None:
    check(method, make_inputs(case, dtype))


@pytest.mark.parametrize(
    "case",
    [
        Case(B=1, H=6, H_kv=2, N=131, D=13, C=3, K=70),
        Case(N=13, C=29, K=5),
        Case(N=31, K=0),
        Case(N=29, K=29, C=1),
        Case(B=2, H=1, H_kv=1, N=37, C=70, K=3),
        Case(N=23, exact_below=1000),
        Case(B=3, N=1, K=1),
        Case(B=1, H=1, H_kv=1, N=521, D=5, C=2, K=9),
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
def test_shapes(case: Case, masked: bool) -> None:
    for method in METHODS:
        check(method, make_inputs(case, masked=masked))


@pytest.mark.parametrize("method", METHODS)
def test_every_order_of_threads(order: str, method: str) -> None:
    inputs = make_inputs(Case(B=3, H=4, D=21, K=67, C=3, exact_below=20))
    check(method, inputs)
    actual = on_host(method, inputs)
    host_library.set_order("forward")
    for name, got, want in zip(NAMES, actual, on_host(method, inputs), strict=True):
        assert_same_bits(name, got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_same_bits_alone_and_in_a_padded_batch(method: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(Case(H=4, N=149, D=19, exact_below=30), dtype)
    together = on_host(method, inputs)
    for b in range(3):
        alone = on_host(method, inputs.of_row(b))
        for name, one, all_rows in zip(NAMES, alone, together, strict=True):
            assert_same_bits(f"row {b} of {name}", one[0], all_rows[b][:, inputs.mask[b]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["q", "k", "v", "grad"])
def test_bad_values_spoil_their_own_head_only(method: str, where: str) -> None:
    inputs = make_inputs(Case(B=2, N=41))
    expected = on_host(method, inputs)
    getattr(inputs, where)[1, 1, inputs.mask[1].nonzero()[3, 0]] = torch.tensor([torch.nan, torch.inf, -torch.inf] * 3)[
        :7
    ]
    for name, one, other in zip(NAMES, on_host(method, inputs), expected, strict=True):
        assert_same_bits(f"row 0 of {name}", one[0], other[0])
        assert_same_bits(f"head 0 of {name}", one[1, 0], other[1, 0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", [Case(B=0), Case(N=0, K=0), Case(D=0), Case(H=0)], ids=str)
def test_empty(method: str, case: Case) -> None:
    inputs = make_inputs(case, masked=False)
    for gradient, like in zip(on_host(method, inputs), (inputs.q, inputs.k, inputs.v), strict=True):
        assert gradient.shape == like.shape
        assert (gradient == 0).all()


def test_other_shapes_and_types_are_refused() -> None:
    inputs = make_inputs(Case(N=5, K=2))
    arguments = inputs.arguments("improved_clustered")
    for place, wrong in [
        (0, inputs.grad[:, :, 1:]),
        (0, inputs.grad.half()),
        (7, inputs.assignment.long()),
        (8, inputs.top_keys[:, :, 1:]),
    ]:
        with pytest.raises(RuntimeError):
            torch.ops.cuda_ops_host.improved_clustered_backward(*arguments[:place], wrong, *arguments[place + 1 :])
