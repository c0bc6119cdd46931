"""The tables and the plot of docs/long-texts.md, made from the file that benchmarks/long_texts.py wrote.

    python benchmarks/long_texts_page.py [--results benchmarks/results/long-texts.json]

No number is typed by hand: a test compares the page with what this script makes.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from readme_tables import ROOT, kept_results_of

PAGE = ROOT / "docs" / "long-texts.md"
PLOT = ROOT / "docs" / "images" / "long-texts.png"
RESULTS = ROOT / "benchmarks" / "results" / "long-texts.json"
BEGIN, END = "<!-- long-texts:begin -->", "<!-- long-texts:end -->"
NOT_MEASURED = "Not measured yet: `python benchmarks/long_texts.py` writes the figures."
MODELS = {
    "all-MiniLM-L6-v2": "all-MiniLM-L6-v2, 512 trained positions, tiled",
    "squad-long": "squad-long, the same model trained on 2,048 positions",
}
FULL, ROUNDED = "full", "full-bfloat16"
SHORT = {"clusters": "C", "topk": "K", "key_clusters": "M", "sample": "S", "band": "W", "rounds": "rounds"}
EXACT = 1e-4  # errors below are those of exact attention to rounding: every key was an exact one
USUAL = {"band": 4, "rounds": 3}  # not worth a word in every row

Row = Mapping[str, Any]


def label(name: str, budgets: Mapping[str, Any]) -> str:
    """A budget as the tables call it: `refined` with its C, K, M and sample."""
    if name == FULL:
        return "`full`"
    if name == ROUNDED:
        return "`full` in bfloat16"
    values = budgets[name]
    if all(values.get(field) == "auto" for field in ("clusters", "topk", "key_clusters", "sample")):
        return f"`{values['method'].removesuffix('-clustered')}`, budgets `auto` (the default)"
    told = {field: values[field] for field in SHORT if field in values and values[field] != USUAL.get(field)}
    numbers = ", ".join(f"{SHORT[field]}={value}" for field, value in told.items())
    return f"`{values['method'].removesuffix('-clustered')}` {numbers}"


def by_length(cells: Mapping[str, Any]) -> list[str]:
    """The lengths of some cells, shortest first."""
    return sorted(cells, key=int)


def by_cost(results: Row) -> list[str]:
    """Budgets, cheapest first: by the time of the layer alone at the longest length where all were measured, else as listed."""
    names = list(results["budgets"])
    for tokens in reversed(by_length(results["layer"])):
        rows = results["layer"][tokens]["methods"]
        clustered = [name for name in names if name not in (FULL, ROUNDED)]
        if all(name in rows for name in clustered):
            clustered.sort(key=lambda name: rows[name]["median_ms"])
            return [ROUNDED, *clustered] if ROUNDED in names else clustered
    return names


def table(
    results: Row, cells: Mapping[str, Any], value: Callable[[Row], str], *, full: bool = False, rounded: bool = True
) -> list[str]:
    """One row for each budget, one column for each length; "–" where a budget was not measured."""
    lengths = by_length(cells)
    lines = ["| attention | " + " | ".join(f"{int(tokens):,}" for tokens in lengths) + " |"]
    lines.append("|---|" + "---:|" * len(lengths))
    names = [name for name in by_cost(results) if rounded or name != ROUNDED]
    for name in ([FULL] if full else []) + names:
        rows = [cells[tokens]["methods"].get(name) for tokens in lengths]
        if any(row is not None for row in rows):
            shown = ["–" if row is None else value(row) for row in rows]
            lines.append(f"| {label(name, results['budgets'])} | " + " | ".join(shown) + " |")
    return [*lines, ""]


def section(results: Row | None) -> str:
    """What stands between the two marks in docs/long-texts.md."""
    if results is None:
        return NOT_MEASURED
    lines: list[str] = []
    for name, cells in results["texts"].items():
        lines += [
            f"**Error of the last hidden states, {MODELS[name]}**; {counts(cells, 'texts')} contracts cut to so many tokens, mean over contracts of "
            f"‖h − h_full‖ / ‖h_full‖ (in brackets: cosine of the mean-pooled embedding with the exact one):",
            "",
            *table(results, cells, lambda row: f"{row['error']:.3f} ({row['cosine']:.4f})"),
        ]
    if results["layer"]:
        lines += [
            "**One attention layer alone**, milliseconds (times faster than PyTorch's exact attention):",
            "",
            *table(results, results["layer"], layer_cell, full=True, rounded=False),
        ]
    for name, cells in results["texts"].items():
        lines += [
            f"**The whole forward pass, {name}**, seconds for one text (times faster than exact attention):",
            "",
            *table(
                results, cells, lambda row: f"{row['median_s']:.2f} ({row['times_full']:.1f})", full=True, rounded=False
            ),
        ]
    lines += [*answers_section(results), *calibrated_section(results), caption(results)]
    if results["layer"] and results["texts"]:
        lines += ["", f"![Error against length and cost, by budget]({PLOT.relative_to(PAGE.parent)})"]
    return "\n".join(lines)


def layer_cell(row: Row) -> str:
    return f"{row['median_ms']:,.1f} ({row['times_full']:.1f})"


def counts(cells: Mapping[str, Any], key: str) -> str:
    """How many texts or stretches the cells of a table have."""
    found = sorted({cell[key] for cell in cells.values()})
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"


def answers_section(results: Row) -> list[str]:
    lines: list[str] = []
    for tokens in by_length(results["answers"]):
        cell = results["answers"][tokens]
        lines += [
            f"**SQuAD asked of stretches of up to {int(tokens):,} tokens**, {MODELS['squad-long']}; {cell['stretches']} questions, "
            f"{cell['mean_tokens']:,.0f} tokens on average with the question:",
            "",
            "| attention | same answers as full | F1 | error of the hidden states |",
            "|---|---:|---:|---:|",
        ]
        for name in [FULL, *by_cost(results)]:
            row = cell["methods"].get(name)
            if row is not None:
                same = "–" if name == FULL else f"{100 * row['same_answers']:.0f} %"
                error = "–" if name == FULL else f"{row['error']:.3f}"
                lines.append(f"| {label(name, results['budgets'])} | {same} | {row['f1']:.1f} | {error} |")
        lines.append("")
    return lines


def calibrated_section(results: Row) -> list[str]:
    """What `calibrate` chose for each length, layer by layer, and what came of it."""
    cells = [
        (name, int(tokens), cells[tokens])
        for name, cells in results.get("calibrated", {}).items()
        for tokens in by_length(cells)
    ]
    if not cells:
        return []
    targets = sorted({cell["target"] for _, _, cell in cells})
    lines = [
        f"**With `calibrate` on top**, target {' or '.join(map(str, targets))} for the error of the last hidden states; calibrated on "
        f"other contracts of the same length:",
        "",
        "| model | tokens | contracts for it | chosen for the layers, the first to the last | error on the contracts above | attention's time, of full "
        "| the whole pass, times faster |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for name, tokens, cell in cells:
        chosen = "; ".join(_layer(layer) for layer in cell["layers"])
        error, faster = (
            f"{cell[key]:.{digits}f}" if key in cell else "–" for key, digits in (("error", 3), ("times_full", 1))
        )
        lines.append(
            f"| {name} | {tokens:,} | {cell['texts']['known']} | {chosen} | {error} | {cell['attention']:.2f} | {faster} |"
        )
    return [*lines, ""]


def _layer(layer: Row) -> str:
    """A layer's budgets as short as a cell needs them."""
    if layer["method"] == FULL or layer["error"] is None:
        return "exact"
    return label("it", {"it": {"method": layer["method"], **layer["budgets"]}})


