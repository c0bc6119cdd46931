"""docs/speed.md and its plot, from the files that benchmarks/operators.py wrote: one with all cases, one of a processor with AVX2 only.

    python benchmarks/operators_page.py    # write both again from what is kept

No number is typed by hand: a test compares the page with what this script makes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from readme_tables import RESULTS, ROOT, between_marks, kept_results_of

PAGE = ROOT / "docs" / "speed.md"
PLOT = ROOT / "docs" / "images" / "operators-cpu.png"
FILE = RESULTS / "operators-cpu.json"
AVX2_FILE = RESULTS / "operators-cpu-avx2.json"
AVX2 = "with_avx2_only"  # where the second file's content stands in the first one's
NAME = "speed"
SDPA = "sdpa"
COLOURS = ("#d95f02", "#1f77b4", "#5ab4e5", "#2ca02c", "#9467bd", "#8c564b")

Results = Mapping[str, Any]


def crossover(lengths: Sequence[int], times: Sequence[float], baseline: Sequence[float]) -> float | None:
    """The length from which on `times` are not above `baseline`.

    Between two measured lengths the logarithm of the ratio is taken to be linear in that of the length.

    Returns:
        The shortest length where no time is above; None where that of the longest length is.
    """
    ratios = [math.log(time / base) for time, base in zip(times, baseline, strict=True)]
    slower = [place for place, ratio in enumerate(ratios) if ratio > 0]
    if not slower:
        return float(lengths[0])
    last = slower[-1]
    if last == len(lengths) - 1:
        return None
    share = ratios[last] / (ratios[last] - ratios[last + 1])
    return math.exp(math.log(lengths[last]) + share * math.log(lengths[last + 1] / lengths[last]))


def lengths_of(case: Results) -> list[int]:
    """The lengths that a case was measured at, shortest first."""
    return sorted(map(int, case["tokens"]))


def medians(case: Results, name: str) -> list[float]:
    """Milliseconds of a method by length."""
    return [case["tokens"][str(tokens)][name]["median_ms"] for tokens in lengths_of(case)]


def crossovers(results: Results) -> dict[str, float | None]:
    """Of every method that was measured, the baseline excepted."""
    lengths, baseline = lengths_of(results), medians(results, SDPA)
    return {name: crossover(lengths, medians(results, name), baseline) for name in results["budgets"]}


def crossover_text(found: float | None, lengths: Sequence[int]) -> str:
    if found is None:
        return f"no crossover up to {lengths[-1]:,} tokens"
    if found == lengths[0]:
        return f"faster at every measured length, from {lengths[0]:,} tokens on"
    return f"faster from about {found:,.0f} tokens on"


def section(results: Results | None) -> str:
    """What stands between the marks of the page."""
    if results is None:
        return "Not measured yet: `python benchmarks/operators.py --suite` writes the figures."
    lengths = lengths_of(results)
    lines = [f"**By length**, {described(results)}:", "", *times_table(results), ""]
    lines += ["**Crossover with SDPA**, interpolated between the lengths:", ""]
    lines += [f"- `{name}`: {crossover_text(found, lengths)}" for name, found in crossovers(results).items()]
    lines += ["", f"![Milliseconds against tokens, by method]({PLOT.relative_to(PAGE.parent)})", ""]
    if results.get("cases"):
        lines += ["**Other cases**:", "", *cases_table(results), ""]
    if has_memory(results):
        lines += [
            "**Extra memory of one call** in MiB, beside its inputs and its output:",
            "",
            *memory_table(results),
            "",
        ]
    lines += [caption(results)]
    if other := results.get(AVX2):
        lines += [
            "",
            f"**A processor with AVX2 only**, {described(other)}:",
            "",
            *times_table(other),
            "",
            caption(other),
        ]
    return "\n".join(lines)


def described(case: Results) -> str:
    """Shape, padding, threads and operators of a case."""
    shape, padding = case["shape"], case.get("padding", 0)
    padded = f", {padding:.0%} padding" if padding else ""
    threads = f"{case['threads']} thread{'s' if case['threads'] > 1 else ''}"
    return f"B={shape['B']}, H={shape['H']}, D={shape['D']}, {shape['dtype']}{padded}, {threads}, {case['backend']}"


def rows_of(results: Results) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Name, length and methods of every row: the base case, then the others."""
    for case in ({**results, "name": "base"}, *results.get("cases", [])):
        for tokens in lengths_of(case):
            yield case["name"], f"{tokens:,}", case["tokens"][str(tokens)]


