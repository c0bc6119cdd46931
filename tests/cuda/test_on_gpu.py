"""What only a GPU can show: streams, graphs, compilation, sizes that the host is too slow for, memory, synchronisation.

The operators' values and bits there are tested by tests/ops itself: CUDA_OPS_TEST_BACKEND=cuda (test_operator_suite.py).
"""

import os
import warnings
from collections.abc import Callable, Iterator

import operator_backend
import pytest
import torch
from everything import random_batch, run_backward, run_forward
from tolerance import assert_close, assert_same_bits
from torch import Tensor

import cuda_ops
from cuda_ops import _library

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
DEVICE = "cuda"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

if torch.cuda.is_available():
    # What cuBLAS wants of deterministic programs, before it is loaded: poisoned_memory makes torch ask for it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

Call = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, ...]]


def full_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    return cuda_ops.full_attention(q, k, v, mask)


def clustered(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    return cuda_ops.clustered(q, k, v, mask, PLANES[q.shape[3]])


def improved_clustered(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    return cuda_ops.improved_clustered(q, k, v, mask, PLANES[q.shape[3]])


def refined_clustered(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    return cuda_ops.refined_clustered(q, k, v, mask, exact_below=40)


def refined_clustered_at_any_length(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    """Without the exact path of short rows, which takes a launch of its own."""
    return cuda_ops.refined_clustered(q, k, v, mask)


CALLS: list[Call] = [full_attention, clustered, improved_clustered, refined_clustered]
PLANES: dict[int, Tensor] = {}
every_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)


@pytest.fixture(scope="module", autouse=True)
def planes() -> Iterator[None]:
    """Made beforehand: a graph cannot capture a copy from the CPU."""
    for size in (8, 16, 64):
        generator = torch.Generator().manual_seed(size)
        PLANES[size] = torch.randn(63, size, generator=generator).to(DEVICE)
    yield
    PLANES.clear()


def inputs(
    B: int = 3, H: int = 4, N: int = 517, D: int = 64, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v of two key heads for four query heads if there are as many, and a mask: holes, a short row, a long one."""
    generator = torch.Generator().manual_seed(seed)
    kv_heads = H // 2 if H % 2 == 0 else H
    q, k, v = (torch.randn(B, N, h, D, generator=generator).to(dtype).transpose(1, 2) for h in (H, kv_heads, kv_heads))
    mask = torch.rand(B, N, generator=generator) < 0.8
    mask[0, N // 16 :] = False
    return q.to(DEVICE), k.to(DEVICE), v.to(DEVICE), mask.to(DEVICE)


def gradients(call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, grad: Tensor) -> tuple[Tensor, ...]:
    """The outputs, and the gradients of q, k, v."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    outputs = call(*leaves, mask)
    return (*(x.detach() for x in outputs), *torch.autograd.grad(outputs[0], leaves, grad))


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_same_bits(f"result {number}", one, other)


def test_every_operator_is_there() -> None:
    names = operator_backend.all_names()
    assert not [name for name in names if not operator_backend.has_kernel("cuda_ops", name, "CUDA")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_backend(dtype: torch.dtype) -> None:
    assert cuda_ops.backend_for("cuda", dtype) == "cuda"


def test_float64_runs_on_the_reference_and_says_so() -> None:
    assert cuda_ops.backend_for("cuda", torch.float64) == "reference"
    _library._warn_once.cache_clear()
    x, *_ = inputs(B=1, N=29, dtype=torch.float64)
    with pytest.warns(_library.ReferenceBackendWarning, match=r"no operators for torch\.float64 tensors on 'cuda'"):
        out, _ = cuda_ops.full_attention(x, x, x)
    expected = torch.nn.functional.scaled_dot_product_attention(*(x.cpu(),) * 3)
    assert_close("out", out.cpu(), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cuda_ops.full_attention(x, x, x)


# CUDA graphs.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_call
def test_a_graph_is_captured_and_replayed(call: Call, dtype: torch.dtype) -> None:
    """With other inputs, and another mask, than those it was captured with."""
    static, others = inputs(dtype=dtype), inputs(dtype=dtype, seed=1)
    expected, before = call(*others), call(*static)
    graph = captured(lambda: call(*static))
    graph.replay()
    assert_same(graph.results, before)
    for one, other in zip(static, others, strict=True):
        one.copy_(other)
    graph.replay()
    assert_same(graph.results, expected)


@every_call
def test_a_graph_with_gradients(call: Call) -> None:
    static, others = inputs(dtype=torch.float32), inputs(dtype=torch.float32, seed=1)
    grad = torch.randn(static[0].shape, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    expected = gradients(call, *others, grad)
    graph = captured(lambda: gradients(call, *static, grad))
    for one, other in zip(static, others, strict=True):
        one.copy_(other)
    graph.replay()
    assert_same(graph.results, expected)


class captured:
    """What a function does, as a graph; `results` are its tensors, written by each replay."""

    def __init__(self, function: Callable[[], tuple[Tensor, ...]]):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = function()

    def replay(self) -> None:
        self.graph.replay()
        torch.cuda.synchronize()


# Streams and synchronisation.


@every_call
def test_on_a_side_stream(call: Call) -> None:
    """The inputs get there late, on that stream: an operator on another would read what was there before."""
    late = inputs()
    expected = call(*late)
    here = [torch.zeros_like(x) for x in late]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for one, other in zip(here, late, strict=True):
            one.copy_(other)
        results = call(*here)
    stream.synchronize()
    assert_same(results, expected)


def test_two_streams_at_once() -> None:
    """Nothing is shared between calls: no memory that a library keeps for itself."""
    sets = [inputs(seed=seed) for seed in range(4)]
    expected = [refined_clustered(*one) for one in sets]
    streams = [torch.cuda.Stream() for _ in sets]
    torch.cuda.synchronize()
    results: list[tuple[Tensor, ...]] = []
    for stream, one in zip(streams, sets, strict=True):
        with torch.cuda.stream(stream):
            results.append(refined_clustered(*one))
    torch.cuda.synchronize()
    for one, other in zip(results, expected, strict=True):
        assert_same(one, other)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@every_call
def test_no_synchronisation_with_the_host(call: Call) -> None:
    q, k, v, mask = inputs(dtype=torch.float32)
    grad = torch.ones_like(q)
    gradients(call, q, k, v, mask, grad)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(call, q, k, v, mask, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_on_another_device_than_the_current_one() -> None:
    here = inputs()
    there = [x.to("cuda:1") for x in here]
    results = cuda_ops.refined_clustered(*there, exact_below=40)
    assert all(x.device.index == 1 for x in results)
    assert_same(tuple(x.to(here[0].device) for x in results), refined_clustered(*here))


# torch.compile and autocast.


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # inductor's advice for products that it does not make
@every_call
def test_compile_in_one_graph(call: Call) -> None:
    """Through inductor, which checks the strides of what an operator returns."""
    torch._dynamo.reset()

    def function(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return call(q, k, v, mask)[0].transpose(1, 2)

    compiled = torch.compile(function, fullgraph=True)
    for N in (517, 61):
        arguments = inputs(N=N)
        assert_same_bits(f"N={N}", compiled(*arguments), function(*arguments))


def test_autocast_changes_nothing() -> None:
    batch = random_batch(torch.float32, N=67, H=4, H_kv=2, D=19, exact_below=12)
    moved = batch.inputs.changed(
        **{name: getattr(batch.inputs, name).to(DEVICE) for name in ("q", "k", "v", "mask", "planes")}
    )
    expected = run_forward(moved) | run_backward(moved, batch.grad.to(DEVICE))
    with torch.autocast(DEVICE, torch.bfloat16):
        results = run_forward(moved) | run_backward(moved, batch.grad.to(DEVICE))
    for name, result in results.items():
        assert_same_bits(name, result, expected[name])


# Sizes.


@every_call
def test_each_row_of_a_large_batch_is_what_it_is_alone(call: Call) -> None:
    q, k, v, mask = inputs(B=67, H=2, N=611)
    together = call(q, k, v, mask)
    for b in (0, 1, 31, 66):
        tokens = mask[b].nonzero().flatten()
        alone = call(*(x[b : b + 1, :, tokens].contiguous() for x in (q, k, v)), None)
        assert_same_bits(f"out of row {b}", together[0][b : b + 1][:, :, tokens], alone[0])
        assert_same_bits(f"log mass of row {b}", together[1][b : b + 1][:, :, tokens], alone[1])


def without_scores(B: int, H: int, N: int, D: int) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Inputs whose keys are 0: by every method each query gets the mean of the valid values."""
    q, k, v, mask = inputs(B=B, H=H, N=N, D=D, dtype=torch.float32)
    k = torch.zeros_like(k)
    weights = mask.double() / mask.sum(1, keepdim=True).clamp(min=1)
    mean = torch.einsum("bn,bhnd->bhd", weights, v.double()).repeat_interleave(H // k.shape[1], 1)
    return (q, k, v, mask), mean


@pytest.mark.parametrize(
    ("B", "H", "N", "D"), [(4096, 16, 17, 8), (65536, 1, 17, 8), (1, 2, 65536, 16), (2, 1, 65521, 8)]
)
@every_call
def test_many_heads_and_many_tokens(call: Call, B: int, H: int, N: int, D: int) -> None:
    arguments, mean = without_scores(B, H, N, D)
    out, log_mass, *_ = call(*arguments)
    mask = arguments[3][:, None].expand(B, H, N)
    expected = torch.where(mask[..., None], mean[:, :, None], 0.0)
    assert (out.double() - expected).abs().max() <= 1e-4
    count = arguments[3].sum(1).double()[:, None, None].expand(B, H, N)
    assert (log_mass.double() - count.log())[mask].abs().max() <= 1e-4
    assert (log_mass[~mask] == -torch.inf).all()


@every_call
def test_a_long_row_has_the_same_bits_in_a_longer_one(call: Call) -> None:
    q, k, v, _ = inputs(B=1, H=2, N=20_011, D=16, dtype=torch.float32)
    alone = call(q, k, v, None)
    tokens = torch.arange(20_011, device=DEVICE) + torch.arange(20_011, device=DEVICE) // 7 + 1000
    mask = torch.zeros(1, 25_000, dtype=torch.bool, device=DEVICE)
    mask[0, tokens] = True
    wide = [x.new_full((1, x.shape[1], 25_000, 16), torch.nan) for x in (q, k, v)]
    for one, other in zip(wide, (q, k, v), strict=True):
        one[:, :, tokens] = other
    padded = call(*wide, mask)
    assert_same_bits("out", padded[0][:, :, tokens], alone[0])
    assert_same_bits("log mass", padded[1][:, :, tokens], alone[1])


@pytest.mark.parametrize("call", [improved_clustered, clustered, refined_clustered], ids=lambda call: call.__name__)
def test_memory_is_linear_in_the_number_of_tokens(call: Call) -> None:
    def peak(tokens: int) -> int:
        q, k, v, _ = inputs(B=1, H=2, N=tokens, D=16, dtype=torch.float32)
        grad = torch.ones_like(q)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients(call, q, k, v, None, grad)
        return torch.cuda.max_memory_allocated() - before

    peak(1000)
    short, long = peak(32_768), peak(65_536)
    assert long <= 2.1 * short + 2**21, (
        f"{short / 2**20:.0f} MiB for 32,768 tokens, {long / 2**20:.0f} for twice as many"
    )
    assert long < 65_536**2


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("call", [improved_clustered, refined_clustered_at_any_length], ids=lambda call: call.__name__)
def test_launches(call: Call, masked: bool) -> None:
    """At most 12 kernels a layer, and two more for a mask; without those that poison the memory."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    q, k, v, mask = inputs()
    arguments = (q, k, v, mask if masked else None)
    call(*arguments)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call(*arguments)
        torch.cuda.synchronize()
    on_device = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [name for name in on_device if not name.startswith("Memcpy")]
    assert 0 < len(kernels) <= 12 + 2 * masked, "\n".join(kernels)
