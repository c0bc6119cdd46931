"""GLUE data from the files that GLUE distributes, from other local files, or from the Hub."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bert_cluster.evaluation.rows import (
    DataError,
    Row,
    Rows,
    Source,
    check_file,
    is_missing,
    load_hub_rows,
    read_rows,
    read_tsv,
    require_unicode,
    shorten,
)
from glue_eval.labels import normalise_name
from glue_eval.tasks import HUB_ID, Split, Task, TsvLayout, split_of_file

NO_GOLD_LABEL = "-"
"""What MNLI's original files write where the annotators did not agree; GLUE leaves such rows out."""

GENERIC_TEXTS = {1: (("sentence",), ("sentence1",), ("text",)), 2: (("sentence1", "sentence2"),)}
"""Text columns that any local file may use, by the number of texts."""


@dataclass(frozen=True)
class GlueData:
    """One split of one task.

    Attributes:
        texts: one or two texts a row, in the order of the source.
        labels: (n,) int64 index into `task.labels`, float64 for STS-B; None where the split has no labels.
        notes: what the reader of the results should know, one sentence each.
    """

    task: Task
    split: Split
    source: Source
    texts: list[tuple[str, ...]]
    labels: np.ndarray | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def head(self, count: int | None) -> "GlueData":
        """The first `count` rows; all of them for None."""
        labels = None if self.labels is None else self.labels[:count]
        return dataclasses.replace(self, texts=self.texts[:count], labels=labels)


def load_file(path: str | Path, task: Task, split: Split | None = None) -> GlueData:
    """A local file: .tsv as GLUE distributes it, or .jsonl, .json, .csv, .parquet with the task's columns.

    Texts are looked for under the Hub's names, the names in GLUE's own files and sentence1, sentence2; labels under
    label, gold_label and GLUE's own name. Labels may be words or numbers; -1 or nothing at all means unlabelled.

    Args:
        split: which split the file holds; by default as its name says (`tasks.split_of_file`).

    Raises:
        DataError: names the file, the line, what was expected and what was found.
    """
    path = check_file(path)
    rows, notes = _read_tsv_rows(path, task) if path.suffix.lower() == ".tsv" else (read_rows(path), [])
    return _from_rows(rows, task, split or split_of_file(task, path), notes)


def load_hub(
    task: Task,
    split: Split,
    *,
    dataset_name: str = HUB_ID,
    dataset_config_name: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | bool | None = None,
) -> GlueData:
    """A split from the Hub, or from a folder that `datasets.load_dataset` reads. The configuration is the task's name,
    unless another dataset than GLUE is named.

    Raises:
        DataError: names the dataset and the row or column.
    """
    config = dataset_config_name or (task.name if dataset_name == HUB_ID else None)
    rows = load_hub_rows(dataset_name, config, split=split.name, revision=revision, cache_dir=cache_dir, token=token)
    return _from_rows(rows, task, split, [])


def _read_tsv_rows(path: Path, task: Task) -> tuple[Rows, list[str]]:
    lines, source = read_tsv(path), Source(path=str(path))
    number, first = next(lines, (1, []))
    layout = next((layout for layout in task.layouts if layout.without_header), None)
    if layout is not None and len(first) == len(layout.without_header) and "sentence" not in first:
        header, ahead = layout.without_header, [(number, first)]
    else:
        header, ahead = tuple(first), []
        _find_texts(header, task, source)
    rows, short = [], []
    for number, cells in [*ahead, *lines]:
        if len(cells) < len(header) and _damaged_lines_expected(task.layouts):
            short.append(number)
        elif len(cells) != len(header):
            raise DataError(
                f"{path}, line {number}: expected {len(header)} cells separated by tabs ({', '.join(header)}), got "
                f"{len(cells)}. GLUE's files are not quoted, so a text holds no tab."
            )
        else:
            rows.append(Row(f"{path}, line {number}", dict(zip(header, cells, strict=True))))
    if not rows:
        raise DataError(f"{path}: there are no rows in this file.")
    notes = (
        [f"{path}: {len(short)} damaged lines with missing cells were left out, the first is line {short[0]}."]
        if short
        else []
    )
    return Rows(source, rows, header), notes


def _damaged_lines_expected(layouts: Sequence[TsvLayout]) -> bool:
    return any(layout.short_rows for layout in layouts)


