"""SQuAD questions from the official JSON files, from flat rows, or from the Hub."""

import ast
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_cluster.evaluation.rows import (
    DataError,
    Row,
    Source,
    check_file,
    is_missing,
    load_hub_rows,
    object_rows,
    parse_json,
    read_rows,
    read_text,
    require_unicode,
    shorten,
)

COLUMNS = ("id", "question", "context")


@dataclass(frozen=True)
class Example:
    """One question. `answers` are the texts that count as right; empty: the question has no answer, or the data no
    labels."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class SquadData:
    """All questions of a file or split.

    Attributes:
        labelled: whether there are answers to score against.
        has_unanswerable: whether a question has no answer (SQuAD v2.0).
        notes: what the reader of the results should know, one sentence each.
    """

    source: Source
    examples: list[Example]
    labelled: bool
    has_unanswerable: bool
    notes: tuple[str, ...] = ()

    def head(self, count: int | None) -> "SquadData":
        """The first `count` questions; all of them for None."""
        examples = self.examples[:count]
        unanswerable = self.labelled and any(not example.answers for example in examples)
        return dataclasses.replace(self, examples=examples, has_unanswerable=unanswerable)

    def require_version(self, version_2_with_negative: bool) -> None:
        """Check that questions without an answer are there only where they are expected.

        Raises:
            DataError: a question has no answer and `version_2_with_negative` is False; names the question.
        """
        if self.has_unanswerable and not version_2_with_negative:
            first = next(example for example in self.examples if not example.answers)
            raise DataError(
                f"{self.source}: the question {first.id!r} has no answer, as in SQuAD v2.0. "
                "Pass --version_2_with_negative."
            )


@dataclass(frozen=True)
class _Question:
    """An example with its place, whether anything is said about its answers, and what is said about is_impossible."""

    place: str
    example: Example
    has_answers_key: bool
    impossible: bool | None


def load_file(path: str | Path) -> SquadData:
    """A local file: official JSON of SQuAD v1.1 or v2.0, or rows with id, question, context, answers (.json, .jsonl,
    .csv, .parquet).

    `answers` is {"text": [...]} as on the Hub, or a list of {"text": ...} as in the official files; in a csv one of the
    two as JSON. Without it the data has no labels.

    Raises:
        DataError: names the file, the line or key, what was expected and what was found.
    """
    path = check_file(path)
    if path.suffix.lower() == ".json":
        articles = _official_articles(path)
        if articles is not None:
            return _gather(Source(path=str(path)), list(_official_questions(path, articles)))
    rows = read_rows(path)
    _check_columns(rows.columns, rows.source)
    return _gather(rows.source, [_row_question(row) for row in rows.rows])


def load_hub(
    dataset_name: str,
    dataset_config_name: str | None = None,
    *,
    split: str = "validation",
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | bool | None = None,
) -> SquadData:
    """A split of a dataset on the Hub with the columns of rajpurkar/squad, or of a folder that `datasets.load_dataset`
    reads.

    Raises:
        DataError: names the dataset and the row or column.
    """
    rows = load_hub_rows(
        dataset_name, dataset_config_name, split=split, revision=revision, cache_dir=cache_dir, token=token
    )
    _check_columns(rows.columns, rows.source)
    return _gather(rows.source, [_row_question(row) for row in rows.rows])


def _official_articles(path: Path) -> list[Row] | None:
    """The articles of an official file; None where the file holds flat rows."""
    text = read_text(path)
    if not text.lstrip().startswith("{") or '"paragraphs"' not in text:
        return None
    content = parse_json(path, text)
    if "data" not in content:
        raise DataError(f'{path}: expected the key "data" with the articles, got {shorten(", ".join(content))}.')
    return object_rows(path, content["data"], "data")


def _official_questions(path: Path, articles: list[Row]) -> Iterator[_Question]:
    for article in articles:
        title = article.values.get("title", "")
        for paragraph in _children(article, "paragraphs"):
            context = _text(paragraph, "context")
            for question in _children(paragraph, "qas"):
                values = {**question.values, "context": context, "title": title}
                yield _row_question(Row(question.place, values))


def _children(row: Row, key: str) -> list[Row]:
    """The objects in a list of an official file."""
    if key not in row.values:
        raise DataError(
            f"{row.place}: expected the key {key!r}, got {shorten(', '.join(row.values), 200)}. Is this a SQuAD file?"
        )
    items = row.values[key]
    if not isinstance(items, list):
        raise DataError(f"{row.place}.{key}: expected a list, got {shorten(items)}.")
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise DataError(f"{row.place}.{key}[{number}]: expected an object, got {shorten(item)}.")
    return [Row(f"{row.place}.{key}[{number}]", item) for number, item in enumerate(items)]


def _check_columns(columns: tuple[str, ...], source: Source) -> None:
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise DataError(
            f"{source}: expected the columns {', '.join(COLUMNS)} and answers, or an official SQuAD file; "
            f"{missing[0]!r} is missing in {shorten(', '.join(columns), 200)}."
        )


def _row_question(row: Row) -> _Question:
    values = row.values
    answers = values.get("answers")
    if isinstance(answers, str) and answers.strip():
        answers = _parse_cell(row, answers)
    has_answers = not is_missing(answers)
    impossible = values.get("is_impossible")
    if impossible is not None and not isinstance(impossible, bool):
        impossible = {"true": True, "false": False, "": None}.get(str(impossible).lower())
    example = Example(
        id=_identifier(row),
        question=_text(row, "question"),
        context=_text(row, "context"),
        answers=tuple(_answers(row, answers)) if has_answers else (),
        title=str(values.get("title") or ""),
    )
    if impossible and example.answers:
        raise DataError(
            f"{row.place}: is_impossible is true, but there is an answer {shorten(example.answers[0])}. "
            "Remove one of them."
        )
    return _Question(row.place, example, has_answers, impossible)


def _identifier(row: Row) -> str:
    value = row.values.get("id")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{row.place}: expected a text or a number in 'id', got {shorten(value)}.")
    return require_unicode(row, "id", str(value))


def _text(row: Row, key: str) -> str:
    value = row.values.get(key)
    if not isinstance(value, str):
        found = shorten(value) if key in row.values else f"the keys {shorten(', '.join(row.values), 200)}"
        raise DataError(f"{row.place}: expected a text in {key!r}, got {found}.")
    return require_unicode(row, key, value)


def _parse_cell(row: Row, text: str) -> Any:
    """A csv cell: JSON, or what Python prints for a dict or list."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise DataError(
            f'{row.place}: expected JSON like {{"text": ["…"]}} in \'answers\', got {shorten(text)}. '
            "Write the cell with json.dumps."
        ) from None


