"""Hidden-state errors, kept measurements, drawn questions, and the list of budgets."""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import budgets
import budgets_page
import budgets_squad
import fidelity
import machine
import measure
import pytest
import torch
from questions import count_questions, draw_questions
from transformers import BertConfig, BertModel

from bert_cluster import ClusterConfig


def squad(contexts: list[str], questions: int) -> dict[str, Any]:
    """A SQuAD file of one article with so many questions about each context."""
    paragraphs = [
        {"context": context, "qas": [{"id": f"{p}-{q}", "question": "?", "answers": []} for q in range(questions)]}
        for p, context in enumerate(contexts)
    ]
    return {"version": "1.1", "data": [{"title": "all", "paragraphs": paragraphs}]}


def identifiers(content: dict[str, Any]) -> list[str]:
    return [q["id"] for article in content["data"] for paragraph in article["paragraphs"] for q in paragraph["qas"]]


def test_the_same_questions_are_drawn_every_time_and_keep_their_order() -> None:
    source = squad(["a", "bb", "ccc"], 5)
    drawn = draw_questions(source, 7)
    assert count_questions(drawn) == 7
    assert identifiers(drawn) == identifiers(draw_questions(source, 7))
    assert identifiers(drawn) == sorted(identifiers(drawn))
    assert set(identifiers(draw_questions(source, 3))) < set(identifiers(drawn))
    assert identifiers(draw_questions(source, 99)) == identifiers(source)


def test_questions_of_the_longest_contexts() -> None:
    drawn = draw_questions(squad(["a", "bbb", "cc"], 2), 99, longest=2)
    assert identifiers(drawn) == ["1-0", "1-1", "2-0", "2-1"]


def test_finished_measurements_are_kept(tmp_path: Path) -> None:
    calls = []

    def slow() -> list[float]:
        calls.append(1)
        return [0.5]

    for _ in range(2):
        kept = measure.Kept(tmp_path / "kept.json", {"texts": 2})
        assert kept.get("one", slow) == [0.5]
    assert len(calls) == 1
    measure.Kept(tmp_path / "kept.json", {"texts": 2}, overwrite=True).get("one", slow)
    assert len(calls) == 2


def test_an_interruption_loses_only_what_was_running(tmp_path: Path) -> None:
    kept = measure.Kept(tmp_path / "kept.json", {})
    kept.get("one", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        kept.get("two", interrupted)
    again = measure.Kept(tmp_path / "kept.json", {})
    assert again.content["cells"] == {"one": 1}


def interrupted() -> None:
    raise KeyboardInterrupt


def test_measurements_of_other_settings_are_refused(tmp_path: Path) -> None:
    measure.Kept(tmp_path / "kept.json", {"texts": 2}).get("one", lambda: 1)
    with pytest.raises(SystemExit, match="texts was 2 and is now 6"):
        measure.Kept(tmp_path / "kept.json", {"texts": 6})


def test_hidden_states_are_exact_where_every_key_is() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model = BertModel(BertConfig(vocab_size=50, max_position_embeddings=64, **sizes)).eval()
    inputs = [{"input_ids": torch.randint(50, (count,)).tolist()} for count in (23, 41)]
    exact = measure.hidden_states(model.base_model, inputs)
    assert [state.shape for state in exact] == [(23, 32), (41, 32)]
    found = measure.hidden_state_errors(model, inputs, ClusterConfig(topk=64), exact)
    assert max(found) < 1e-5
    few = ClusterConfig(clusters=1, topk=0, key_clusters=1, band=0)
    assert min(measure.hidden_state_errors(model, inputs, few, exact)) > 1e-5
    again = measure.hidden_states(model.base_model, inputs)
    assert all(torch.equal(one, other) for one, other in zip(again, exact, strict=True))
    assert measure.relative_error(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)


def test_commands_are_written_without_machine_paths() -> None:
    arguments = ["/some/clone/benchmarks/budgets.py", "--shared", "/some/shared", "--squad", "30"]
    assert measure.command(arguments) == "python benchmarks/budgets.py --shared shared --squad 30"


def test_the_grid_has_every_budget_once() -> None:
    names = [budgets_page.label(config) for config in budgets.grid()]
    assert len(names) == len(set(names)) == 80 + 6 + 9
    assert names[:2] == ["refined C=25 K=96 M=32 W=4 rounds=3 sample=256", "improved C=25 K=32"]


def test_full_attention_is_shared_between_folders(tmp_path: Path) -> None:
    (tmp_path / "full/chunks/full").mkdir(parents=True)
    (tmp_path / "full/chunks/settings.json").write_text("{}")
    for _ in range(2):
        budgets_squad.share_full_attention(tmp_path / "full", tmp_path / "own")
    assert [path.name for path in sorted((tmp_path / "own/chunks").iterdir())] == ["full", "settings.json"]


def options_for(shared: Path, *flags: str) -> argparse.Namespace:
    return fidelity.new_parser().parse_args(["--shared", str(shared), *flags])


def test_missing_adapters_are_named_with_their_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared/adapters/MRPC").mkdir(parents=True)
    (tmp_path / "shared/adapters/MRPC/adapter_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    options = options_for(Path("shared"), "--tasks", "MRPC", "CoLA")
    command = "python shared/tools/train_adapter.py CoLA output/adapters/CoLA --epochs 6"
    assert fidelity.missing_adapters(options) == [{"task": "CoLA", "command": command}]
    (cell,) = fidelity.cells(options)
    assert (cell.name, cell.module, cell.tokens) == ("MRPC-128", "glue_eval", 128)


def test_an_entry_has_scores_in_points_with_the_tasks_own_first(tmp_path: Path) -> None:
    difference = {"value": -0.01, "low": -0.02, "high": 0.0}
    one = {
        "scores": {"exact_match": 0.5, "f1": 0.6, "combined_score": 0.55},
        "difference_to_full": {"exact_match": difference, "f1": difference, "combined_score": difference},
        "agreement_with_full": None,
        "seconds": 1.0,
        "peak_memory_bytes": None,
        "cluster_config": None,
        "backend": "sdpa",
        "calls": {},
    }
    results = {
        "task": {"name": "x", "title": "X", "score_unit": "fraction", "primary_scores": ["f1"]},
        "model": {"dtype": "float32"},
        "methods": {"full": {**one, "difference_to_full": None}, "refined-clustered": one},
        "data": {"examples": 3},
        "batches": {"inputs": 4, "tokens": 40},
    }
    cell = fidelity.Cell("X", 128, tmp_path, tmp_path, "all")
    entry = fidelity.entry(cell, results, {"refined-clustered": [0.1, 0.3]})
    refined = entry["methods"]["refined-clustered"]
    assert list(refined["scores"]) == ["f1", "exact_match"]
    assert refined["scores"]["f1"]["difference_to_full"]["value"] == pytest.approx(-1.0)
    assert refined["hidden_state_error"]["mean"] == pytest.approx(0.2) and entry["mean_tokens"] == 10
    assert entry["methods"]["full"]["hidden_state_error"] is None
    assert str(tmp_path) not in json.dumps(entry)


def test_turns_have_another_order_each_and_the_same_in_every_measurement() -> None:
    def orders() -> list[str]:
        taken: list[str] = []
        times = machine.take_turns({name: partial(taken.append, name) for name in "abc"}, 0.0, least=4)
        assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4, "c": 4}
        return ["".join(taken[i : i + 3]) for i in range(3, 15, 3)]  # the first three warm up

    first = orders()
    assert all(sorted(turn) == ["a", "b", "c"] for turn in first) and len(set(first)) > 1
    assert orders() == first
