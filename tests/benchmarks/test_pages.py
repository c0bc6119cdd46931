"""The pages and the README's section are made from results files: what stands in them, and when an expectation holds."""

from pathlib import Path
from typing import Any

import budgets_page
import fidelity_page
import fixtures
import pytest
import readme_tables


def test_the_readme_has_a_row_for_each_task() -> None:
    lines = readme_tables.accuracy_section(fixtures.fidelity()).splitlines()
    assert lines[0] == "| task | tokens | `full` | `refined-clustered` |"
    assert lines[2:4] == [
        "| SQuAD v1.1, F1 | 384 | 64.0 | -0.10 [-0.40, +0.20] |",
        "| SQuAD v1.1, F1 | 512 | 50.0 | +0.90 [+0.10, +2.00] |",
    ]
    assert len({line.count("|") for line in lines[:5]}) == 1 and lines[5] == ""


def test_the_section_has_a_row_for_each_method() -> None:
    lines = fidelity_page.table(fixtures.fidelity()).splitlines()
    assert sum(line.startswith("| SQuAD v1.1 | 384 |") for line in lines) == 2
    assert "| SQuAD v1.1 | 384 | `full` | F1 64.0 | – | – | – | 12.3 | 600 MiB |" in lines
    refined = (
        "| SQuAD v1.1 | 384 | `refined-clustered` | F1 63.9 | -0.10 [-0.40, +0.20] | 98.5 % | 0.012 | 12.3 | 600 MiB |"
    )
    assert refined in lines
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "Not measured, for want of an adapter: CoLA." in lines[-1]


def test_the_readme_takes_the_section_where_it_has_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = "".join(f"<!-- {name}:begin -->\n<!-- {name}:end -->\n" for name in ("demo", "operators", "models"))
    monkeypatch.setattr(readme_tables, "accuracy_section", lambda: "the table")
    assert "the table" not in readme_tables.updated(marks)
    with_marks = readme_tables.updated(f"{marks}<!-- fidelity:begin -->\nold\n<!-- fidelity:end -->\n")
    assert "<!-- fidelity:begin -->\nthe table\n<!-- fidelity:end -->" in with_marks
    assert "old" not in with_marks


def test_the_readme_has_one_text_of_every_encoder() -> None:
    def cell(shape: str, tokens: int, batch: int = 1, padding: str = "none", **more: Any) -> dict[str, Any]:
        rows = {"full": {"median_s": 9.0, "times_full": 1.0}} | {
            name: {"median_s": 4.5, "times_full": 2.0} for name in ("improved-clustered", "refined-clustered")
        }
        names = {"kind": "case", "shape": shape, "tokens": tokens, "batch": batch, "padding": padding}
        return names | {"methods": rows | more}

    cells = [
        cell("b", 2048),
        cell("b", 512),
        cell("a", 512),
        cell("a", 512, 8),
        cell("a", 512, padding="half"),
        cell("a", 9, full={"not_run": "so"}),
    ]
    settings = {"machine": "M", "threads": 2, "dtype": "float32", "operators": "cpu", "versions": {"torch": "2"}}
    runs = [{"date": "2026-01-03", "command": "x"}, {"date": "2026-01-02", "command": "y"}]
    content = {"cells": dict(enumerate([*cells, {"kind": "short"}])), "settings": settings, "runs": runs}
    lines = readme_tables.models_section(content).splitlines()
    assert lines[2:5] == [f"| {name} | 9 | 4.5 (2.0 ×) | 4.5 (2.0 ×) |" for name in ("a | 512", "b | 512", "b | 2,048")]
    assert lines[5] == "" and "2026-01-02 and 2026-01-03: M, 2 threads" in lines[6]


def test_a_missing_mark_is_refused() -> None:
    with pytest.raises(SystemExit, match="<!-- fidelity:begin -->"):
        readme_tables.between_marks("no marks", "fidelity", "table")


def test_differences_have_no_negative_zero() -> None:
    assert readme_tables.shown_difference({"value": -1e-9, "low": -0.004, "high": 0.0}) == "+0.00 [+0.00, +0.00]"


def test_expectations_hold_or_not_line_by_line() -> None:
    squad, long, qnli = (fidelity_page.expectations(task) for task in fixtures.fidelity()["tasks"])
    assert [holds for _, _, holds in squad] == [True, True]
    assert [holds for _, _, holds in long] == [True]  # better than full, and no share of same answers is promised
    assert [holds for _, _, holds in qnli] == [False, False]


def test_a_regression_has_no_share_of_same_predictions() -> None:
    task = fixtures.fidelity()["tasks"][2]
    refined = task["methods"]["refined-clustered"]
    refined["agreement_with_full"] = {"kind": "mean absolute difference", "value": 0.004}
    assert len(fidelity_page.expectations(task)) == 1
    assert fidelity_page.method_cells("refined-clustered", refined)[3] == "±0.004"


def test_the_fidelity_page_names_what_is_missing() -> None:
    section = fidelity_page.section(fixtures.fidelity())
    assert section.count("| holds |") == 3 and section.count("| **does not hold** |") == 2
    assert "train_adapter.py CoLA" in section
    assert fidelity_page.section(None).startswith("Not measured yet")


def test_the_front_keeps_what_no_other_point_beats() -> None:
    points = fixtures.budgets()["points"]
    front = budgets_page.on_front(points)
    assert front == [points[1]["name"], points[0]["name"], points[3]["name"]]
    twins = [points[0], {**points[0]}]
    assert budgets_page.on_front(twins) == [points[0]["name"]]


def test_the_budgets_page_marks_the_named_budgets() -> None:
    lines = budgets_page.section(fixtures.budgets()).splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert len(rows) == 3 and "**the paper's**" in rows[0] and "**the default**" in rows[1]
    assert "| 98.8 % | 63.2 | +0.00 [-0.40, +0.30] | yes |" in rows[1]
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    without = fixtures.budgets()
    for point in without["points"]:
        point["squad"] = None
    assert "same answers" not in budgets_page.section(without)


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    budgets_page.draw(fixtures.budgets(), tmp_path / "budgets.png")
    assert (tmp_path / "budgets.png").read_bytes().startswith(b"\x89PNG")
