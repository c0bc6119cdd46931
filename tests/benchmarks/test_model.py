"""The benchmark of whole encoders: its formulas, what it counts, what it skips and why, and that it goes on where it stopped."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import model
import model_measures
import model_memory
import model_page
import model_plot
import model_shapes
import model_short
import pytest
import torch
from transformers import BertConfig, ModernBertConfig, PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sliding_window_bidirectional_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bert_cluster.dispatch import NAME

SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 60}


def bert(tokens: int) -> PretrainedConfig:
    return BertConfig(num_hidden_layers=3, max_position_embeddings=tokens, **SIZES)


def modernbert(tokens: int) -> PretrainedConfig:
    sizes = {"num_hidden_layers": 4, "local_attention": 8, "global_attn_every_n_layers": 3}
    return ModernBertConfig(**SIZES, **sizes, **model_shapes.SPECIAL)


TINY = model_shapes.Shape("bert-base", "tiny", 200, bert)
WINDOWED = model_shapes.Shape("modernbert-base", "tiny", None, modernbert)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny shapes under the known names, and no process for the memory."""
    shapes = {shape.name: shape for shape in (TINY, WINDOWED)}
    monkeypatch.setattr(model, "SHAPES", shapes)
    monkeypatch.setattr(model_memory, "growth", lambda flags: 1000 * flags["tokens"] * flags["batch"])


def run(output: Path, *flags: str) -> dict[str, Any]:
    """The results after one call of the command."""
    given = ["--threads", str(torch.get_num_threads()), "--seconds", "0", "--shapes", "bert-base", *flags]
    model.main([*given, "--output", str(output)])
    results: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return results


def test_the_ceiling_is_amdahls() -> None:
    assert model_measures.ceiling(full=10.0, rest=4.0, windows=0.0, layers=12, operator=0.5) == pytest.approx(1.0)
    assert model_measures.ceiling(full=10.0, rest=4.0, windows=0.0, layers=2, operator=0.5) == pytest.approx(2.0)
    assert model_measures.ceiling(full=10.0, rest=1.0, windows=3.0, layers=2, operator=0.5) == pytest.approx(2.0)
    row = model_measures.method_row([2.0, 4.0, 9.0], [1.0, 1.5, 2.0], [0.0, 0.0, 0.0], 0.5, 600, 2, 8.0, 2.0)
    assert (row["median_s"], row["least_s"], row["most_s"], row["turns"]) == (4.0, 2.0, 9.0, 3)
    assert row["tokens_per_s"] == 150 and row["attention_s"] == 1.5
    assert row["times_full"] == 2 and row["ceiling"] == pytest.approx(8 / 3)
    assert row["reached"] == pytest.approx((2.0 + 2 * 0.5) / 4.0)
    windowed = model_measures.method_row([4.0], [1.5], [0.4, 0.6, 0.5], 0.5, 600, 2, 8.0, 2.0)
    assert windowed["exact_layers_s"] == 0.5 and windowed["reached"] == pytest.approx((2.0 + 0.5 + 2 * 0.5) / 4.0)
    without = model_measures.method_row([4.0], [1.0], [0.0], 0.5, 600, 2, None, None)
    assert without["times_full"] is without["ceiling"] is without["reached"] is None


def test_only_tokens_that_are_no_padding_count() -> None:
    assert model_shapes.valid_lengths(64, 3, "none") == [64, 64, 64]
    assert model_shapes.valid_lengths(64, 1, "half") == [32]
    lengths = model_shapes.valid_lengths(64, 8, "half")
    assert sum(lengths) == 64 * 8 / 2 and len(set(lengths)) == 8
    batch = model_shapes.inputs(bert(64), 64, 8, "half")
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["input_ids"].eq(0) == batch["attention_mask"].eq(0)).all()


