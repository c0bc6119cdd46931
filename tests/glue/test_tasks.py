"""The tasks as data, and how a task or a split is found by name."""

import pytest

from glue_eval.scores import METRICS
from glue_eval.tasks import TASKS, Task, UnknownTaskError, get_task, split_of_file


def test_the_nine_tasks_and_the_diagnostic_are_there() -> None:
    assert set(TASKS) == {"cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli", "ax"}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_is_complete(task: Task) -> None:
    assert len(task.columns) in (1, 2)
    assert all(len(layout.columns) == len(task.columns) for layout in task.layouts)
    assert set(task.metrics) <= set(METRICS)
    assert task.evaluation_splits
    assert task.is_regression == (task.name == "stsb")


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("cola", ("unacceptable", "acceptable")),
        ("sst2", ("negative", "positive")),
        ("mrpc", ("not_equivalent", "equivalent")),
        ("qqp", ("not_duplicate", "duplicate")),
        ("mnli", ("entailment", "neutral", "contradiction")),
        ("ax", ("entailment", "neutral", "contradiction")),
        ("qnli", ("entailment", "not_entailment")),
        ("rte", ("entailment", "not_entailment")),
        ("wnli", ("not_entailment", "entailment")),
    ],
)
def test_labels_are_in_the_order_of_the_hub(name: str, labels: tuple[str, ...]) -> None:
    assert TASKS[name].labels == labels


def test_primary_metric_is_the_mean_where_there_are_two() -> None:
    primary = {name: task.primary_metric for name, task in TASKS.items()}
    combined = dict.fromkeys(("mrpc", "qqp", "stsb"), "combined_score")
    matthews = dict.fromkeys(("cola", "ax"), "matthews_correlation")
    assert primary == {**dict.fromkeys(TASKS, "accuracy"), **combined, **matthews}


def test_mnli_is_evaluated_both_ways_and_ax_on_its_only_split() -> None:
    assert [(split.name, split.suffix) for split in TASKS["mnli"].evaluation_splits] == [
        ("validation_matched", ""),
        ("validation_mismatched", "_mm"),
    ]
    assert [split.name for split in TASKS["ax"].evaluation_splits] == ["test"]


@pytest.mark.parametrize("name", ["STS-B", "stsb", "sts_b"])
def test_a_task_is_found_however_it_is_written(name: str) -> None:
    assert get_task(name) is TASKS["stsb"]


def test_an_unknown_task_names_those_there_are() -> None:
    with pytest.raises(UnknownTaskError, match=r"There is no GLUE task 'squad'. Expected one of cola, sst2, .*, ax\."):
        get_task("squad")


@pytest.mark.parametrize(
    ("task", "file", "suffix"),
    [("mnli", "x/dev_matched.tsv", ""), ("mnli", "x/Dev_Mismatched.jsonl", "_mm"), ("rte", "mismatched.tsv", "")],
)
def test_the_split_of_a_file_is_told_by_its_name(task: str, file: str, suffix: str) -> None:
    assert split_of_file(TASKS[task], file).suffix == suffix
