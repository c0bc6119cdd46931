"""The benchmark of the operators: what it refuses to time, the cases it runs, what it writes, and the page made from that."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fixtures
import operator_memory
import operator_methods
import operators
import operators_page
import pytest
import readme_tables
import torch
from timed_cases import Case, suite
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

TINY = {"batch": 2, "heads": 2, "head_size": 16}
FIELDS = {
    "median_ms",
    "lower_quartile_ms",
    "upper_quartile_ms",
    "least_ms",
    "most_ms",
    "turns",
    "times_sdpa",
    "extra_memory_mib",
}


def tiny(name: str = "tiny", **changes: Any) -> Case:
    return Case(name, 1, (31,), **{**TINY, **changes})


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is not measured: that takes a process for each method."""
    monkeypatch.setattr(operators, "extra_memory", lambda case, names, tokens: dict.fromkeys(names, 0.5))


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(
    ("dtype", "padding"), [("float32", 0.0), ("float32", 0.5), ("bfloat16", 0.0), ("float16", 0.3), ("float64", 0.9)]
)
def test_a_case_is_checked_and_timed(dtype: str, padding: float) -> None:
    found = operators.measured(tiny(dtype=dtype, padding=padding), seconds=0.0)
    assert found["shape"] == {"B": 2, "H": 2, "D": 16, "dtype": dtype}
    assert found["padding"] == padding and found["threads"] == 1 and found["backend"].startswith("cpu-")
    rows = found["tokens"]["31"]
    assert list(rows) == [*(name for name in operator_methods.METHODS if name != "idiap")]
    assert all(set(row) == FIELDS and row["turns"] >= 3 for row in rows.values())
    assert rows["sdpa"]["times_sdpa"] == 1 and rows["sdpa"]["least_ms"] <= rows["sdpa"]["lower_quartile_ms"]


def test_padding_is_at_the_end_of_each_row() -> None:
    inputs = tiny(padding=0.25).inputs(20)
    assert inputs.mask is not None and inputs.mask.shape == (2, 20)
    assert inputs.mask[:, :15].all() and not inputs.mask[:, 15:].any()
    assert tiny().inputs(20).mask is None and tiny(padding=0.99).valid(20) == 1


def off_by(amount: float) -> Any:
    """A method that is wrong by so much on valid tokens."""

    def method(inputs: Any, exact: int | None) -> Any:
        mask = None if inputs.mask is None else inputs.mask[:, None, None, :]
        return lambda: scaled_dot_product_attention(*inputs[:3], attn_mask=mask) + amount

    return method