def caption(results: Row) -> str:
    """Commands, dates, machine."""
    runs = "; ".join(f"`{run['command']}` on {run['date']}" for run in results["runs"])
    shape, versions = results["shape"], results["versions"]
    threads = f"{results['threads']} thread{'s' if results['threads'] > 1 else ''}"
    return (
        f"{runs}: {results['machine']}, {threads}, {shape['dtype']}, torch {versions['torch']}, operators "
        f"{results['backend']}; B={shape['B']}, H={shape['H']}, D={shape['D']}, 6 layers; medians."
    )


def draw(results: Row, path: Path) -> None:
    """Error against the length, and against the cost of the layer, by budget."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    names = by_cost(results)
    colours = {name: colormaps["viridis"](0.92 * number / max(1, len(names) - 1)) for number, name in enumerate(names)}
    colours[ROUNDED] = "#8a8f98"
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    length_axis, cost_axis = figure.subplots(1, 2, sharey=True)
    model, cells = next(iter(results["texts"].items()))
    for name in names:
        points = [(int(tokens), cells[tokens]["methods"].get(name)) for tokens in by_length(cells)]
        known = [(tokens, row["error"]) for tokens, row in points if row is not None and row["error"] > EXACT]
        style = "--" if name == ROUNDED else "-"
        text = label(name, results["budgets"]).replace("`", "")
        length_axis.plot(*zip(*known, strict=True), style, marker="o", markersize=4, color=colours[name], label=text)
    length_axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="relative error of the last hidden states")
    lengths = [int(tokens) for tokens in by_length(cells)]
    length_axis.set_xticks(lengths, [f"{tokens:,}" for tokens in lengths], minor=False)
    length_axis.set_xticks([], minor=True)
    _draw_costs(cost_axis, results, cells, names, colours)
    for axis in (length_axis, cost_axis):
        axis.grid(alpha=0.3)
    length_axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    length_axis.yaxis.set_major_formatter("{x:g}")
    length_axis.yaxis.set_minor_locator(NullLocator())
    figure.suptitle(f"{MODELS[model]}: exact attention is error 0", fontsize=11)
    figure.legend(*length_axis.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw_costs(
    axis: Any, results: Row, cells: Mapping[str, Any], names: Iterable[str], colours: Mapping[str, Any]
) -> None:
    """A line for each length: error against microseconds; exact attention's cost is a mark at the lower edge."""
    from matplotlib.ticker import LogLocator, NullLocator

    markers = dict(zip(by_length(cells), "os^Dv<>P", strict=False))
    for tokens, marker in markers.items():
        timed = results["layer"].get(tokens, {}).get("methods", {})
        rows = {name: row for name, row in cells[tokens]["methods"].items() if name in timed and row["error"] > EXACT}
        points = {name: (timed[name]["us_per_token_and_head"], rows[name]["error"]) for name in names if name in rows}
        axis.plot(*zip(*sorted(points.values()), strict=True), "-", color="#c8ccd2", linewidth=1, zorder=1)
        for name, point in points.items():
            axis.plot(*point, marker, color=colours[name], markersize=6)
        axis.plot([], [], marker, color="#555555", label=f"{int(tokens):,} tokens")
        if FULL in timed:
            cost = timed[FULL]["us_per_token_and_head"]
            axis.plot(
                cost, 0.02, marker, color="#c0392b", markersize=6, transform=axis.get_xaxis_transform(), clip_on=False
            )
    axis.plot([], [], "o", color="#c0392b", label="exact attention's cost")
    axis.set(xscale="log", xlabel="microseconds per token and head, the attention layer alone")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.legend(fontsize=8)


def updated(page: str, results: Row | None) -> str:
    """The page's text with its section made anew."""
    before, found_begin, rest = page.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not (found_begin and found_end):
        raise SystemExit(f"{PAGE.name} must have the lines {BEGIN} and {END}. Put them where the tables belong.")
    return f"{before}{BEGIN}\n{section(results)}\n{END}{after}"


def kept_results(path: Path = RESULTS) -> Row | None:
    """The measured figures, None while there are none."""
    return kept_results_of(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args()
    results = kept_results(options.results)
    options.page.write_text(updated(options.page.read_text(encoding="utf-8"), results), encoding="utf-8")
    if results is not None and results["layer"] and results["texts"]:
        draw(results, options.plot)


if __name__ == "__main__":
    main()
