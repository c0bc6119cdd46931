"""The demo's data and adapters: whole, small, attributed; the demo says what is missing."""

import importlib.util
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from glue_eval.data import load_file as load_glue
from glue_eval.tasks import TASKS
from squad_eval.data import load_file as load_squad

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_squad_slice_covers_many_articles() -> None:
    data = load_squad(EXAMPLES / "data/squad-dev-slice.json")
    assert len(data.examples) == 400
    assert len({example.title for example in data.examples}) == 24
    data.require_version(False)


def test_answers_stand_where_the_squad_slice_says() -> None:
    content = json.loads((EXAMPLES / "data/squad-dev-slice.json").read_text(encoding="utf-8"))
    for paragraph in (paragraph for article in content["data"] for paragraph in article["paragraphs"]):
        for answer in (answer for question in paragraph["qas"] for answer in question["answers"]):
            start = answer["answer_start"]
            assert paragraph["context"][start : start + len(answer["text"])] == answer["text"]


def test_the_qnli_slice_has_both_labels() -> None:
    data = load_glue(EXAMPLES / "data/qnli-dev-slice.tsv", TASKS["qnli"])
    assert data.labels is not None
    assert (len(data), int(data.labels.sum())) == (400, 214)


@pytest.mark.parametrize(("name", "task"), [("squad", "QUESTION_ANS"), ("qnli", "SEQ_CLS")])
def test_adapters_name_their_base_and_task(name: str, task: str) -> None:
    config = json.loads((EXAMPLES / "adapters" / name / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"]) == ("sentence-transformers/all-MiniLM-L6-v2", task)
    assert (EXAMPLES / "adapters" / name / "adapter_model.safetensors").stat().st_size > 1e6


def test_examples_are_small_and_attributed() -> None:
    assert sum(file.stat().st_size for file in EXAMPLES.rglob("*") if file.is_file()) < 10e6
    text = (EXAMPLES / "README.md").read_text()
    for file in [*(EXAMPLES / "data").iterdir(), *(EXAMPLES / "adapters").iterdir()]:
        assert f"`{file.relative_to(EXAMPLES)}`" in text
    assert "CC BY-SA 4.0" in text
    assert "Apache-2.0" in text


def test_slices_are_drawn_the_same_way_every_time() -> None:
    make = runpy.run_path(str(EXAMPLES / "make_data.py"))
    source: dict[str, Any] = json.loads((EXAMPLES / "data/squad-dev-slice.json").read_text(encoding="utf-8"))
    first, second = make["cut_squad"](source, 7, 0), make["cut_squad"](source, 7, 0)
    assert first == second
    assert sum(len(p["qas"]) for article in first["data"] for p in article["paragraphs"]) == 7
    rows = "head\n" + "".join(f"{number}\n" for number in range(50))
    cut = make["cut_tsv"](rows, 5, 0).split("\n")
    assert (cut[0], len(cut), cut[-1]) == ("head", 7, "")
    assert [int(row) for row in cut[1:-1]] == sorted({int(row) for row in cut[1:-1]})


def test_the_demo_names_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = runpy.run_path(str(EXAMPLES / "demo.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(
        SystemExit, match=r"The demo needs peft \(adapters\). Install them with: pip install '.\[demo\]'"
    ):
        demo["base_model"]()
