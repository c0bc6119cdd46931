"""Cells of the tables that compare methods, in report.md, on the terminal and on model cards."""

import math
from collections.abc import Sequence

NONE = "–"


def score(value: float | None, scale: float) -> str:
    """A score, times `scale`; None and NaN are not defined."""
    return NONE if value is None or math.isnan(value) else f"{value * scale:.2f}"


def difference(value: float | None, low: float | None, high: float | None, scale: float) -> str:
    """A difference with its interval, where there is one, times `scale`."""
    if value is None or math.isnan(value):
        return NONE
    shown = f"{value * scale:+.2f}"
    return shown if low is None or high is None else f"{shown} [{low * scale:+.2f}, {high * scale:+.2f}]"


def span(indices: Sequence[int]) -> str:
    """Neighbours in ascending order: "0 to 5", or "5"."""
    return f"{indices[0]} to {indices[-1]}" if len(indices) > 1 else str(indices[0])


def agreement(kind: str, value: float) -> str:
    """How far predictions are those of full attention: a share of them, or for regression a mean difference."""
    if math.isnan(value):
        return NONE
    return f"{100 * value:.1f} %" if kind == "same predictions" else f"differs by {value:.2g}"


def memory(size: int | None) -> str:
    """Bytes, as MiB."""
    return NONE if size is None else f"{size / 2**20:,.0f} MiB"
