"""Rows of a data file or of a dataset on the Hub, each with its place, so that an error can name it."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bert_cluster.errors import BertClusterError

LONGEST_CELL = 2**31 - 1
"""Characters in a csv cell; the csv module's own limit of 131,072 is less than a long context."""


class DataError(BertClusterError, ValueError):
    """The data is not what was expected; the text names the file and the line or key."""


class MissingFileError(DataError, FileNotFoundError):
    """There is no such file."""


@dataclass(frozen=True)
class Row:
    """One row and where it stands, as errors name it: "dev.jsonl, line 7"."""

    place: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where rows came from; as a text "data/dev.csv", or "nyu-mll/glue mrpc validation".

    Attributes:
        dataset: its name on the Hub, None for data of this machine.
        path: of a file, or of a folder that `datasets.load_dataset` read; None for a dataset on the Hub.
        config, split: of the dataset or folder, as they were asked for; None where none was, and for a file.
    """

    dataset: str | None = None
    path: str | None = None
    config: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        return " ".join(part for part in (self.dataset, self.path, self.config, self.split) if part)


@dataclass(frozen=True)
class Rows:
    """All rows of one file or split.

    Attributes:
        columns: names of the columns; in JSON those that any row has.
        class_names: names of the labels in columns that the Hub declares as classes.
    """

    source: Source
    rows: list[Row]
    columns: tuple[str, ...]
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)


def shorten(value: object, width: int = 60) -> str:
    """`repr(value)`, cut to `width` characters for an error."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: None, NaN or an empty string."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def require_unicode(row: Row, key: str, text: str) -> str:
    """The text, if it can be written as UTF-8 and tokenised: JSON may hold one half of a surrogate pair.

    Raises:
        DataError: names the place and the character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{row.place}: the text in {key!r} holds {text[error.start]!a} (character {error.start + 1}), one half of a "
            "surrogate pair, which is no character. Remove or repair it."
        ) from None
    return text


def check_file(path: str | Path) -> Path:
    """The path, if it is a file.

    Raises:
        MissingFileError: there is nothing there.
        DataError: it is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: expected a data file, got a folder. Name the file in it.")
    if not path.is_file():
        raise MissingFileError(f"{path}: there is no such file. Check the path (relative to {Path.cwd()}).")
    return path


def read_text(path: Path) -> str:
    """The whole file as UTF-8, without a byte order mark, line ends as they are.

    Raises:
        DataError: a byte is not UTF-8.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: expected UTF-8 text, got the byte 0x{data[error.start]:02x}. Convert the file to "
            "UTF-8."
        ) from None


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of every line that is not blank. Only \\n (or \\r\\n) ends a line: texts
    may hold other separators."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def read_tsv(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, cells) of a tab-separated file without quoting, as GLUE distributes its tasks."""
    for number, line in text_lines(check_file(path)):
        yield number, line.split("\t")


def read_rows(path: str | Path) -> Rows:
    """Rows of a .jsonl, .json (a list, {"data": [...]} or one object a line), .csv or .parquet file.

    Raises:
        DataError: another kind of file, or one that does not read as what its name says; no rows.
        MissingFileError: there is no such file.
    """
    path = check_file(path)
    readers: dict[str, Callable[[Path], list[Row]]] = {
        ".jsonl": _read_json_lines,
        ".json": _read_json,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: expected a file named {', '.join(readers)}, got {path.suffix or 'no suffix'!r}.")
    rows = reader(path)
    if not rows:
        raise DataError(f"{path}: there are no rows in this file.")
    return Rows(Source(path=str(path)), rows, tuple(dict.fromkeys(name for row in rows for name in row.values)))


def parse_json(path: Path, text: str, first_line: int = 1) -> Any:
    """The value that `text`, which starts at `first_line` of the file, holds.

    Raises:
        DataError: names the line and what is wrong there.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _not_json(path, error, first_line) from None


def object_rows(path: Path, items: object, key: str) -> list[Row]:
    """A list of JSON objects as rows; `key` is the list's name in the file ("" for the file itself)."""
    if not isinstance(items, list):
        raise DataError(f"{path}{_at(key)}: expected a list of rows, got {shorten(items)}.")
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise DataError(f"{path}, {key}[{number}]: expected an object with named columns, got {shorten(item)}.")
    return [Row(f"{path}, {key}[{number}]", item) for number, item in enumerate(items)]


def _at(key: str) -> str:
    return f", {key}" if key else ""


def _not_json(path: Path, error: json.JSONDecodeError, first_line: int = 1) -> DataError:
    return DataError(
        f"{path}, line {first_line + error.lineno - 1}, column {error.colno}: this is not JSON: {error.msg}."
    )


def _read_json_lines(path: Path) -> list[Row]:
    rows = []
    for number, line in text_lines(path):
        item = parse_json(path, line, first_line=number)
        if not isinstance(item, dict):
            raise DataError(f"{path}, line {number}: expected one JSON object a line, got {shorten(item)}.")
        rows.append(Row(f"{path}, line {number}", item))
    return rows


def _read_json(path: Path) -> list[Row]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _read_json_lines(path)
        raise _not_json(path, error) from None
    if isinstance(content, dict):
        return object_rows(path, content["data"], "data") if "data" in content else [Row(str(path), content)]
    return object_rows(path, content, "")


def _read_csv(path: Path) -> list[Row]:
    reader = csv.reader(_lines_with_ends(read_text(path)), strict=True)
    limit = csv.field_size_limit(LONGEST_CELL)
    line = 1
    try:
        header = next(reader)
        rows, line = [], reader.line_num + 1
        for cells in reader:
            if cells:
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}, line {line}: expected {len(header)} cells ({', '.join(header)}), got {len(cells)}. "
                        'Quote cells that hold a comma, and write a quote inside them as "".'
                    )
                rows.append(Row(f"{path}, line {line}", dict(zip(header, cells, strict=True))))
            line = reader.line_num + 1
        return rows
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: this is not csv: {error}.") from None
    finally:
        csv.field_size_limit(limit)


def _lines_with_ends(text: str) -> Iterator[str]:
    """Lines as an open file would give them: other separators than \\n stay inside."""
    for line in text.split("\n"):
        yield line + "\n"


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: this is not a parquet file: {error}") from None
    return [Row(f"{path}, row {number}", values) for number, values in enumerate(table.to_pylist(), start=1)]


def load_hub_rows(
    name: str,
    config: str | None = None,
    *,
    split: str,
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | bool | None = None,
) -> Rows:
    """Rows of a split of a dataset on the Hub, or of a folder that `datasets.load_dataset` reads.

    Raises:
        DataError: it cannot be loaded; names the dataset, its configuration and split, and the reason.
    """
    import datasets

    is_folder = Path(name).is_dir()  # load_dataset prefers one to a dataset on the Hub
    source = Source(None if is_folder else name, name if is_folder else None, config, split)
    try:
        dataset = datasets.load_dataset(name, config, split=split, revision=revision, cache_dir=cache_dir, token=token)
    except Exception as error:  # whatever the Hub, the network or a loader raises, the user's question is the same
        reason = (
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
        )
        raise DataError(
            f"The dataset {source} could not be loaded ({reason}). Check its name, configuration and split, and the "
            "connection to the Hub, or give a local file."
        ) from error
    rows = [Row(f"{source}, row {number}", dict(values)) for number, values in enumerate(dataset, start=1)]
    if not rows:
        raise DataError(f"The dataset {source} has no rows.")
    return Rows(source, rows, tuple(dataset.column_names), _class_names(dataset.features))


def _class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {column: tuple(feature.names) for column, feature in features.items() if hasattr(feature, "names")}
