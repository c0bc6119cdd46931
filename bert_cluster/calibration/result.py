"""What a calibration found: the settings, and everything that speaks for them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bert_cluster.calibration.metrics import DESCRIPTIONS
from bert_cluster.calibration.progress import write_atomically
from bert_cluster.calibration.timing import Timings
from bert_cluster.config import Budget, ClusterConfig

SCHEMA_VERSION = 1
CONFIG_FILE, RESULT_FILE, CURVE_FILE = "cluster_config.json", "calibration.json", "curve.png"


@dataclass(frozen=True)
class LayerChoice:
    """One row of the table.

    Attributes:
        layer: index, None where all layers share one module.
        method, budgets: the settings; exact_below: texts with fewer tokens run exact.
        error: the metric on the calibration texts with this layer alone clustered; None where no text clusters in it.
        seconds: of this layer's attention for all calibration texts, by the timings; full_seconds: with full attention.
        reason: why it is exact, where it is.
    """

    layer: int | None
    method: str
    budgets: Mapping[str, Budget]
    exact_below: int
    error: float | None
    seconds: float
    full_seconds: float
    reason: str | None


@dataclass(frozen=True)
class Point:
    """One assignment: the metric on the calibration texts, and attention seconds over those of full."""

    error: float
    time: float
    chosen: bool


@dataclass(frozen=True)
class HeldOut:
    """The metric on texts that the search did not see: mean, its 95 % interval (None: one text), number of texts."""

    value: float
    low: float | None
    high: float | None
    texts: int


@dataclass(frozen=True)
class Calibration:
    """The result of `bert_cluster.calibration.run`; ``print`` shows the table.

    Attributes:
        config: the settings, for `patch`.
        metric, target: what was asked for.
        reached: whether there is something to patch: False means that every layer stays full.
        error: the metric on the calibration texts, all layers together.
        held_out: on the texts that the search did not see; None with a single text.
        layers: the rows of the table.
        curve: every assignment that was run.
        predicted: the best assignments for all targets, if the errors of single layers added up; none for "agreement".
        timings: the operators' seconds on this machine.
        model_seconds: measured forward passes of the whole model, "full" and "chosen".
        texts: how many, and their tokens: "calibration", "held_out", "shortest", "longest".
        notes: what a user should know.
    """

    config: ClusterConfig
    metric: str
    target: float
    reached: bool
    error: float
    held_out: HeldOut | None
    layers: tuple[LayerChoice, ...]
    curve: tuple[Point, ...]
    predicted: tuple[Point, ...]
    timings: Timings
    model_seconds: Mapping[str, float]
    texts: Mapping[str, int]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        rows = [("layer", "method", "budgets", "error alone", "time against full", ""), *map(_row, self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        ours, full = (sum(getattr(layer, name) for layer in self.layers) for name in ("seconds", "full_seconds"))
        sign = ">=" if self.metric == "agreement" else "<="
        lines += [
            "",
            f"{DESCRIPTIONS[self.metric]}, target {sign} {self.target:g}",
            f"  {self.texts['calibration']} calibration texts: {_number(self.error)}",
            f"  {self._held_out()}",
            f"attention: {_ratio(ours, full)} of full (operators, by length); whole model: "
            f"{_ratio(self.model_seconds['chosen'], self.model_seconds['full'])} of full (measured)",
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def _held_out(self) -> str:
        if self.held_out is None:
            return "no held-out text"
        bounds = (
            ""
            if self.held_out.low is None
            else f" [{_number(self.held_out.low)}, {_number(self.held_out.high or 0.0)}]"
        )
        return f"{self.held_out.texts} held-out texts: {_number(self.held_out.value)}{bounds} (95 % interval)"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {name: getattr(self, name) for name in ("metric", "target", "reached", "error")}
        return {
            "schema_version": SCHEMA_VERSION,
            "config": self.config.to_dict(),
            **data,
            "held_out": None if self.held_out is None else asdict(self.held_out),
            "layers": [asdict(layer) for layer in self.layers],
            "curve": [asdict(point) for point in self.curve if math.isfinite(point.error)],
            "predicted": [asdict(point) for point in self.predicted],
            "texts": dict(self.texts),
            "model_seconds": dict(self.model_seconds),
            "notes": list(self.notes),
            "timings": self.timings.to_dict(),
        }

    def save(self, folder: str | Path, *, plot: bool = True) -> list[str]:
        """Write cluster_config.json, calibration.json and, where matplotlib is installed, curve.png.

        Returns:
            The names of the files.
        """
        place = Path(folder)
        write_atomically(place / CONFIG_FILE, (json.dumps(self.config.to_dict(), indent=2) + "\n").encode())
        content = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(place / RESULT_FILE, (content + "\n").encode())
        written = [CONFIG_FILE, RESULT_FILE]
        if plot and self.draw(place / CURVE_FILE):
            written.append(CURVE_FILE)
        return written

    def draw(self, path: str | Path) -> bool:
        """Draw the error-time curve; returns False where matplotlib is not installed."""
        from bert_cluster.calibration.plot import draw

        return draw(self, Path(path))


def _row(layer: LayerChoice) -> tuple[str, ...]:
    budgets = [f"{name}={value}" for name, value in layer.budgets.items()]
    budgets += [f"exact_below={layer.exact_below}"] if layer.exact_below else []
    error = "0 (exact)" if layer.error is None else _number(layer.error)
    index = "all" if layer.layer is None else str(layer.layer)
    time = _ratio(layer.seconds, layer.full_seconds)
    return index, layer.method, " ".join(budgets), error, time, layer.reason or ""


def _number(value: float) -> str:
    return f"{value:.4g}"


def _ratio(ours: float, full: float) -> str:
    return f"{ours / full:.2f}" if full else "–"
