"""Texts from a file: one a line, or a column of JSON, CSV or TSV."""

import csv
import json
from pathlib import Path
from typing import Any

from bert_cluster.calibration.texts import Text
from bert_cluster.errors import CalibrationError

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv")


def read_texts(
    path: str | Path, column: str = "text", second: str | None = None, limit: int | None = None
) -> list[Text]:
    """The texts of a file, in its order.

    Args:
        path: .txt (one text a line, empty lines are empty texts), .jsonl (an object or a text a line), .json (a list of
            them), .csv or .tsv (with a header).
        column: where the text is.
        second: where the second text of a pair is.
        limit: the first so many only.

    Raises:
        CalibrationError: no such file, an unknown kind, damaged content, or no such column.
    """
    place = Path(path)
    if place.suffix not in SUFFIXES:
        raise CalibrationError(
            f"--texts {place} must be one of {', '.join(SUFFIXES)}, got {place.suffix or 'no suffix'!r}."
        )
    if not place.is_file():
        raise CalibrationError(f"--texts: there is no file {place}.")
    try:
        rows = _rows(place)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise CalibrationError(f"--texts {place} cannot be read as {place.suffix}: {error}.") from error
    return [_text(row, column, second, f"{place}, text {number}") for number, row in enumerate(rows[:limit], start=1)]


def _rows(path: Path) -> list[Any]:
    if path.suffix in (".csv", ".tsv"):
        with open(path, encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    content = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".txt":
        return content.removesuffix("\n").split("\n") if content else []
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in content.split("\n") if line.strip()]
    rows = json.loads(content)
    if not isinstance(rows, list):
        raise CalibrationError(
            f"--texts {path} must hold a JSON list of texts or of objects, got {type(rows).__name__}."
        )
    return rows


def _text(row: Any, column: str, second: str | None, where: str) -> Text:
    if isinstance(row, str) and second is None:
        return row
    if not isinstance(row, dict):
        raise CalibrationError(f"{where} must be an object with the column {column!r}, got {type(row).__name__}.")
    found = []
    for name in (column, second):
        if name is not None:
            if not isinstance(row.get(name), str):
                raise CalibrationError(
                    f"{where} has no text in the column {name!r}; its columns are {', '.join(map(str, row))}. "
                    f"Name them with --text_column and --second_text_column."
                )
            found.append(row[name])
    return found[0] if second is None else (found[0], found[1])