@pytest.mark.usefixtures("tiny")
def test_a_shape_with_all_methods(tmp_path: Path) -> None:
    sdpa, ours = ALL_ATTENTION_FUNCTIONS["sdpa"], ALL_ATTENTION_FUNCTIONS[NAME]
    results = run(tmp_path / "m.json", "--tokens", "67", "--batches", "1", "3")
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa and ALL_ATTENTION_FUNCTIONS[NAME] is ours
    assert list(results["cells"]) == [
        f"bert-base/67/{batch}/{padding}" for batch in (1, 3) for padding in ("none", "half")
    ]
    cell = results["cells"]["bert-base/67/3/half"]
    assert cell["valid_tokens"] == 11 + 33 + 55 and cell["replaced_layers"] == 3
    assert 0 < cell["attention_share"] < 1 and list(cell["methods"]) == list(model_shapes.METHODS)
    for name, row in cell["methods"].items():
        assert row["turns"] == 3 and row["least_s"] <= row["median_s"] <= row["most_s"]
        assert row["tokens_per_s"] == pytest.approx(99 / row["median_s"])
        assert 0 < row["attention_s"] < row["median_s"] and row["exact_layers_s"] == 0
        assert row["peak_growth_bytes"] == 1000 * 67 * 3
        if name != model_shapes.FULL:
            expected = (cell["rest_s"] + 3 * row["operator_s"]) / row["median_s"]
            assert row["reached"] == pytest.approx(expected)


@pytest.mark.usefixtures("tiny")
def test_layers_with_a_window_are_not_attention_that_is_replaced(tmp_path: Path) -> None:
    results = run(tmp_path / "m.json", "--shapes", "modernbert-base", "--tokens", "67", "--batches", "3")
    assert "The share of layers with a window of the pass under `full`: " in model_page.section(results)
    cell = results["cells"]["modernbert-base/67/3/half"]
    assert cell["replaced_layers"] == 2 and 0 < cell["windows_share"] < 1 - cell["attention_share"]
    assert all(row["exact_layers_s"] > 0 and row["attention_s"] > 0 for row in cell["methods"].values())


def test_the_mask_of_padding_is_part_of_the_attention() -> None:
    sdpa_mask, meter = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"], model_measures.Meter({"full": TINY.encoder(67)})
    sizes = {"batch_size": 1, "q_length": 5, "kv_length": 5}
    with model_measures.metered(meter):
        timed = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
        timed(**sizes)
        padding = meter.replaced
        timed(mask_function=sliding_window_bidirectional_mask_function(2), **sizes)
    assert padding == meter.replaced > 0 and meter.others > 0
    assert ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] is sdpa_mask


def test_as_many_layers_are_sampled_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_measures, "SAMPLE_BYTES", 100)
    assert model_measures.sampled_layers(12, 1) == set(range(12))
    assert model_measures.sampled_layers(12, 40) == {3, 9}
    assert model_measures.sampled_layers(12, 1000) == {6}
    encoder = WINDOWED.encoder(67)
    meter = model_measures.Meter({"full": encoder})
    with model_measures.metered(meter):
        encoder(**model_shapes.inputs(encoder.config, 67, 1, "none"))
    assert list(meter.sample) == [1]
    assert [tuple(one.shape) for one in meter.sample[1]] == [(1, 2, 67, 16)] * 3


def test_methods_share_the_weights_and_leave_full_as_it_is() -> None:
    encoder = TINY.encoder(67)
    batch = model_shapes.inputs(encoder.config, 67, 1, "none")
    exact = encoder(**batch).last_hidden_state
    few = model_shapes.with_method(encoder, model_shapes.METHODS["improved-clustered"])
    assert all(one is other for one, other in zip(encoder.parameters(), few.parameters(), strict=True))
    assert not torch.equal(few(**batch).last_hidden_state, exact)
    assert torch.equal(model_shapes.with_method(encoder, None)(**batch).last_hidden_state, exact)
    assert torch.equal(encoder(**batch).last_hidden_state, exact)


def measured(tokens: int, batch: int, seconds: float, padding: str = "none") -> dict[str, Any]:
    """A case of a made-up encoder: half of full is attention."""
    row = {"median_s": seconds, "attention_s": seconds / 2, "exact_layers_s": 0.0, "peak_growth_bytes": 2**30}
    methods = {name: dict(row) for name in model_shapes.METHODS}
    return {"kind": "case", **vars(model.Case("bert-base", tokens, batch, padding)), "methods": methods}


