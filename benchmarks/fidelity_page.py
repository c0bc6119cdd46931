"""docs/fidelity.md: the table of benchmarks/results/fidelity.json, and whether the expectations hold.

    python benchmarks/fidelity_page.py    # write the page again from what is kept

No number is typed by hand: a test compares the page with what this script makes.
"""

from typing import Any

from readme_tables import (
    RESULTS,
    ROOT,
    between_marks,
    kept_results_of,
    score_name,
    shown_difference,
)

PAGE = ROOT / "docs" / "fidelity.md"
FILE = RESULTS / "fidelity.json"
NAME = "fidelity"
METHOD = "refined-clustered"
SAME_ANSWERS, SAME_PREDICTIONS = 0.98, 0.99
HEADER = (
    "task",
    "tokens",
    "attention",
    "score",
    "difference to full [95 %]",
    "same predictions as full",
    "hidden-state error",
    "seconds",
    "peak memory",
)


def kept_results() -> dict[str, Any] | None:
    """The content of the results file; None before the first measurement."""
    return kept_results_of(FILE)


def section(results: dict[str, Any] | None) -> str:
    """What stands between the marks of the page."""
    if results is None:
        return "Not measured yet: `make table` fills this in."
    parts = [table(results), "", "## What holds", "", *verdict_table(results)]
    if results["missing"]:
        parts += ["", "## Missing", "", "These tasks have no adapter yet. The commands that train them:", "", "```bash"]
        parts += [one["command"] for one in results["missing"]]
        parts += ["```"]
    return "\n".join(parts)


def table(results: dict[str, Any]) -> str:
    """Every adapter with every method."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---:|---|" + "---:|" * (len(HEADER) - 3)]
    for task in results["tasks"]:
        for name, method in task["methods"].items():
            lines.append("| " + " | ".join([task["title"], str(task["tokens"]), *method_cells(name, method)]) + " |")
    data = "; ".join(
        f"{one['title']} at {one['tokens']}: {one['data']} ({one['examples']:,}), {one['mean_tokens']:.0f} tokens on average"
        for one in results["tasks"]
    )
    texts = max((one["texts"] for one in hidden_state_errors(results)), default=0)
    sentences = [
        f"`{results['command']}` on {results['date']}: {results['machine']}, {results['threads']} threads, "
        f"{results['tasks'][0]['dtype']}, torch {results['versions']['torch']}, operators {results['operators']}, "
        f"batches of {results['batch_size']}.",
        f"{data}.",
        "The model is all-MiniLM-L6-v2 (6 layers, 12 heads of 32) with one adapter for each task; scores in points of 100, "
        "STS-B's answers as the mean absolute difference to those of full.",
        f"Brackets are paired bootstrap intervals; the error of the last hidden state is relative to full, the mean of {texts} "
        "texts; seconds are forward passes only.",
    ]
    sentences += [f"Not measured, for want of an adapter: {one['task']}." for one in results["missing"]]
    return "\n".join([*lines, "", " ".join(sentences)])


def method_cells(name: str, method: dict[str, Any]) -> list[str]:
    """The cells of one method, without those of its task: its first primary score."""
    score, values = next(iter(method["scores"].items()))
    agreement, error, memory = method["agreement_with_full"], method["hidden_state_error"], method["peak_memory_bytes"]
    return [
        f"`{name}`",
        f"{score_name(score)} {values['value']:.1f}",
        shown_difference(values["difference_to_full"]),
        shown_agreement(agreement),
        "–" if error is None else f"{error['mean']:.2g}",
        f"{method['seconds']:.1f}",
        "–" if memory is None else f"{memory / 2**20:,.0f} MiB",
    ]


def shown_agreement(agreement: dict[str, Any] | None) -> str:
    """A share in percent, or for a regression the mean absolute difference, marked as such."""
    if agreement is None:
        return "–"
    if agreement["kind"] == "same predictions":
        return f"{100 * agreement['value']:.1f} %"
    return f"±{agreement['value']:.3f}"


def hidden_state_errors(results: dict[str, Any]) -> list[dict[str, float]]:
    """The errors of all methods of all tasks."""
    methods = [method for task in results["tasks"] for method in task["methods"].values()]
    return [method["hidden_state_error"] for method in methods if method["hidden_state_error"]]


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
        name = score_name(score)
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
