"""The nine GLUE tasks and the AX diagnostic, as data: columns, labels, splits, metrics, and how GLUE's own files are
laid out."""

from dataclasses import dataclass
from pathlib import Path

from bert_cluster.errors import BertClusterError

HUB_ID = "nyu-mll/glue"


class UnknownTaskError(BertClusterError, ValueError):
    """There is no GLUE task of that name."""


@dataclass(frozen=True)
class Split:
    """A part of a task's data: its name on the Hub, and what is appended to its keys and file names in the results."""

    name: str
    suffix: str = ""


@dataclass(frozen=True)
class TsvLayout:
    """Where GLUE's tab-separated files keep what we read, by header names in the order of `Task.columns`.

    Attributes:
        columns: header names of the texts.
        label: header name of the label.
        without_header: columns of files that have no header line, by position (CoLA).
        short_rows: the distributed training file has damaged lines with too few cells, left out as on the Hub (QQP).
    """

    columns: tuple[str, ...]
    label: str
    without_header: tuple[str, ...] = ()
    short_rows: bool = False


@dataclass(frozen=True)
class Task:
    """One GLUE task.

    Attributes:
        name: as in --task_name, and the dataset's configuration on the Hub.
        title: as people write it.
        columns: one or two text columns, by their names on the Hub.
        labels: names of the labels in the dataset's order; empty for a score (STS-B).
        metrics: names in `scores.METRICS`. Where there are two, results also hold their mean, combined_score.
        layouts: layouts of the files that GLUE distributes.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    layouts: tuple[TsvLayout, ...]
    validation_splits: tuple[Split, ...] = (Split("validation"),)
    test_splits: tuple[Split, ...] = (Split("test"),)

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def primary_metric(self) -> str:
        return self.metrics[0] if len(self.metrics) == 1 else "combined_score"

    @property
    def evaluation_splits(self) -> tuple[Split, ...]:
        """The validation splits; for AX, which has none, its test split."""
        return self.validation_splits or self.test_splits


NLI = ("entailment", "neutral", "contradiction")
PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
ACCURACY = ("accuracy",)

_ALL = [
    Task(
        "cola",
        "CoLA",
        ("sentence",),
        ("unacceptable", "acceptable"),
        ("matthews_correlation",),
        (TsvLayout(("sentence",), "label", without_header=("source", "label", "mark", "sentence")),),
    ),
    Task("sst2", "SST-2", ("sentence",), ("negative", "positive"), ACCURACY, (TsvLayout(("sentence",), "label"),)),
    Task(
        "mrpc",
        "MRPC",
        PAIR,
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        (TsvLayout(("#1 String", "#2 String"), "Quality"),),
    ),
    Task(
        "qqp",
        "QQP",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        (TsvLayout(("question1", "question2"), "is_duplicate", short_rows=True),),
    ),
    Task("stsb", "STS-B", PAIR, (), ("pearson", "spearmanr"), (TsvLayout(PAIR, "score"),)),
    Task(
        "mnli",
        "MNLI",
        ("premise", "hypothesis"),
        NLI,
        ACCURACY,
        (TsvLayout(PAIR, "gold_label"),),
        (Split("validation_matched"), Split("validation_mismatched", "_mm")),
        (Split("test_matched"), Split("test_mismatched", "_mm")),
    ),
    Task(
        "qnli", "QNLI", ("question", "sentence"), ENTAILMENT, ACCURACY, (TsvLayout(("question", "sentence"), "label"),)
    ),
    Task("rte", "RTE", PAIR, ENTAILMENT, ACCURACY, (TsvLayout(PAIR, "label"),)),
    Task("wnli", "WNLI", PAIR, ("not_entailment", "entailment"), ACCURACY, (TsvLayout(PAIR, "label"),)),
    Task(
        "ax",
        "AX",
        ("premise", "hypothesis"),
        NLI,
        ("matthews_correlation",),
        (TsvLayout(("Premise", "Hypothesis"), "Label"), TsvLayout(PAIR, "label")),
        validation_splits=(),
    ),
]

TASKS = {task.name: task for task in _ALL}


def get_task(name: str) -> Task:
    """The task of that name; case, "-" and "_" do not matter ("STS-B" is stsb).

    Raises:
        UnknownTaskError: lists the names there are.
    """
    task = TASKS.get(name.lower().replace("-", "").replace("_", ""))
    if task is None:
        raise UnknownTaskError(f"There is no GLUE task {name!r}. Expected one of {', '.join(TASKS)}.")
    return task


def split_of_file(task: Task, path: str | Path) -> Split:
    """Which of the task's evaluation splits a file holds: MNLI's mismatched one where the file's name says so, else the
    first."""
    splits = task.evaluation_splits
    return splits[-1] if len(splits) > 1 and "mismatched" in Path(path).name.lower() else splits[0]
