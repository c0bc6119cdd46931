"""The metrics of GLUE as `evaluate.Metric` classes that need no network and no scikit-learn.

They compute what `evaluate.load("glue", task)` and its single metrics compute, AX included:

    Glue("mrpc").compute(predictions=[1, 0, 1], references=[1, 1, 1])
"""

from typing import Any

import datasets
import evaluate

from glue_eval.scores import METRICS, task_scores
from glue_eval.tasks import TASKS, get_task

CITATION = """\
@inproceedings{wang2019glue, title={{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding}, author={Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and Bowman,
Samuel R.}, booktitle={International Conference on Learning Representations}, year={2019}}"""


def _information(description: str, value_type: str) -> evaluate.MetricInfo:
    value = datasets.Value(value_type)
    return evaluate.MetricInfo(
        description=description,
        citation=CITATION,
        inputs_description="predictions and references: one label (an integer) or score (a float) a row.",
        features=datasets.Features({"predictions": value, "references": value}),
    )


class Glue(evaluate.Metric):
    """The metrics of one GLUE task, named as run_glue names them; with two metrics also their mean, combined_score.

    Args:
        config_name: the task, as in `tasks.TASKS`.
        options: those of `evaluate.Metric`, for example keep_in_memory.

    Raises:
        UnknownTaskError: there is no such task.
    """

    def __init__(self, config_name: str, **options: Any) -> None:
        super().__init__(config_name=get_task(config_name).name, **options)

    def _info(self) -> evaluate.MetricInfo:
        task = TASKS[self.config_name]
        return _information(
            f"Metrics of {task.title}: {', '.join(task.metrics)}", "float64" if task.is_regression else "int64"
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return task_scores(TASKS[self.config_name], predictions, references)


class _Single(evaluate.Metric):
    """One metric by its name in `scores.METRICS`; subclasses set the name."""

    metric = ""
    value_type = "int64"

    def _info(self) -> evaluate.MetricInfo:
        return _information(METRICS[self.metric].__doc__ or "", self.value_type)

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {self.metric: METRICS[self.metric](predictions, references)}


class Accuracy(_Single):
    """Share of equal labels."""

    metric = "accuracy"


class F1(_Single):
    """F1 of label 1."""

    metric = "f1"


class Matthews(_Single):
    """Matthews correlation for any number of labels."""

    metric = "matthews_correlation"


class Pearson(_Single):
    """Linear correlation of scores."""

    metric = "pearson"
    value_type = "float64"


class Spearman(_Single):
    """Rank correlation of scores."""

    metric = "spearmanr"
    value_type = "float64"
