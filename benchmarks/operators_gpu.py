"""How benchmarks/operators.py times a case on a GPU: by events, each method inside a CUDA graph, with eager figures beside.

Both sides are replayed in one run, in turns, on the same inputs: caches are as warm for one as for the other. SDPA is
timed with every backend that takes the case, and its best one is the baseline.
"""

import contextlib
import subprocess
import warnings
from collections.abc import Callable
from typing import Any

import torch
from machine import summary, take_turns
from operator_methods import SDPA, Method, Run, methods_for, sdpa
from timed_cases import Case, Inputs
from torch import Tensor, cuda
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
CALLS = 20  # between two events: one call may be shorter than what starting it takes
DIGITS = 5  # of a millisecond
ASKED = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "temperature.gpu")


def machine() -> str:
    """The card, its driver and CUDA, for the results file."""
    state = card_state()
    return f"{cuda.get_device_name()}, driver {state.get('driver_version', 'unknown')}, CUDA {torch.version.cuda}"


def card_state() -> dict[str, str]:
    """What nvidia-smi says of the card now: clocks in MHz, watts, degrees; empty where it cannot be asked."""
    command = ["nvidia-smi", f"--id=GPU-{cuda.get_device_properties().uuid}"]
    command += [f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(ASKED, (word.strip() for word in said.splitlines()[0].split(",")), strict=True))


def events(run: Callable[[], Any]) -> float:
    """Milliseconds of one call, as the mean of some without a pause."""
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    start.record()
    for _ in range(CALLS):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / CALLS


class Graph:
    """A method's call, captured once and replayed; `output` is what each replay writes."""

    def __init__(self, run: Run):
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for _ in range(3):
                run()
        cuda.current_stream().wait_stream(side)
        self.graph = cuda.CUDAGraph()
        with cuda.graph(self.graph):
            self.output = run()

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.output


def with_backend(name: str) -> Method:
    """PyTorch's exact attention by one of its backends."""

    def method(inputs: Inputs, exact: int | None) -> Run:
        run = sdpa(inputs, exact)

        def with_it() -> Tensor:
            with sdpa_kernel(BACKENDS[name]):
                return run()

        return with_it

    return method


def best_backend(inputs: Inputs, clock: Callable[[Run], float] = events) -> tuple[str, dict[str, float]]:
    """The fastest backend of SDPA for these inputs, and the milliseconds of all that take them."""
    times = {}
    for name in BACKENDS:
        run = with_backend(name)(inputs, None)
        with contextlib.suppress(RuntimeError), warnings.catch_warnings():
            # what it does not take (type, size, mask), or has not the memory for, it says by warnings and an error
            warnings.simplefilter("ignore")
            run()
            times[name] = round(min(clock(run) for _ in range(3)), DIGITS)
    cuda.empty_cache()
    return min(times, key=times.__getitem__), times


def measured_at(case: Case, tokens: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Times of every method at one length: of replays, with those of eager calls, SDPA's backend and the card's clocks.

    Raises:
        SystemExit: a graph's replay has other bits than the call that it was captured from.
    """
    inputs = case.inputs(tokens)
    backend, by_backend = best_backend(inputs)
    methods = {**methods_for(case), SDPA: with_backend(backend)}
    eager = {name: method(inputs, None) for name, method in methods.items()}
    graphs = {name: Graph(run) for name, run in eager.items()}
    for name, graph in graphs.items():
        if not torch.equal(graph().clone(), eager[name]()):
            raise SystemExit(f"{name} gives another result from a CUDA graph at {tokens} tokens: nothing is timed.")
    replayed = summary(take_turns(graphs, seconds, clock=events), SDPA, DIGITS)
    state = card_state()
    called = summary(take_turns(eager, seconds / 2, clock=events), SDPA, DIGITS)
    rows: dict[str, dict[str, Any]] = {}
    for name, row in replayed.items():
        memory = extra_memory(eager[name])
        rows[name] = {**row, "eager_median_ms": called[name]["median_ms"], "extra_memory_mib": memory}
    rows[SDPA] |= {"backend": backend, "backends_ms": by_backend, "card": state}
    return rows


def extra_memory(run: Run) -> float:
    """MiB by which a call's peak is above what there was before, less its output."""
    cuda.synchronize()
    cuda.reset_peak_memory_stats()
    before = cuda.memory_allocated()
    output = run()
    cuda.synchronize()
    return round(max(0, cuda.max_memory_allocated() - before - output.nbytes) / 2**20, 1)
