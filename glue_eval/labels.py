"""Which label of the dataset each output of a checkpoint stands for.

A checkpoint says so by the names in `config.id2label`. Their order is its own (many MNLI checkpoints start with
contradiction), so predictions are mapped, and the checkpoint's configuration is left alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bert_cluster.errors import BertClusterError
from glue_eval.tasks import Task


class LabelError(BertClusterError, ValueError):
    """The checkpoint's outputs cannot be matched with the task's labels."""


@dataclass(frozen=True)
class LabelMap:
    """Labels of a checkpoint's outputs.

    Attributes:
        outputs: for each output the index of the dataset's label; empty for a score (STS-B).
        how: "names" (the checkpoint's names are the dataset's), "order" (it has none, so the dataset's order was
            assumed), "option" (--label_map) or "regression".
        note: one sentence for the table and the results.
    """

    outputs: tuple[int, ...]
    how: str
    note: str

    def predict(self, logits: np.ndarray) -> np.ndarray:
        """(n, outputs) -> (n,): labels in the dataset's order, int64, of the largest logit (the first of equal ones;
        NaN counts as -inf); for a score the only output, float64."""
        if not self.outputs:
            return np.asarray(logits[:, 0], dtype=np.float64)
        comparable = np.where(np.isnan(logits), -np.inf, logits)
        labels: np.ndarray = np.array(self.outputs, dtype=np.int64)[np.argmax(comparable, axis=1)]
        return labels


def normalise_name(name: str) -> str:
    """Names are compared in lower case, with "_" for blanks and hyphens."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def map_labels(id2label: Mapping[int, str] | Mapping[str, str], task: Task, option: str | None = None) -> LabelMap:
    """Match a checkpoint's outputs with the task's labels.

    Args:
        id2label: `config.id2label`: output -> name.
        option: the value of --label_map, which is stronger than the names: the dataset's labels of outputs 0, 1, …
            ("contradiction,entailment,neutral"), or pairs of the checkpoint's name or number and the dataset's label
            ("LABEL_0=contradiction,LABEL_1=entailment,…"). Several outputs may stand for one label.

    Raises:
        LabelError: the number of outputs does not fit the task, or their names are others than the task's.
    """
    names = [name for _, name in sorted((int(number), str(name)) for number, name in id2label.items())]
    if task.is_regression:
        return _regression(names, task, option)
    if option is not None:
        return _by_option(names, task, option)
    words = {normalise_name(label): index for index, label in enumerate(task.labels)}
    found = [normalise_name(name) for name in names]
    if sorted(found) == sorted(words):
        outputs = tuple(words[name] for name in found)
        return LabelMap(outputs, "names", f"Labels by name: the checkpoint's outputs are {', '.join(names)}.")
    if found in ([f"label_{index}" for index in range(len(words))], [str(index) for index in range(len(words))]):
        note = (
            f"The checkpoint's outputs have no names ({', '.join(names)}); the dataset's order was assumed: "
            f"{', '.join(task.labels)}. --label_map sets another."
        )
        return LabelMap(tuple(range(len(words))), "order", note)
    raise LabelError(
        f"The checkpoint's outputs are {', '.join(names)}, the labels of {task.title} are {', '.join(task.labels)}. "
        f"Name the dataset's label of every output with --label_map, for example --label_map {_example(names, task)}, "
        "or use a checkpoint of this task."
    )


def _example(names: list[str], task: Task) -> str:
    return ",".join(
        f"{name.replace(' ', '_')}={task.labels[index % len(task.labels)]}" for index, name in enumerate(names)
    )


def _regression(names: list[str], task: Task, option: str | None) -> LabelMap:
    if option is not None:
        raise LabelError(f"{task.title} predicts a score and has no labels. Leave out --label_map.")
    if len(names) != 1:
        raise LabelError(
            f"{task.title} predicts a score with one output, the checkpoint has {len(names)} ({', '.join(names)}). Use "
            "a checkpoint of this task."
        )
    return LabelMap((), "regression", "The checkpoint's only output is the score.")


def _by_option(names: list[str], task: Task, option: str) -> LabelMap:
    items = [item.strip() for item in option.split(",")]
    if all("=" in item for item in items):
        chosen = _by_pairs(names, dict(item.rsplit("=", 1) for item in items))
    else:
        chosen = items
    if len(chosen) != len(names):
        raise LabelError(
            f"--label_map names {len(chosen)} labels ({option}), the checkpoint has {len(names)} outputs "
            f"({', '.join(names)}). Name one label for each."
        )
    words = {normalise_name(label): index for index, label in enumerate(task.labels)}
    words |= {str(index): index for index in range(len(task.labels))}
    for label in chosen:
        if normalise_name(label) not in words:
            raise LabelError(
                f"--label_map: {task.title} has no label {label!r}. Its labels are {', '.join(task.labels)}."
            )
    outputs = tuple(words[normalise_name(label)] for label in chosen)
    pairs = ", ".join(f"{name} = {task.labels[index]}" for name, index in zip(names, outputs, strict=True))
    return LabelMap(outputs, "option", f"Labels by --label_map: {pairs}.")


def _by_pairs(names: list[str], pairs: Mapping[str, str]) -> list[str]:
    """The label of every output, from pairs of the output's name or number and a label."""
    given = {normalise_name(name): label for name, label in pairs.items()}
    known = {normalise_name(name): index for index, name in enumerate(names)}
    known |= {str(index): index for index in range(len(names)) if str(index) not in known}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise LabelError(
            f"--label_map: the checkpoint has no output {unknown[0]!r}. Its outputs are {', '.join(names)}."
        )
    by_output = {known[name]: label for name, label in given.items()}
    missing = [name for index, name in enumerate(names) if index not in by_output]
    if missing:
        raise LabelError(
            f"--label_map says nothing of the output {missing[0]!r}. Name a label for each of {', '.join(names)}."
        )
    return [by_output[index] for index in range(len(names))]
