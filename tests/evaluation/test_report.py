"""The table, the report, the picture and the schema, from results made by hand."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from bert_cluster import ClusterConfig
from bert_cluster.evaluation import plot
from bert_cluster.evaluation.bootstrap import Difference
from bert_cluster.evaluation.errors import MissingPackageError
from bert_cluster.evaluation.methods import Method
from bert_cluster.evaluation.plot import draw, require_matplotlib
from bert_cluster.evaluation.report import markdown, table, terminal
from bert_cluster.evaluation.results import Agreement, MethodResult, Results
from bert_cluster.evaluation.runner import MethodRun


def method_result(name: str, **changes: Any) -> MethodResult:
    config = None if name == "full" else ClusterConfig(method=name)
    run = MethodRun(
        [], [2.0], tokens=3000, peak_memory_bytes=300 * 2**20, backend="sdpa" if config is None else "cpu-avx512"
    )
    result = MethodResult(Method(name, config, "defaults"), run, {"accuracy": 0.8}, None, None, 0)
    return dataclasses.replace(result, **changes)


def make_results(*methods: MethodResult) -> Results:
    return Results(
        command="glue_eval",
        task={"name": "qnli", "title": "QNLI", "primary_scores": ["accuracy"], "score_unit": "fraction"},
        model={"name": "models/tiny", "dtype": "float32"},
        data={"source": "dev.tsv", "examples": 1200, "labelled": True},
        settings={"max_seq_length": 128},
        batches={"inputs": 1200, "padded_share": 0.0345},
        environment={"device_name": "a processor", "threads": 2, "processes": 1},
        methods=methods,
        bootstrap={"samples": 1000, "level": 0.95, "seed": 0},
        notes=["labels were taken in order"],
    )


@pytest.fixture
def results() -> Results:
    run = MethodRun([], [0.5], tokens=3000, backend="cpu-avx512", calls={"clustered": 90, "exact": 10, "reference": 0})
    changes: dict[str, Any] = {
        "run": run,
        "scores": {"accuracy": 0.75},
        "differences": {"accuracy": Difference(-0.05, -0.08, -0.01)},
        "agreement": Agreement("same predictions", 0.973),
        "not_finite": 2,
    }
    return make_results(method_result("full"), method_result("improved-clustered", **changes))


def test_the_table_shows_points_intervals_and_what_could_not_be_measured(results: Results) -> None:
    header, (full, improved) = table(results)
    assert header[:3] == ["method", "accuracy", "difference to full [95 %]"]
    assert full == ["full", "80.00", "–", "–", "2.0", "1,500", "1.00x", "300 MiB", "sdpa"]
    assert improved[:4] == ["improved-clustered", "75.00", "-5.00 [-8.00, -1.00]", "97.3 %"]
    assert improved[4:] == ["0.5", "6,000", "4.00x", "–", "cpu-avx512"]


def test_the_terminal_says_what_a_reader_must_know(results: Results) -> None:
    text = terminal(results)
    for part in (
        "3.5 % of the tokens are padding",
        "95 % interval",
        "improved-clustered: 2 inputs gave NaN or infinite outputs",
        "10 of 100 attention calls ran exact attention instead",
        "labels were taken in order",
    ):
        assert part in text
    lines = text.splitlines()
    assert len({len(line.rstrip()) for line in lines[3:4]}) == 1
    assert lines[2].index("accuracy") + len("accuracy") == lines[4].index("80.00") + len("80.00")


def test_a_run_on_the_reference_is_not_a_timing() -> None:
    run = MethodRun([], [9.0], tokens=10, backend="reference", calls={"clustered": 5, "reference": 5})
    text = terminal(make_results(method_result("full"), method_result("clustered", run=run)))
    assert "clustered ran on the PyTorch reference, so its time says nothing" in text


def test_the_report_is_markdown_with_settings(results: Results) -> None:
    text = markdown(results, plot="plot.png")
    assert text.startswith("# QNLI: models/tiny\n")
    assert "| improved-clustered | 75.00 | -5.00 [-8.00, -1.00] |" in text
    assert "(plot.png)" in text
    settings = json.loads(text.split("```json\n")[1].split("```")[0])
    assert ClusterConfig.from_dict(settings["cluster_configs"]["improved-clustered"]).method == "improved-clustered"
    assert "plot.png" not in markdown(results, plot=None)


def test_without_labels_there_are_no_scores() -> None:
    text = terminal(make_results(method_result("full", scores={})))
    assert "accuracy" not in text
    assert "no labels: no scores" in text


def test_results_become_json_and_undefined_numbers_null(results: Results) -> None:
    broken = method_result(
        "clustered", scores={"accuracy": math.nan}, differences={"accuracy": Difference(math.nan, None, None)}
    )
    content = make_results(*results.methods, broken).to_dict()
    parsed = json.loads(json.dumps(content, allow_nan=False))
    assert (parsed["schema"], parsed["schema_version"]) == ("bert_cluster.evaluation", 1)
    assert list(parsed["methods"]) == ["full", "improved-clustered", "clustered"]
    improved = parsed["methods"]["improved-clustered"]
    assert improved["speedup_over_full"] == 4.0
    assert improved["difference_to_full"]["accuracy"] == {"value": -0.05, "low": -0.08, "high": -0.01}
    assert improved["peak_memory_bytes"] is None
    assert parsed["methods"]["full"]["speedup_over_full"] is None
    assert parsed["methods"]["clustered"]["scores"] == {"accuracy": None}


def test_undefined_numbers_are_dashes(results: Results, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    undefined = method_result(
        "clustered",
        scores={"accuracy": math.nan},
        differences={"accuracy": Difference(math.nan, None, None)},
        agreement=Agreement("mean absolute difference", math.nan),
    )
    broken = make_results(method_result("full"), undefined)
    assert table(broken)[1][1][:4] == ["clustered", "–", "–", "–"]
    drawn: list[str] = []
    monkeypatch.setattr(plot, "_bars", lambda *arguments: drawn.extend(arguments[4]))
    draw(broken, tmp_path / "plot.png")
    assert drawn[:2] == ["80.0", "–"]


def test_every_key_of_the_schema_is_documented(results: Results) -> None:
    text = (Path(__file__).parents[2] / "docs" / "results-schema.md").read_text()
    content = results.to_dict()
    for key in [*content, *content["methods"]["full"]]:
        assert f"`{key}`" in text, key


@pytest.mark.parametrize("labelled", [True, False])
def test_the_picture_is_a_png(results: Results, labelled: bool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    if not labelled:
        methods = [dataclasses.replace(one, scores={}, differences=None) for one in results.methods]
        results = dataclasses.replace(results, methods=methods)
    draw(results, tmp_path / "plot.png")
    content = (tmp_path / "plot.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert len(content) > 10_000


def test_a_name_is_no_formula(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(dataclasses.replace(results, model={"name": r"a$b_{c$"}), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="pip install matplotlib, or add --no_plot"):
        require_matplotlib()