def test_what_would_take_too_long_or_not_fit_is_known_before() -> None:
    cells = {"a": measured(512, 1, 1.0), "b": measured(1024, 1, 10.0), "c": measured(2048, 8, 99.0)}
    case = model.Case("bert-base", 4096, 1, "none")
    assert model.before(case, "full", cells) is cells["b"]
    full, refined = "full", "refined-clustered"
    assert model.why_not(case, full, cells, 99, None) == "a pass would take about 100 s, more than the limit of 99 s"
    assert model.why_not(case, full, cells, 101, None) is None  # 5 s of rest × 4 and 5 s of attention × 16
    assert model.why_not(case, refined, cells, 39, None) is not None
    assert model.why_not(case, refined, cells, 41, 5 * 2**30) is None
    assert model.why_not(case, full, cells, 101, 15 * 2**30) == "a pass would need up to 16 GiB, and 15 GiB are free"
    assert model.why_not(model.Case("bert-base", 256, 1, "none"), full, cells, 0.1, 0) is None
    windowed = {"median_s": 10.0, "attention_s": 2.0, "exact_layers_s": 3.0, "peak_growth_bytes": 5}
    assert model_measures.expected_seconds(windowed, full, 2, 3) == 5 * 2 * 3 + 5 * 4 * 3
    assert model_measures.expected_seconds(windowed, refined, 2, 3) == 10 * 2 * 3
    assert model_measures.expected_growth(windowed, full, 2, 3) == 5 * 4 * 3
    assert model_measures.expected_growth(windowed, refined, 2, 3) == 5 * 2 * 3
    assert model.why_not(model.Case("bert-base", 4096, 1, "half"), full, cells, 0.1, 0) is None


@pytest.mark.usefixtures("tiny")
def test_what_is_not_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def growth(flags: dict[str, Any]) -> int:
        if flags["method"] == "full":
            raise model_memory.OutOfMemory
        return 1

    monkeypatch.setattr(model_memory, "growth", growth)
    cells = run(tmp_path / "m.json", "--tokens", "67", "--batches", "1", "--padding", "none", "--limit", "60")["cells"]
    cell = cells["bert-base/67/1/none"]
    assert cell["methods"]["full"] == {"not_run": "there is not enough memory for a pass"}
    refined = cell["methods"]["refined-clustered"]
    assert refined["median_s"] > 0 and refined["operator_s"] > 0 and refined["reached"] is None
    assert cell["attention_share"] is None


@pytest.mark.usefixtures("tiny")
def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--batches", "1", "--padding", "none", "--tokens", "17", "67")
    asked: list[str] = []
    original = model.run_case

    def interrupted(case: model.Case, *rest: Any) -> dict[str, Any]:
        asked.append(case.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return original(case, *rest)

    monkeypatch.setattr(model, "run_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "m.json", *flags)
    results = run(tmp_path / "m.json", *flags)
    assert asked == ["bert-base/17/1/none", "bert-base/67/1/none", "bert-base/67/1/none"]
    assert len(results["cells"]) == 2 and len(results["runs"]) == 1
    with pytest.raises(SystemExit, match=r"limit_s was 120\.0 and is now 7\.0.* choose another --output, or delete"):
        run(tmp_path / "m.json", *flags, "--limit", "7")


@pytest.mark.usefixtures("tiny")
def test_what_does_not_fit_the_positions_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(tmp_path / "m.json", "--tokens", "17", "201", "--batches", "1", "--padding", "none")
    assert list(results["cells"]) == ["bert-base/17/1/none"]
    assert "bert-base: no 201 tokens, it has 200 positions." in capsys.readouterr().out


def test_a_checkpoint_that_is_not_installed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = model_shapes.Shape("bert-base", "absent", 512, None, "no_such_package")
    monkeypatch.setattr(model, "SHAPES", {"bert-base": absent})
    model.main(["--shapes", "bert-base", "--threads", str(torch.get_num_threads()), "--output", str(tmp_path / "m")])
    assert "left out: it needs pip install no-such-package" in capsys.readouterr().out


def test_peak_memory_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flags = {"shape": "bert-base", "tokens": 64, "batch": 1, "padding": "half", "method": "refined-clustered"}
    found = model_memory.growth({**flags, "threads": 1, "layers": 1})
    assert found is None or 64 * 3072 * 4 < found < 2**28  # the wide layer's output, at least
    killed = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(model_memory.OutOfMemory):
        model_memory.growth(flags)
    failed = subprocess.CompletedProcess([], 1, "", "it says why")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="model_memory.py --shape bert-base .* failed: it says why"):
        model_memory.growth(flags)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    3 kB\n")
    assert model_memory.available_bytes(tmp_path / "meminfo") == 3072
    assert model_memory.available_bytes(tmp_path / "absent") is None


@pytest.mark.usefixtures("tiny")
def test_short_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_short, "LENGTHS", (16, 32))
    monkeypatch.setattr(model_short, "CROSSOVER_LENGTHS", (16,))
    output = tmp_path / "m.json"
    results = run(output, "--short", "--batches", "1", "--padding", "half", "--tokens", "16")
    crossings = [cell for cell in results["cells"].values() if cell["kind"] == "crossover"]
    assert [cell["method"] for cell in crossings] == list(model_short.PATCHED)
    for cell in crossings:
        faster = cell["layer"]["16"]["operator"] < cell["layer"]["16"]["sdpa"]
        assert cell["exact_below"] == (16 if faster else 17)
    cell = results["cells"]["short/bert-base/32/1/half"]
    assert list(cell["methods"]) == ["full", model_short.AGAIN, *model_short.PATCHED]
    for name, row in cell["methods"].items():
        assert row["turns"] >= 51
        assert (name == "full") == ("overhead" not in row)
    assert "Short texts, bert-base" in model_page.section(results)