def times_table(results: Results) -> list[str]:
    """The base case: a row for each length."""
    names = [SDPA, *results["budgets"]]
    rows = [[tokens, *time_cells(row, names)] for name, tokens, row in rows_of(results) if name == "base"]
    return table(["tokens", *map(title, names)], rows, texts=0)


def cases_table(results: Results) -> list[str]:
    """The other cases: a row for each case and length."""
    names = [SDPA, *results["budgets"]]
    rows = [[name, tokens, *time_cells(row, names)] for name, tokens, row in rows_of(results) if name != "base"]
    for case in results["cases"]:
        first = next(row for row in rows if row[0] == case["name"])
        first[0] = f"{case['name']}: {described(case)}"
    return table(["case", "tokens", *map(title, names)], rows, texts=1)


def memory_table(results: Results) -> list[str]:
    """All cases: MiB by method."""
    names = [SDPA, *results["budgets"]]
    rows = [[name, tokens, *(memory_cell(row.get(one)) for one in names)] for name, tokens, row in rows_of(results)]
    return table(["case", "tokens", *map(title, names)], rows, texts=1)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    """A table of Markdown; so many columns are texts, the rest numbers."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * texts + "---:|" * (len(header) - texts)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def title(name: str) -> str:
    return "SDPA" if name == SDPA else f"`{name}`"


def time_cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Median with extremes, and for all but the baseline how many times faster than it."""
    cells = []
    for name in names:
        if name not in row:
            cells.append("–")
            continue
        values = row[name]
        faster = "" if name == SDPA else f" **{values['times_sdpa']:.1f}×**"
        cells.append(f"{values['median_ms']:,.2f} [{values['least_ms']:,.2f}, {values['most_ms']:,.2f}]{faster}")
    return cells


def memory_cell(values: Mapping[str, Any] | None) -> str:
    found = None if values is None else values.get("extra_memory_mib")
    return "–" if found is None else f"{found:,.1f}"


def has_memory(results: Results) -> bool:
    return any(values.get("extra_memory_mib") is not None for _, _, row in rows_of(results) for values in row.values())


def source(results: Results) -> str:
    """Command, date, machine and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"`{results['command']}` on {results['date']}: {results['machine']}, {versions}"


def caption(results: Results) -> str:
    """The source, and what the numbers are."""
    numbers = "milliseconds of one layer, median [least, most] of the turns, and how many times faster than SDPA"
    return f"{source(results)}; {numbers}."


def draw(results: Results, path: Path) -> None:
    """Milliseconds against tokens, both logarithmic, with every crossover marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths = lengths_of(results)
    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot(lengths, medians(results, SDPA), "--", marker="s", markersize=4, color="#333333", label="SDPA (exact)")
    for (name, found), colour in zip(crossovers(results).items(), COLOURS, strict=False):
        label = f"{name}: {crossover_text(found, lengths)}"
        axis.plot(lengths, medians(results, name), marker="o", markersize=4, color=colour, label=label)
        if found is not None and found > lengths[0]:
            axis.plot(
                found,
                interpolated(lengths, medians(results, SDPA), found),
                "o",
                markersize=12,
                markerfacecolor="none",
                markeredgecolor=colour,
                markeredgewidth=1.6,
            )
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="milliseconds")
    axis.set_xticks(lengths, [f"{tokens:,}" for tokens in lengths])
    axis.set_xticks([], minor=True)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, loc="upper left")
    axis.set_title(f"One attention layer: {described(results)}; rings: crossovers with SDPA", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def interpolated(lengths: Sequence[int], times: Sequence[float], at: float) -> float:
    """The time at a length within the measured ones, linear in the logarithms of both."""
    place = max(number for number, tokens in enumerate(lengths[:-1]) if tokens <= at)
    share = math.log(at / lengths[place]) / math.log(lengths[place + 1] / lengths[place])
    return times[place] * (times[place + 1] / times[place]) ** share


def updated(page: str, results: Results | None) -> str:
    """The page's text with its section made anew."""
    return between_marks(page, NAME, section(results))


def kept_results() -> Results | None:
    """The content of both results files; None before the first measurement."""
    results = kept_results_of(FILE)
    return None if results is None else {**results, AVX2: kept_results_of(AVX2_FILE)}


def main() -> None:
    results = kept_results()
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    if results is not None:
        draw(results, PLOT)


if __name__ == "__main__":
    main()
