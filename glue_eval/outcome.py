"""From logits to predictions, scores, intervals and files."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_cluster.evaluation.bootstrap import Difference, paired_differences
from bert_cluster.evaluation.command import metrics_of, write_metrics
from bert_cluster.evaluation.compare import Comparison, Question
from bert_cluster.evaluation.methods import Method
from bert_cluster.evaluation.results import Agreement, MethodResult, Results, describe_data
from bert_cluster.evaluation.runner import MethodRun
from bert_cluster.evaluation.store import write_text
from glue_eval.data import GlueData
from glue_eval.labels import LabelMap
from glue_eval.scores import task_scores
from glue_eval.tasks import Task


@dataclass(frozen=True)
class Predicted:
    """One method's predictions in the dataset's labels, part by part."""

    method: Method
    run: MethodRun
    predictions: list[np.ndarray]
    scores: list[dict[str, float]]
    losses: list[float | None]
    not_finite: int


def cross_entropy(logits: np.ndarray, labels: np.ndarray, outputs: Sequence[int]) -> float:
    """Mean of -log P(label), the eval_loss of run_glue. P(label) sums the outputs that stand for the label.

    Args:
        logits: (n, outputs), any float type; computed in float64.
        labels: (n,) index of the dataset's label.
        outputs: for each output the dataset's label.
    """
    logits = logits.astype(np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    weights = np.exp(logits)
    chosen = np.where(np.asarray(outputs)[None, :] == labels[:, None], weights, 0.0).sum(axis=1)
    return float(np.mean(np.log(weights.sum(axis=1)) - np.log(chosen)))


def predict(task: Task, parts: Sequence[GlueData], labels: LabelMap, method: Method, run: MethodRun) -> Predicted:
    predictions: list[np.ndarray] = []
    scores: list[dict[str, float]] = []
    losses: list[float | None] = []
    not_finite = 0
    for part, outputs in zip(parts, run.outputs, strict=True):
        logits = np.stack(outputs["logits"])
        not_finite += int((~np.isfinite(logits)).any(axis=1).sum())
        predictions.append(labels.predict(logits))
        if part.labels is None:
            scores.append({})
            losses.append(None)
            continue
        scores.append(task_scores(task, predictions[-1], part.labels))
        if task.is_regression:
            losses.append(float(np.mean((predictions[-1] - part.labels) ** 2)))
        else:
            losses.append(cross_entropy(logits, part.labels, labels.outputs))
    return Predicted(method, run, predictions, scores, losses, not_finite)


def write_method(
    options: argparse.Namespace, task: Task, parts: Sequence[GlueData], one: Predicted, comparison: Comparison
) -> None:
    """OUTPUT_DIR/METHOD: the files of run_glue."""
    folder = Path(options.output_dir) / one.method.name
    metrics: dict[str, Any] = {}
    for number, part in enumerate(parts):
        batches = sum(batch.part == number for batch in comparison.plan.batches)
        loss = one.losses[number]
        scores = one.scores[number] if loss is None else {**one.scores[number], "loss": loss}
        values = metrics_of(scores, one.run, number, len(part), batches)
        metrics.update({f"{name}{part.split.suffix}": value for name, value in values.items()})
        file = f"predict_results_{task.name}{part.split.suffix.replace('_', '-')}.txt"
        write_text(folder / file, _prediction_lines(task, one.predictions[number]))
    write_metrics(folder, metrics)


def _prediction_lines(task: Task, predictions: np.ndarray) -> str:
    shown = (
        [f"{value:3.3f}" for value in predictions] if task.is_regression else [task.labels[int(p)] for p in predictions]
    )
    return "index\tprediction\n" + "".join(f"{index}\t{value}\n" for index, value in enumerate(shown))


def gather_results(
    options: argparse.Namespace,
    task: Task,
    question: Question,
    parts: Sequence[GlueData],
    labels: LabelMap,
    comparison: Comparison,
    predicted: Sequence[Predicted],
    notes: Sequence[str],
) -> Results:
    full = next((one for one in predicted if one.method.config is None), None)
    return Results(
        command="glue_eval",
        task={
            "name": task.name,
            "title": task.title,
            "primary_scores": [
                f"{task.primary_metric}{part.split.suffix}" for part in parts if part.labels is not None
            ],
            "score_unit": "fraction",
            "labels": list(task.labels),
            "label_map": {"how": labels.how, "outputs": list(labels.outputs)},
        },
        model=comparison.model,
        data={
            **describe_data([(part.source, len(part), part.labels is not None) for part in parts]),
            "splits": [part.split.name for part in parts],
        },
        settings={**question.settings, "per_device_eval_batch_size": options.per_device_eval_batch_size},
        batches=comparison.batches(),
        environment=comparison.environment,
        methods=[_compared(options, task, parts, one, full) for one in predicted],
        bootstrap={"samples": options.bootstrap_samples, "level": 0.95, "seed": options.seed or 0},
        notes=[*notes, *comparison.notes],
    )


def _compared(
    options: argparse.Namespace, task: Task, parts: Sequence[GlueData], one: Predicted, full: Predicted | None
) -> MethodResult:
    scores: dict[str, float] = {}
    differences: dict[str, Difference] | None = None
    for number, part in enumerate(parts):
        scores.update({f"{name}{part.split.suffix}": value for name, value in one.scores[number].items()})
        if full is None or full is one or part.labels is None:
            continue
        found = _differences(options, task, part.labels, one.predictions[number], full.predictions[number])
        differences = {**(differences or {}), **{f"{name}{part.split.suffix}": value for name, value in found.items()}}
    agreement = None if full is None or full is one else _agreement(task, one, full)
    return MethodResult(one.method, one.run, scores, differences, agreement, one.not_finite)


def _differences(
    options: argparse.Namespace, task: Task, labels: np.ndarray, own: np.ndarray, full: np.ndarray
) -> Mapping[str, Difference]:
    return paired_differences(
        lambda indices: task_scores(task, own[indices], labels[indices]),
        lambda indices: task_scores(task, full[indices], labels[indices]),
        len(labels),
        samples=options.bootstrap_samples,
        seed=options.seed or 0,
    )


def _agreement(task: Task, one: Predicted, full: Predicted) -> Agreement:
    own, base = np.concatenate(one.predictions), np.concatenate(full.predictions)
    if task.is_regression:
        return Agreement("mean absolute difference", float(np.mean(np.abs(own - base))))
    return Agreement("same predictions", float(np.mean(own == base)))