def test_below_the_crossover_the_patched_model_is_exact() -> None:
    encoder = TINY.encoder(67)
    batch = model_shapes.inputs(encoder.config, 67, 1, "none")
    patched = model_short.short_encoders(encoder, {"improved-clustered": 68})["improved-clustered"]
    exact = encoder(**batch).last_hidden_state
    assert (patched(**batch).last_hidden_state - exact).abs().max() < 1e-5


@pytest.mark.usefixtures("tiny")
def test_the_page_says_what_the_file_says(tmp_path: Path) -> None:
    output = tmp_path / "m.json"
    results = run(output, "--tokens", "17", "67", "--batches", "1", "--padding", "none")
    cell = results["cells"]["bert-base/67/1/none"]
    cell["methods"]["full"] = {"not_run": "it is too long"}
    row = cell["methods"]["refined-clustered"]
    row |= {"median_s": 1.5, "least_s": 1.25, "most_s": 2.0, "tokens_per_s": 2730.7, "peak_growth_bytes": 2**21}
    row |= {"times_full": 2.0, "ceiling": 2.5, "reached": 0.8}
    lines = model_page.section(results).splitlines()
    assert not any("layers with a window" in line for line in lines)
    assert "| 67 | `full` | not run | – | – | – | – | – |" in lines
    assert "| 67 | `refined-clustered` | 1.5 [1.25, 2] | 2,731 | 2.00 | 2.50 | 80.0 % | 2 |" in lines
    assert "Not run at 67, `full`: it is too long." in lines
    goals = {goal: (measured, holds) for goal, measured, holds in model_page.goals(results)}
    reached, holds = goals["bert-base, `refined-clustered`: at least 95 % of Amdahl's ceiling"]
    assert not holds and "2 cases" in reached
    assert len({line.count("|") for line in lines if line.startswith(("| 17", "| 67"))}) == 1
    assert model_page.section(None) == model_page.NOT_MEASURED


def test_memory_that_grows_linearly_has_the_exponent_one() -> None:
    cells = [measured(512, 1, 1.0), measured(1024, 1, 1.0), measured(4096, 1, 1.0)]
    cells[2]["methods"]["full"]["peak_growth_bytes"] *= 16
    cells[2]["methods"]["refined-clustered"]["peak_growth_bytes"] *= 4
    assert model_page.exponent(cells, "full") == pytest.approx(2)
    assert model_page.exponent(cells, "refined-clustered") == pytest.approx(1)
    assert model_page.exponent(cells[:1], "full") is None


@pytest.mark.usefixtures("tiny")
def test_the_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = run(tmp_path / "m.json", "--tokens", "17", "67", "--batches", "1", "--padding", "none")
    model_plot.draw(results, tmp_path / "images" / "plot.png")
    assert (tmp_path / "images" / "plot.png").read_bytes().startswith(b"\x89PNG")