@pytest.mark.parametrize("amount", [1e-3, float("nan")])
def test_a_wrong_result_is_not_timed(amount: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(operator_methods.METHODS, "refined-clustered", off_by(amount))
    monkeypatch.setattr(operators, "take_turns", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(
        SystemExit,
        match=r"refined-clustered is off by (1.0e-03|nan) in the case 'tiny' at 331 tokens, where every key is exact and at "
        r"most 1e-05 is rounding: nothing is timed\. Build the operators again",
    ):
        operators.measured(tiny(), 0.0)


def test_what_a_method_writes_on_padding_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(operator_methods.METHODS, "improved-clustered", off_by(0.0))
    with pytest.raises(SystemExit, match="improved-clustered is not 0 on padding in the case 'tiny' at 331 tokens"):
        operators.measured(tiny(padding=0.5), 0.0)


class StandIn:
    """In place of idiap's attention: exact over the valid keys, with the signature and layout that idiap's has."""

    def __init__(
        self, clusters: int, iterations: int = 10, bits: int = 32, topk: int = 32, attention_dropout: float = 0.1
    ):
        assert (clusters, iterations, bits, attention_dropout) == (25, 10, 63, 0.0)

    def eval(self) -> "StandIn":
        return self

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, every: Any, queries: Any, keys: Any) -> Tensor:
        assert every.tokens == q.shape[1] and queries is keys
        valid = torch.arange(q.shape[1]) < keys.lengths[:, None]
        found = scaled_dot_product_attention(
            *(one.transpose(1, 2) for one in (q, k, v)), attn_mask=valid[:, None, None, :]
        )
        return (found * valid[:, None, :, None]).transpose(1, 2)


@pytest.fixture
def idiap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stand-in for idiap's package."""
    package, attention, masking = (ModuleType(f"fast_transformers{name}") for name in ("", ".attention", ".masking"))
    attention.ImprovedClusteredAttention = StandIn  # type: ignore[attr-defined]
    masking.FullMask = lambda tokens: SimpleNamespace(tokens=tokens)  # type: ignore[attr-defined]
    masking.LengthMask = lambda lengths, max_len: SimpleNamespace(lengths=lengths)  # type: ignore[attr-defined]
    for module in (package, attention, masking):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    operator_methods.idiap_missing.cache_clear()
    yield
    operator_methods.idiap_missing.cache_clear()


@pytest.mark.usefixtures("no_memory", "idiap")
@pytest.mark.parametrize("padding", [0.0, 0.5])
def test_idiap_is_timed_where_it_can_be_imported(padding: float) -> None:
    assert "idiap" in operators.measured(tiny(padding=padding), 0.0)["tokens"]["31"]
    assert "idiap" not in operator_methods.methods_for(tiny(dtype="bfloat16"))
    assert operator_methods.budgets()["idiap"] == {"clusters": 25, "topk": 32, "bits": 63, "iterations": 10}


def test_the_suite_changes_one_thing_at_a_time() -> None:
    base = Case("base", 4)
    cases = {case.name: case for case in suite(base)}
    assert cases["half the tokens padded"].padding == 0.5 and cases["half the tokens padded"].batch == 8
    assert [cases[f"heads of {size}"].head_size for size in (32, 128)] == [32, 128]
    assert [cases[name].dtype for name in ("bfloat16", "float16")] == ["bfloat16", "float16"]
    assert [cases[f"one head, {name}"].threads for name in ("one thread", "all threads")] == [1, 4]
    assert cases["AVX2"].instruction_set == "avx2"
    assert "one head, all threads" not in {case.name for case in suite(Case("base", 1))}


def test_an_instruction_set_that_is_missing_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "must be one of portable, avx2, avx512, neon, got 'sse9'" in str(operators.instruction_set_missing("sse9"))
    monkeypatch.setattr(operators, "instruction_set_missing", lambda name: f"{name} cannot be had")
    assert operators.measured_elsewhere(tiny("AVX2", instruction_set="avx2"), 0.0) is None
    assert "AVX2: left out: avx2 cannot be had" in capsys.readouterr().out


def hungry(inputs: Any, exact: int | None) -> Any:
    """A method that touches 64 MiB and gives them back; its output is another 16 MiB, its inputs are there before."""

    def run() -> Tensor:
        output = torch.ones(2**22)
        torch.ones(2**24).sum()
        return output

    return run


def test_extra_memory_is_the_peak_without_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(operator_methods.METHODS, "hungry", hungry)
    found = operator_memory.of_one_call(tiny(), "hungry", 31)
    if found is None:
        pytest.skip("this system does not let a process reset its peak memory")
    assert 60 < found < 68


def test_extra_memory_is_measured_in_other_processes() -> None:
    found = operator_memory.extra_memory(tiny(), ["sdpa", "refined-clustered"], 512)
    assert list(found) == ["sdpa", "refined-clustered"]
    assert all(size is None or 0 <= size < 8 for size in found.values())


@pytest.mark.usefixtures("no_memory")
def test_the_results_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "operators-cpu.json"
    flags = ["--suite", "--tokens", "31", "--shape", "1", "2", "16", "--seconds", "0", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["operators.py", *flags, "--output", str(output)])
    monkeypatch.setattr(operators, "measured_elsewhere", lambda case, seconds: None)
    monkeypatch.setattr(operators, "suite", lambda base: suite(base)[-2:])
    operators.main()
    assert "idiap's pytorch-fast-transformers is left out: it cannot be imported" in capsys.readouterr().out
    results = json.loads(output.read_text(encoding="utf-8"))
    head = {"command", "date", "machine", "versions", "shape", "padding", "threads", "backend", "budgets", "tokens"}
    assert set(results) == head | {"cases"}
    assert [case["name"] for case in results["cases"]] == ["one head, one thread"]
    assert "--output operators-cpu.json" in results["command"]
    monkeypatch.setattr(readme_tables, "RESULTS", output.parent)
    assert readme_tables.operators_section().splitlines()[2].startswith("| 31 |")
    assert "| one head, one thread: B=1, H=1, D=16, float32, 1 thread, cpu-" in operators_page.section(results)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--padding", "1"], "--padding is a fraction, 0 or more and below 1, got 1.0"),
        (["--tokens", "512", "0"], r"--tokens takes whole numbers from 1, got \[512, 0\]"),
    ],
)
def test_options_out_of_range(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["operators.py", *flags])
    with pytest.raises(SystemExit):
        operators.parse()
    assert message.replace("\\", "") in capsys.readouterr().err