def _find_texts(columns: Sequence[str], task: Task, source: Source) -> tuple[str, ...]:
    known = [task.columns, *(layout.columns for layout in task.layouts), *GENERIC_TEXTS[len(task.columns)]]
    found = next((names for names in known if set(names) <= set(columns)), None)
    if found is None:
        choices = " or ".join(", ".join(names) for names in dict.fromkeys(known))
        raise DataError(
            f"{source}: expected the text columns of {task.title} ({choices}), got {shorten(', '.join(columns), 200)}. "
            "Rename the columns, or check --task_name."
        )
    return found


def _find_label(columns: Sequence[str], task: Task) -> str | None:
    known = ["label", "gold_label", *(layout.label for layout in task.layouts)]
    return next((name for name in known if name in columns), None)


def _from_rows(rows: Rows, task: Task, split: Split, notes: list[str]) -> GlueData:
    text_columns, label_column = _find_texts(rows.columns, task, rows.source), _find_label(rows.columns, task)
    names = _class_order(rows, label_column, task)
    kept = [row for row in rows.rows if label_column is None or row.values.get(label_column) != NO_GOLD_LABEL]
    if not kept:
        raise DataError(f"{rows.source}: no row has a gold label.")
    texts = [tuple(_text(row, column) for column in text_columns) for row in kept]
    labels = None
    if label_column is not None:
        labels = _labels(kept, label_column, task, names)
    if len(kept) < len(rows.rows):
        left_out = len(rows.rows) - len(kept)
        notes = [*notes, f'{rows.source}: {left_out} rows without a gold label ("{NO_GOLD_LABEL}") were left out.']
    return GlueData(task, split, rows.source, texts, labels, tuple(notes))


def _text(row: Row, column: str) -> str:
    value = row.values.get(column)
    if not isinstance(value, str):
        raise DataError(f"{row.place}: expected a text in the column {column!r}, got {shorten(value)}.")
    return require_unicode(row, column, value)


def _labels(rows: Sequence[Row], column: str, task: Task, names: Mapping[int, int]) -> np.ndarray | None:
    """All labels, or None if no row has one."""
    parse = _score if task.is_regression else _label_index
    values = [parse(row, column, task, names) for row in rows]
    missing = [row for row, value in zip(rows, values, strict=True) if value is None]
    if len(missing) == len(rows):
        return None
    if missing:
        raise DataError(
            f"{missing[0].place}: there is no label in the column {column!r}, but other rows have one "
            f"({len(missing)} of {len(rows)} rows have none). Give every row a label, or none."
        )
    return np.array(values, dtype=np.float64 if task.is_regression else np.int64)


def _score(row: Row, column: str, task: Task, names: Mapping[int, int]) -> float | None:
    value = row.values.get(column)
    if is_missing(value):
        return None
    try:
        score = float("nan" if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"{row.place}: expected a score (a number) in the column {column!r}, got {shorten(value)}.")
    return None if score == -1 else score


def _label_index(row: Row, column: str, task: Task, names: Mapping[int, int]) -> int | None:
    value = row.values.get(column)
    if is_missing(value):
        return None
    words = {normalise_name(label): index for index, label in enumerate(task.labels)}
    if isinstance(value, str) and normalise_name(value) in words:
        return words[normalise_name(value)]
    number = _whole_number(value)
    if number == -1:
        return None
    if number is None or number not in names:
        expected = ", ".join(f"{index} or {label}" for index, label in enumerate(task.labels))
        raise DataError(
            f"{row.place}: expected a label of {task.title} in the column {column!r} ({expected}; -1 for none), got "
            f"{shorten(value)}."
        )
    return names[number]


def _whole_number(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _class_order(rows: Rows, column: str | None, task: Task) -> dict[int, int]:
    """For each number in the label column the index into `task.labels`: the number itself, unless the dataset declares
    names in another order.

    Raises:
        DataError: the declared names are not the task's.
    """
    own = {index: index for index in range(len(task.labels))}
    declared = rows.class_names.get(column or "", ())
    if task.is_regression or not declared:
        return own
    words = {normalise_name(label): index for index, label in enumerate(task.labels)}
    found = [normalise_name(name) for name in declared]
    if set(found) == set(words):
        return {number: words[name] for number, name in enumerate(found)}
    if found == [str(index) for index in own]:
        return own
    raise DataError(
        f"{rows.source}: expected the labels {', '.join(task.labels)} in the column {column!r}, got "
        f"{', '.join(declared)}. Check --task_name and --dataset_name."
    )
