"""The tables and the plot of docs/models.md, made from the file that benchmarks/model.py wrote.

    python benchmarks/model_page.py [--results benchmarks/results/model-cpu.json]

No number is typed by hand: a test compares the page with what this script makes.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from math import log
from pathlib import Path
from typing import Any

from model_plot import draw
from model_shapes import FULL, METHODS, SHAPES
from readme_tables import RESULTS as FOLDER
from readme_tables import ROOT, between_marks, kept_results_of

PAGE = ROOT / "docs" / "models.md"
PLOT = ROOT / "docs" / "images" / "models.png"
RESULTS = FOLDER / "model-cpu.json"
NAME = "models"
NOT_MEASURED = "Not measured yet: `python benchmarks/model.py` writes the figures."
GOAL_SHAPE, GOAL_REACHED, GOAL_OVERHEAD = "bert-base", 0.95, 0.03
LINEAR = 1.1  # the most that the exponent of N may be where memory is called linear
HEADER = ("tokens", "attention", "seconds", "tokens/s", "times full", "ceiling", "reached", "memory, MiB")

Row = Mapping[str, Any]


def kept_results(path: Path = RESULTS) -> Row | None:
    """The measured figures, None while there are none."""
    return kept_results_of(path)


def cells_of(results: Row, kind: str, shape: str | None = None) -> list[Row]:
    """The cells of one kind ("case", "short" or "crossover"), of one shape or all, smallest first."""
    found = [cell for cell in results["cells"].values() if cell["kind"] == kind and shape in (None, cell["shape"])]
    return sorted(found, key=lambda cell: (cell.get("batch", 0), cell.get("padding") == "half", cell.get("tokens", 0)))


def ran(cell: Row, method: str) -> Row | None:
    """The method's measurements in a cell, None where it did not run."""
    row: Row = cell["methods"][method]
    return None if "not_run" in row else row


def section(results: Row | None) -> str:
    """What stands between the two marks in docs/models.md."""
    if results is None:
        return NOT_MEASURED
    lines = ["### What holds", "", *verdict_table(results), ""]
    for name, shape in SHAPES.items():
        cells = cells_of(results, "case", name)
        if cells:
            lines += [f"### {name}", "", f"{shape.note}.", "", *shape_tables(cells)]
    lines += [*short_section(results), caption(results)]
    if cells_of(results, "case"):
        lines += ["", f"![Seconds of a forward pass against tokens, by shape]({PLOT.relative_to(PAGE.parent)})"]
    return "\n".join(lines)


def verdict_table(results: Row) -> list[str]:
    """One row for each goal: what was measured and whether it holds."""
    lines = ["| goal | measured | verdict |", "|---|---|---|"]
    for goal, measured, holds in goals(results):
        lines.append(f"| {goal} | {measured} | {'holds' if holds else '**does not hold**'} |")
    return lines


def goals(results: Row) -> Iterator[tuple[str, str, bool]]:
    """(goal, what was measured, whether it holds): the ceiling, memory, and the cost of patching at short lengths."""
    cells = cells_of(results, "case", GOAL_SHAPE)
    for method in (name for name in METHODS if name != FULL):
        rows = [(cell, row) for cell in cells if (row := ran(cell, method)) and row["reached"] is not None]
        if rows:
            cell, least = min(rows, key=lambda one: one[1]["reached"])
            measured = f"{100 * least['reached']:.1f} % at least ({case_words(cell)}), {len(rows)} cases"
            goal = f"{GOAL_SHAPE}, `{method}`: at least {100 * GOAL_REACHED:.0f} % of Amdahl's ceiling"
            yield goal, measured, least["reached"] >= GOAL_REACHED
        exponents = [found for group in by_group(cells) if (found := exponent(group, method)) is not None]
        if exponents:
            goal = f"{GOAL_SHAPE}, `{method}`: peak memory grows linearly in N (an exponent of at most {LINEAR})"
            yield goal, f"{max(exponents):.2f} at most, between the two longest lengths", max(exponents) <= LINEAR
    short = [(cell, name, row) for cell in cells_of(results, "short") for name, row in patched_rows(cell)]
    if short:
        cell, name, most = max(short, key=lambda one: one[2]["overhead"])
        measured = f"{100 * most['overhead']:+.1f} % at most ({cell['shape']}, {case_words(cell)}, `{name}`)"
        goal = f"up to 128 tokens patching costs at most {100 * GOAL_OVERHEAD:.0f} %"
        yield goal, measured, most["overhead"] <= GOAL_OVERHEAD


def patched_rows(cell: Row) -> list[tuple[str, Row]]:
    """The patched methods of a short case."""
    return [(name, row) for name, row in cell["methods"].items() if name in METHODS and name != FULL]


