"""The `evaluate.Metric` classes: they are what evaluate expects, need no network, and compute what `scores` computes."""

from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest

from glue_eval.metrics import F1, Accuracy, Glue, Matthews, Pearson, Spearman
from glue_eval.scores import METRICS, task_scores
from glue_eval.tasks import TASKS, Task, UnknownTaskError


def sides(regression: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(3)
    references = random.rand(40) * 5 if regression else random.randint(2, size=40)
    noisy = references + random.randn(40) if regression else np.where(random.rand(40) < 0.3, 1 - references, references)
    return noisy, references


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_glue_computes_the_scores_of_its_task(task: Task) -> None:
    predictions, references = sides(task.is_regression)
    metric = Glue(task.name, keep_in_memory=True)
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=predictions, references=references) == task_scores(task, predictions, references)


@pytest.mark.parametrize(
    ("kind", "regression"), [(Accuracy, False), (F1, False), (Matthews, False), (Pearson, True), (Spearman, True)]
)
def test_single_metrics_have_one_value(kind: Any, regression: bool) -> None:
    predictions, references = sides(regression)
    expected = {kind.metric: METRICS[kind.metric](predictions, references)}
    assert kind(keep_in_memory=True).compute(predictions=predictions, references=references) == expected


def test_batches_add_up(tmp_path: Path) -> None:
    predictions, references = sides(False)
    metric = Glue("mrpc", cache_dir=str(tmp_path))
    for part in (slice(0, 15), slice(15, 40)):
        metric.add_batch(predictions=predictions[part], references=references[part])
    assert metric.compute() == task_scores(TASKS["mrpc"], predictions, references)


def test_metrics_combine() -> None:
    combined = evaluate.combine([Accuracy(keep_in_memory=True), F1(keep_in_memory=True)])
    assert combined.compute(predictions=[1, 0, 1], references=[1, 1, 1]) == {"accuracy": 2 / 3, "f1": 0.8}


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(UnknownTaskError, match="There is no GLUE task 'mnl1'"):
        Glue("mnl1")