def test_the_crossover_is_interpolated_in_logarithms() -> None:
    lengths, ours, exact = [100, 400, 1600], [100.0, 400.0, 1600.0], [25.0, 400.0 * 4 / 3, 1600.0 * 16 / 3]
    found = operators_page.crossover(lengths, ours, [n * n / 300 for n in lengths])
    assert found == pytest.approx(300)
    assert operators_page.crossover(lengths, ours, [2 * time for time in ours]) == 100
    assert operators_page.crossover(lengths, ours, [time / 2 for time in ours]) is None
    last = operators_page.crossover([*lengths, 6400], [*ours, 6400.0], [50.0, 800.0, 1200.0, 12800.0])
    assert last == pytest.approx(1600 * 4 ** (math.log(4 / 3) / math.log(8 / 3)))
    assert operators_page.interpolated(lengths, exact, 400) == pytest.approx(exact[1])
    assert operators_page.interpolated(lengths, ours, 250) == pytest.approx(250)


def test_the_page_has_times_crossovers_cases_and_memory() -> None:
    lines = operators_page.section(fixtures.operators()).splitlines()
    assert "| tokens | SDPA | `refined-clustered` | `idiap` |" in lines
    first = "| 512 | 2.62 [2.36, 3.15] | 1.71 [1.54, 2.05] **1.5×** | 51.20 [46.08, 61.44] **0.1×** |"
    assert first in lines
    assert "- `refined-clustered`: faster from about 333 tokens on" in lines
    assert "- `idiap`: no crossover up to 2,048 tokens" in lines
    padded = "half the tokens padded: B=8, H=12, D=64, float32, 50% padding, 2 threads, cpu-avx512"
    assert any(line.startswith(f"| {padded} | 512 | 2.62") for line in lines)
    assert any(line.startswith("| bfloat16 | 2,048 |") and line.endswith("| – |") for line in lines)
    assert "| base | 128 | 1.5 | 12.2 | 40.0 |" in lines and "| bfloat16 | 512 | 1.5 | 12.2 | – |" in lines
    assert lines[-1].startswith("`python benchmarks/some.py --shared ../shared` on 2026-01-02: Some Processor, torch")


def test_the_page_has_a_second_processor() -> None:
    other = {**fixtures.operators(), "backend": "cpu-avx2", "date": "2026-02-03"}
    text = operators_page.section({**fixtures.operators(), operators_page.AVX2: other})
    first, second = text.split("**A processor with AVX2 only**, B=1, H=12, D=64, float32, 2 threads, cpu-avx2:")
    assert "on 2026-01-02" in first and "on 2026-01-02" not in second
    assert "| 512 | 2.62 [2.36, 3.15] |" in second and "on 2026-02-03" in second


def test_the_page_without_cases_memory_or_any_figures() -> None:
    results = fixtures.operators()
    results["cases"] = []
    for row in results["tokens"].values():
        for values in row.values():
            values["extra_memory_mib"] = None
    text = operators_page.section(results)
    assert "Other cases" not in text and "Extra memory" not in text and "AVX2 only" not in text
    assert operators_page.section(None).startswith("Not measured yet")


def test_the_plot(tmp_path: Path) -> None:
    operators_page.draw(fixtures.operators(), tmp_path / "images" / "plot.png")
    assert (tmp_path / "images" / "plot.png").read_bytes().startswith(b"\x89PNG")