def by_group(cells: Iterable[Row]) -> list[list[Row]]:
    """The cells of each batch and padding, in their order."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for cell in cells:
        groups.setdefault((cell["batch"], cell["padding"]), []).append(cell)
    return list(groups.values())


def exponent(cells: list[Row], method: str) -> float | None:
    """log(memory ratio) / log(N ratio) between the two longest lengths; None where they were not measured."""
    known = [
        (cell["tokens"], row["peak_growth_bytes"])
        for cell in cells
        if (row := ran(cell, method)) and row["peak_growth_bytes"]
    ]
    if len(known) < 2:
        return None
    (tokens, memory), (more_tokens, more_memory) = known[-2:]
    return log(more_memory / memory) / log(more_tokens / tokens)


def case_words(cell: Row) -> str:
    """A case in words, without its shape."""
    return f"{cell['tokens']:,} tokens, batch {cell['batch']}{', half padded' if cell['padding'] == 'half' else ''}"


def shape_tables(cells: list[Row]) -> list[str]:
    """A table for each batch and padding; all but the first are folded."""
    lines: list[str] = []
    for number, group in enumerate(by_group(cells)):
        first = group[0]
        title = (
            f"Batch {first['batch']}, {'half of the tokens padding' if first['padding'] == 'half' else 'no padding'}"
        )
        opened = ["<details>", f"<summary>{title}</summary>", ""] if number else [f"**{title}**", ""]
        closed = ["</details>", ""] if number else []
        lines += [*opened, *case_table(group), *shares(group), "", *closed]
    return lines


def case_table(cells: list[Row]) -> list[str]:
    """One row for each length and method."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---:|---|" + "---:|" * (len(HEADER) - 2)]
    for cell in cells:
        for method, row in cell["methods"].items():
            start = f"| {cell['tokens']:,} | `{method}` |"
            if "not_run" in row:
                lines.append(f"{start} not run | – | – | – | – | – |")
            else:
                lines.append(f"{start} {' | '.join(case_cells(method, row))} |")
    return lines


def case_cells(method: str, row: Row) -> list[str]:
    """Seconds to memory of one method."""
    memory = row["peak_growth_bytes"]
    spread = f"{row['median_s']:.3g} [{row['least_s']:.3g}, {row['most_s']:.3g}]"
    return [
        spread,
        f"{row['tokens_per_s']:,.0f}",
        "–" if row["times_full"] is None or method == FULL else f"{row['times_full']:.2f}",
        "–" if row["ceiling"] is None else f"{row['ceiling']:.2f}",
        "–" if row["reached"] is None else f"{100 * row['reached']:.1f} %",
        "–" if memory is None else f"{memory / 2**20:,.0f}",
    ]


def shares(cells: list[Row]) -> list[str]:
    """The shares of attention and of layers with a window in full by length, and why something did not run."""
    lines: list[str] = []
    for share, what in (
        ("attention_share", "Attention's share"),
        ("windows_share", "The share of layers with a window"),
    ):
        known = [f"{100 * cell[share]:.0f} % at {cell['tokens']:,}" for cell in cells if cell.get(share)]
        lines += ["", f"{what} of the pass under `full`: {', '.join(known)}."] if known else []
    for cell in cells:
        for method, row in cell["methods"].items():
            if "not_run" in row:
                lines += ["", f"Not run at {cell['tokens']:,}, `{method}`: {row['not_run']}."]
    return lines


def short_section(results: Row) -> list[str]:
    """What patching costs at short lengths, with the crossovers."""
    lines: list[str] = []
    for shape in SHAPES:
        cells = cells_of(results, "short", shape)
        if not cells:
            continue
        names = [name for name in cells[0]["methods"] if name != FULL]
        lines += [
            f"### Short texts, {shape}",
            "",
            "Time over that of the unpatched model, in brackets the quartiles over the turns; `full again` is the unpatched model a second "
            "time, the noise. " + crossover_words(cells[0]),
            "",
            "| tokens | batch | padding | `full`, ms | " + " | ".join(f"`{name}`" for name in names) + " |",
            "|---:|---:|---|---:|" + "---:|" * len(names),
        ]
        for cell in cells:
            shown = [overhead_words(cell["methods"][name]) for name in names]
            start = (
                f"| {cell['tokens']} | {cell['batch']} | {cell['padding']} | {cell['methods'][FULL]['median_ms']:.2f} |"
            )
            lines.append(f"{start} {' | '.join(shown)} |")
        lines.append("")
    return lines


def crossover_words(cell: Row) -> str:
    """The `exact_below` of each patched method."""
    return "; ".join(f"`{name}` has `exact_below={least}`" for name, least in cell["exact_below"].items()) + "."


def overhead_words(row: Row) -> str:
    low, high = row["quartiles"]
    return f"{100 * row['overhead']:+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}]"


def caption(results: Row) -> str:
    """Commands, dates, machine."""
    runs = "; ".join(f"`{run['command']}` on {run['date']}" for run in results["runs"])
    settings = results["settings"]
    versions = settings["versions"]
    threads = f"{settings['threads']} thread{'s' if settings['threads'] > 1 else ''}"
    layers = "" if settings["layers"] is None else f", only the first {settings['layers']} layers"
    return (
        f"{runs}: {settings['machine']}, {threads}, {settings['dtype']}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}, operators {settings['operators']}{layers}; medians, in brackets the extremes; a vocabulary of "
        f"{settings['vocabulary']:,} where the weights are random."
    )


def updated(page: str, results: Row | None) -> str:
    """The page's text with its section made anew."""
    return between_marks(page, NAME, section(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args()
    results = kept_results(options.results)
    options.page.write_text(updated(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    if results is not None and cells_of(results, "case"):
        draw(results, options.plot)


if __name__ == "__main__":
    main()
