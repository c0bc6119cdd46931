"""The metrics of GLUE from their definitions, in NumPy.

Predictions and references are arrays of shape (n,): indices of labels (accuracy, F1, Matthews), or scores (Pearson,
Spearman).
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from glue_eval.tasks import Task


def accuracy(predictions: ArrayLike, references: ArrayLike) -> float:
    """Share of equal labels, 0 to 1; NaN of nothing."""
    predicted, expected = _pair(predictions, references)
    return float(np.mean(predicted == expected)) if predicted.size else math.nan


def f1(predictions: ArrayLike, references: ArrayLike) -> float:
    """2·TP / (2·TP + FP + FN) of label 1, 0 to 1; 0 where label 1 occurs on neither side, as in scikit-learn."""
    predicted, expected = _pair(predictions, references)
    both = int(np.sum((predicted == 1) & (expected == 1)))
    total = int(np.sum(predicted == 1) + np.sum(expected == 1))
    return 2 * both / total if total else 0.0


def matthews_correlation(predictions: ArrayLike, references: ArrayLike) -> float:
    """Correlation of two labellings for any number of labels, -1 to 1 (Gorodkin 2004, R_K; for two labels Matthews
    1975).

    With s the number of rows, c of them equal, p_k predicted and t_k true rows of label k:
    (c·s − Σ p_k·t_k) / √((s² − Σ p_k²)(s² − Σ t_k²)); 0 where a side has one label only, as in scikit-learn.
    """
    predicted, expected = _pair(predictions, references)
    labels = np.unique(np.concatenate([predicted, expected]))
    rows, equal = predicted.size, int(np.sum(predicted == expected))
    counts = [(int(np.sum(predicted == label)), int(np.sum(expected == label))) for label in labels]
    numerator = equal * rows - sum(p * t for p, t in counts)
    spread = [rows * rows - sum(count[side] ** 2 for count in counts) for side in (0, 1)]
    return numerator / (math.sqrt(spread[0]) * math.sqrt(spread[1])) if all(spread) else 0.0


def pearson(predictions: ArrayLike, references: ArrayLike) -> float:
    """Linear correlation, -1 to 1, in float64; NaN where a side is constant."""
    predicted, expected = (side.astype(np.float64) for side in _pair(predictions, references))
    if predicted.size < 2 or np.ptp(predicted) == 0 or np.ptp(expected) == 0:
        return math.nan
    x, y = predicted - predicted.mean(), expected - expected.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1.0, 1.0))


def spearmanr(predictions: ArrayLike, references: ArrayLike) -> float:
    """Pearson correlation of the ranks, -1 to 1; equal values share the mean of their ranks."""
    predicted, expected = _pair(predictions, references)
    if not (np.isfinite(predicted).all() and np.isfinite(expected).all()):
        return math.nan
    return pearson(ranks(predicted), ranks(expected))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 of values (n,), float64; equal values get the mean of the ranks they cover."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]


METRICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearmanr": spearmanr,
}


def task_scores(task: Task, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """The task's metrics, and their mean as combined_score where there are two. Fractions, not percent."""
    scores = {name: METRICS[name](predictions, references) for name in task.metrics}
    if len(scores) > 1:
        scores["combined_score"] = sum(scores.values()) / len(scores)
    return scores


def _pair(predictions: ArrayLike, references: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    predicted, expected = np.asarray(predictions), np.asarray(references)
    if predicted.ndim != 1 or predicted.shape != expected.shape:
        raise ValueError(
            f"Predictions and references must be one-dimensional and of one length, got shapes {predicted.shape} and "
            f"{expected.shape}."
        )
    return predicted, expected
