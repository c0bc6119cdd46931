"""The plot of docs/models.md: seconds of a forward pass against tokens, a panel for each shape."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_shapes import FULL, METHODS, SHAPES

COLOURS = dict(zip(METHODS, ("#8a8f98", "#1f77b4", "#d95f02", "#1b9e77"), strict=True))


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Both axes logarithmic, batch 1 without padding; dashed is the time at Amdahl's ceiling."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = {name: cells for name in SHAPES if len(cells := plain_cells(results, name)) > 1}  # one length makes no line
    figure = Figure(figsize=(1 + 4 * max(1, len(drawn)), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, max(1, len(drawn)), squeeze=False)[0]
    for axis, (name, cells) in zip(axes, drawn.items(), strict=False):
        draw_shape(axis, cells)
        axis.set_title(name, fontsize=11)
    axes[0].set_ylabel("seconds of a forward pass")
    if drawn:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def plain_cells(results: Mapping[str, Any], shape: str) -> list[Mapping[str, Any]]:
    """The cells of one shape with one text and no padding, shortest first."""
    found = [
        cell
        for cell in results["cells"].values()
        if (cell["kind"], cell["shape"], cell.get("batch"), cell.get("padding")) == ("case", shape, 1, "none")
    ]
    return sorted(found, key=lambda cell: cell["tokens"])


def draw_shape(axis: Any, cells: list[Mapping[str, Any]]) -> None:
    """A line for each method, and one for its ceiling: the rest of the pass and the operators alone."""
    from matplotlib.ticker import LogFormatter

    for method, colour in COLOURS.items():
        rows = [(cell["tokens"], cell["methods"][method]) for cell in cells]
        known = [(tokens, row["median_s"]) for tokens, row in rows if "not_run" not in row]
        at_ceiling = [
            (tokens, row["median_s"] * row["reached"]) for tokens, row in rows if row.get("reached") is not None
        ]
        if known:
            axis.plot(*zip(*known, strict=True), marker="o", markersize=4, color=colour, label=method)
        if at_ceiling and method != FULL:
            axis.plot(*zip(*at_ceiling, strict=True), "--", linewidth=1, color=colour)
    axis.plot([], [], "--", linewidth=1, color="#555555", label="at Amdahl's ceiling")
    axis.set(xscale="log", yscale="log", xlabel="tokens")
    lengths = [cell["tokens"] for cell in cells]
    axis.set_xticks(lengths, [f"{tokens:,}" for tokens in lengths], fontsize=8)
    axis.set_xticks([], minor=True)
    axis.yaxis.set_major_formatter(LogFormatter())
    axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    axis.tick_params(axis="y", which="both", labelsize=8)
    axis.grid(alpha=0.3)
