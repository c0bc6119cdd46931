"""The operators' benchmark on a GPU, with a card that is made up: all but the times themselves."""

import contextlib
import itertools
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import operator_methods
import operators
import operators_gpu
import pytest
import torch
from timed_cases import Case, gpu_suite
from torch.nn.functional import scaled_dot_product_attention

SAID = "NVIDIA H100 80GB HBM3, 580.159.04, 1980, 1980, 2619, 512.30, 41\n"


def tiny(**changes: Any) -> Case:
    return Case("tiny", 1, (31,), batch=2, heads=2, head_size=16, **changes)


class Event:
    """An event of a card on which a counted call takes 3 ms, and CALLS of anything else 40 ms."""

    calls = 0

    def __init__(self, enable_timing: bool = False):
        assert enable_timing
        self.synchronized = False

    def record(self) -> None:
        self.at = Event.calls

    def synchronize(self) -> None:
        self.synchronized = True

    def elapsed_time(self, end: "Event") -> float:
        assert end.synchronized
        return 3.0 * (end.at - self.at) or 40.0


class CapturedGraph:
    def replay(self) -> None:
        Event.calls += 1


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of torch.cuda and nvidia-smi."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    memory = itertools.count(2**20, 2**20)
    fake = SimpleNamespace(
        Event=Event,
        Stream=lambda: stream,
        CUDAGraph=CapturedGraph,
        graph=lambda graph: contextlib.nullcontext(),
        stream=lambda stream: contextlib.nullcontext(),
        current_stream=lambda: stream,
        synchronize=lambda: None,
        empty_cache=lambda: None,
        reset_peak_memory_stats=lambda: None,
        memory_allocated=lambda: next(memory),
        max_memory_allocated=lambda: next(memory) + 2**21,
        get_device_name=lambda: "NVIDIA H100 80GB HBM3",
        get_device_properties=lambda: SimpleNamespace(uuid="1234-5678"),
    )
    monkeypatch.setattr(operators_gpu, "cuda", fake)
    monkeypatch.setattr(operators_gpu.subprocess, "run", nvidia_smi)


def nvidia_smi(command: list[str], **options: Any) -> Any:
    assert command[:2] == ["nvidia-smi", "--id=GPU-1234-5678"] and "clocks.sm" in command[2]
    return SimpleNamespace(stdout=SAID)


def test_the_card_is_described() -> None:
    assert operators_gpu.machine() == f"NVIDIA H100 80GB HBM3, driver 580.159.04, CUDA {torch.version.cuda}"
    state = operators_gpu.card_state()
    assert state["clocks.sm"] == "1980" and state["power.draw"] == "512.30"


@pytest.mark.parametrize("error", [FileNotFoundError, subprocess.CalledProcessError(9, "nvidia-smi")])
def test_without_nvidia_smi(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(operators_gpu.subprocess, "run", failing)
    assert operators_gpu.card_state() == {} and "driver unknown" in operators_gpu.machine()


def test_events_give_the_mean_of_some_calls() -> None:
    def run() -> None:
        Event.calls += 1

    assert operators_gpu.events(run) == 3.0


@pytest.mark.parametrize(("dtype", "padding"), [("bfloat16", 0.0), ("float32", 0.5)])
def test_a_length_is_timed_in_graphs_and_eagerly(dtype: str, padding: float) -> None:
    rows = operators_gpu.measured_at(tiny(dtype=dtype, padding=padding), 31, 0.0)
    assert list(rows) == [name for name in operator_methods.METHODS if name != "idiap"]
    assert all(row["median_ms"] == 3.0 and row["times_sdpa"] == 1.0 and row["turns"] >= 5 for row in rows.values())
    assert all(row["eager_median_ms"] == 2.0 and row["extra_memory_mib"] > 0 for row in rows.values())
    sdpa = rows["sdpa"]
    assert sdpa["backend"] in sdpa["backends_ms"] and "math" in sdpa["backends_ms"]
    assert "cudnn" not in sdpa["backends_ms"], "the CPU has none, and what fails is left out"
    assert sdpa["card"]["clocks.mem"] == "2619"


def test_the_best_backend_is_the_fastest() -> None:
    times = iter([5.0, 4.0, 4.5, 3.0, 2.0, 2.5])
    best, found = operators_gpu.best_backend(tiny().inputs(31), lambda run: next(times))
    assert best == "math" and found == {"flash": 4.0, "math": 2.0}


def test_a_graph_with_another_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def drifting(inputs: Any, exact: int | None) -> Any:
        calls = itertools.count()
        return lambda: scaled_dot_product_attention(*inputs[:3]) + next(calls)

    monkeypatch.setitem(operator_methods.METHODS, "refined-clustered", drifting)
    monkeypatch.setattr(operators_gpu, "take_turns", lambda *_, **__: pytest.fail("it was timed"))
    with pytest.raises(SystemExit, match="refined-clustered gives another result from a CUDA graph at 31 tokens"):
        operators_gpu.measured_at(tiny(), 31, 0.0)


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the CPU's benchmark comes first here too."""
    monkeypatch.setattr(operators, "check", lambda case: sys.exit("wrong"))
    monkeypatch.setattr(operators_gpu, "measured_at", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(SystemExit, match="wrong"):
        operators.measured(tiny(device="cuda"), 0.0)


def test_a_case_on_a_gpu_is_timed_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"median_ms": 0.0123, "least_ms": 0.0122, "most_ms": 0.0124, "times_sdpa": 1.0, "extra_memory_mib": 0.5}
    monkeypatch.setattr(operators, "check", lambda case: None)
    monkeypatch.setattr(
        operators_gpu, "measured_at", lambda case, tokens, seconds: {"sdpa": row | {"backend": "flash"}}
    )
    found = operators.measured(tiny(device="cuda", dtype="bfloat16"), 0.0)
    assert found["tokens"] == {"31": {"sdpa": row | {"backend": "flash"}}}
    printed = capsys.readouterr().out
    assert "sdpa (flash)" in printed and "0.012" in printed and "threads" not in printed


def test_the_suite_of_a_gpu() -> None:
    base = Case("base", 1, dtype="bfloat16", device="cuda")
    cases = {case.name: case for case in gpu_suite(base)}
    in_flight = [cases[name] for name in ("16 rows", "4 rows", "2 rows")]
    assert [case.batch * case.tokens[0] for case in in_flight] == [16384] * 3
    assert all(case.device == "cuda" and case.instruction_set is None for case in cases.values())
    assert cases["float32"].dtype == "float32" and cases["heads of 32"].head_size == 32


@pytest.mark.parametrize(
    ("available", "message"),
    [(False, "--device cuda needs a GPU that torch sees"), (True, "no CUDA operators for torch.bfloat16")],
)
def test_what_a_gpu_is_asked_for(
    available: bool, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(operators.cuda_ops, "backend_for", lambda device, dtype: "reference")
    monkeypatch.setattr(sys, "argv", ["operators.py", "--device", "cuda"])
    with pytest.raises(SystemExit):
        operators.parse()
    assert message in capsys.readouterr().err


def test_the_type_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "require_gpu", lambda parser, dtype: None)
    for flags, dtype in ([], "float32"), (["--device", "cuda"], "bfloat16"), (["--dtype", "float16"], "float16"):
        monkeypatch.setattr(sys, "argv", ["operators.py", *flags])
        assert operators.parse().dtype == dtype
