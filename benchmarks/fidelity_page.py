"""docs/fidelity.md: the table of benchmarks/results/fidelity.json, and whether the expectations hold.

    python benchmarks/fidelity_page.py    # write the page again from what is kept

No number is typed by hand: a test compares the page with what this script makes.
"""

from typing import Any

from readme_tables import (
    RESULTS,
    ROOT,
    between_marks,
    fidelity_section,
    kept_results_of,
    shown_agreement,
    shown_difference,
)

PAGE = ROOT / "docs" / "fidelity.md"
FILE = RESULTS / "fidelity.json"
NAME = "fidelity"
METHOD = "refined-clustered"
SAME_ANSWERS, SAME_PREDICTIONS = 0.98, 0.99


def kept_results() -> dict[str, Any] | None:
    """The content of the results file; None before the first measurement."""
    return kept_results_of(FILE)


def section(results: dict[str, Any] | None) -> str:
    """What stands between the marks of the page."""
    if results is None:
        return "Not measured yet: `make table` fills this in."
    parts = [fidelity_section(results), "", "## What holds", "", *verdict_table(results)]
    if results["missing"]:
        parts += ["", "## Missing", "", "These tasks have no adapter yet. The commands that train them:", "", "```bash"]
        parts += [one["command"] for one in results["missing"]]
        parts += ["```"]
    return "\n".join(parts)


def verdict_table(results: dict[str, Any]) -> list[str]:
    """One row for each expectation of each task."""
    lines = ["| task | tokens | expected of `refined-clustered` | measured | verdict |", "|---|---:|---|---|---|"]
    for task in results["tasks"]:
        for expected, measured, holds in expectations(task):
            verdict = "holds" if holds else "**does not hold**"
            lines.append(f"| {task['title']} | {task['tokens']} | {expected} | {measured} | {verdict} |")
    return lines


def expectations(task: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(what is expected, what was measured, whether it holds) for one entry of `tasks`."""
    method = task["methods"].get(METHOD)
    if method is None:
        return []
    found = []
    is_squad = task["task"] == "squad"
    for score, values in method["scores"].items():
        difference = values["difference_to_full"]
        if difference is None or (is_squad and score != "f1"):
            continue
        name = score.upper() if score == "f1" else score
        above = " or lies above it" if is_squad else ""
        holds = difference["high"] >= 0 and (is_squad or difference["low"] <= 0)
        found.append(
            (f"the interval of the difference in {name} contains 0{above}", shown_difference(difference), holds)
        )
    agreement = method["agreement_with_full"]
    least = least_agreement(task)
    if agreement is not None and agreement["kind"] == "same predictions" and least is not None:
        word = "answers" if is_squad else "predictions"
        found.append(
            (f"at least {100 * least:.0f} % same {word}", shown_agreement(agreement), agreement["value"] >= least)
        )
    return found


def least_agreement(task: dict[str, Any]) -> float | None:
    """The share of same predictions that is expected; None for SQuAD beyond 384 tokens, where none was promised."""
    if task["task"] != "squad":
        return SAME_PREDICTIONS
    return SAME_ANSWERS if task["tokens"] <= 384 else None


def updated(page: str, results: dict[str, Any] | None) -> str:
    """The page's text with its section made anew."""
    return between_marks(page, NAME, section(results))


def main() -> None:
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), kept_results()), encoding="utf-8")


if __name__ == "__main__":
    main()
