"""curve.png: error against time, for every assignment that calibration ran."""

import importlib.util
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from bert_cluster.calibration.metrics import DESCRIPTIONS
from bert_cluster.calibration.progress import write_atomically

if TYPE_CHECKING:
    from bert_cluster.calibration.result import Calibration

GREY, BLUE, RED = "#8a8f98", "#1f77b4", "#b3261e"


def draw(result: "Calibration", path: Path) -> bool:
    """Draw and write the curve; returns False where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    if result.predicted:
        steps = [(point.time, point.error) for point in result.predicted]
        axis.plot(*zip(*steps, strict=True), "-", color=GREY, linewidth=1, label="if errors of single layers added up")
    points = sorted((point.time, point.error) for point in result.curve if math.isfinite(point.error))
    axis.plot([time for time, _ in points], [error for _, error in points], "o", color=GREY, label="assignments run")
    axis.plot([1.0], [1.0 if result.metric == "agreement" else 0.0], "s", color="black", label="full attention")
    chosen = [point for point in result.curve if point.chosen]
    axis.plot([p.time for p in chosen], [p.error for p in chosen], "o", color=BLUE, markersize=11, label="chosen")
    if result.held_out is not None and chosen:
        value, low, high = result.held_out.value, result.held_out.low, result.held_out.high
        spread = None if low is None or high is None else [[max(0.0, value - low)], [max(0.0, high - value)]]
        axis.errorbar(
            [chosen[0].time], [value], yerr=spread, fmt="D", color=RED, capsize=4, label="chosen, held-out texts"
        )
    axis.axhline(result.target, color=RED, linestyle="--", linewidth=1, label="target")
    axis.set_xlabel("attention time against full (operators on this machine)")
    axis.set_ylabel(DESCRIPTIONS[result.metric].replace(", in nats", "\nin nats"), fontsize=9)
    axis.set_xlim(left=0.0)
    if result.metric != "agreement":
        axis.set_ylim(bottom=0.0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_atomically(path, picture.getvalue())
    return True
