"""plot.png: one row per method; score, time and memory side by side."""

import importlib.util
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_cluster.cells import NONE
from bert_cluster.evaluation.errors import MissingPackageError
from bert_cluster.evaluation.results import MethodResult, Results
from bert_cluster.evaluation.store import write_atomically

FULL_COLOUR, CLUSTERED_COLOUR = "#8a8f98", "#1f77b4"


def require_matplotlib() -> None:
    """Raise MissingPackageError before anything is run if the plot could not be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingPackageError(
            "plot.png needs matplotlib, which is not installed: pip install matplotlib, or add --no_plot."
        )


def draw(results: Results, path: Path) -> None:
    """Draw the comparison and write it atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(results)
    figure = Figure(figsize=(4.2 * len(panels), 1.6 + 0.55 * len(results.methods)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for number, (axis, (title, values, labels, errors)) in enumerate(zip(axes, panels, strict=True)):
        _bars(axis, results.methods, title, values, labels, errors)
        if number:
            axis.set_yticklabels([])
    if any(result.differences for result in results.methods):
        figure.supxlabel("whiskers: 95 % interval of the difference to full, around the score", fontsize=8)
    figure.suptitle(
        f"{results.task['title']}: {Path(results.model['name']).name}, {results.data['examples']:,} examples",
        parse_math=False,  # a name may hold a $
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_atomically(path, lambda file: _write(file, picture.getvalue()))


def _write(file: Any, content: bytes) -> None:
    file.write(content)


Panel = tuple[str, Sequence[float | None], list[str], list[tuple[float, float]] | None]


def _panels(results: Results) -> list[Panel]:
    """(title, value of each method, text beside each bar, error bars) of each panel that has something to show."""
    methods = results.methods
    scale = 1.0 if results.task["score_unit"] == "percent" else 100.0
    panels: list[Panel] = []
    for name in results.task["primary_scores"]:
        if name not in methods[0].scores:
            continue
        values = [result.scores[name] * scale for result in methods]
        texts = [NONE if math.isnan(value) else f"{value:.1f}" for value in values]
        whiskers = [_whisker(result, name, scale) for result in methods]
        panels.append((f"{name}, higher is better", values, texts, whiskers))
    shares = [result.agreement.value * 100 if result.agreement is not None else None for result in methods]
    kinds = {result.agreement.kind for result in methods if result.agreement is not None}
    if kinds == {"same predictions"}:
        texts = ["(the reference)" if share is None else f"{share:.1f} %" for share in shares]
        panels.append(("same predictions as full", shares, texts, None))
    seconds = [sum(result.run.seconds) for result in methods]
    panels.append(("seconds, lower is better", seconds, [f"{value:.1f}" for value in seconds], None))
    memory = [result.run.peak_memory_bytes for result in methods]
    if any(memory):
        sizes = [None if peak is None else peak / 2**20 for peak in memory]
        panels.append(("peak memory, MiB", sizes, ["" if size is None else f"{size:,.0f}" for size in sizes], None))
    return panels


def _whisker(result: MethodResult, name: str, scale: float) -> tuple[float, float]:
    """Distances below and above the score: the interval of the difference to full, drawn around the score."""
    one = None if result.differences is None else result.differences.get(name)
    if one is None or one.low is None or one.high is None:
        return 0.0, 0.0
    return max(0.0, one.value - one.low) * scale, max(0.0, one.high - one.value) * scale


def _bars(
    axis: Any,
    methods: Sequence[MethodResult],
    title: str,
    values: Sequence[float | None],
    texts: Sequence[str],
    whiskers: Sequence[tuple[float, float]] | None,
) -> None:
    places = range(len(methods))
    lengths = [0.0 if value is None or math.isnan(value) else value for value in values]
    colours = [FULL_COLOUR if result.method.config is None else CLUSTERED_COLOUR for result in methods]
    axis.barh(places, lengths, color=colours, height=0.6)
    ends = list(lengths)
    for place, (below, above) in enumerate(whiskers or ()):
        if below or above:
            style = {"color": "#222222", "capsize": 3, "linewidth": 1.2}
            axis.errorbar(lengths[place], place, xerr=[[below], [above]], **style)
            ends[place] += above
    for place, end, text in zip(places, ends, texts, strict=True):
        axis.annotate(text, (max(end, 0), place), xytext=(5, 0), textcoords="offset points", va="center")
    axis.set_xlim(min(0.0, *lengths), 1.25 * max(1e-9, *ends))  # room for the numbers
    axis.set_yticks(list(places), [result.method.name for result in methods])
    axis.invert_yaxis()
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