def _answers(row: Row, answers: Any) -> list[str]:
    """Texts of {"text": [...]} or of [{"text": ...}, ...]."""
    place = f"{row.place}.answers"
    if isinstance(answers, Mapping):
        texts = answers.get("text")
        if not isinstance(texts, list):
            raise DataError(f"{place}: expected a list of texts under 'text', got {shorten(dict(answers))}.")
    elif isinstance(answers, list):
        for number, answer in enumerate(answers):
            if not isinstance(answer, Mapping) or "text" not in answer:
                raise DataError(f"{place}[{number}]: expected an object with the key 'text', got {shorten(answer)}.")
        texts = [answer["text"] for answer in answers]
    else:
        raise DataError(f"{place}: expected a list of answers, got {shorten(answers)}.")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"{place}[{number}]: expected a text, got {shorten(text)}.")
    return texts


def _gather(source: Source, questions: list[_Question]) -> SquadData:
    if not questions:
        raise DataError(f"{source}: there are no questions in this file.")
    places: dict[str, str] = {}
    for question in questions:
        first = places.setdefault(question.example.id, question.place)
        if first != question.place:
            raise DataError(
                f"{question.place}: the id {question.example.id!r} was already used ({first}). "
                "Every question needs its own."
            )
    examples = [question.example for question in questions]
    labelled = any(example.answers for example in examples) or any(question.impossible for question in questions)
    if labelled:
        without = [q for q in questions if not q.has_answers_key and not q.impossible]
        if without:
            raise DataError(
                f"{without[0].place}: there are no 'answers', but other questions have some ({len(without)} of "
                f"{len(questions)} have none). Write an empty list where a question has no answer."
            )
    return SquadData(source, examples, labelled, labelled and any(not example.answers for example in examples))
