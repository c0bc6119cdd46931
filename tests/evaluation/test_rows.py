"""Rows of local files: what each format keeps, and errors that name the line."""

import csv
from pathlib import Path
from typing import Any

import pytest

from bert_cluster.evaluation.rows import DataError, MissingFileError, read_rows, read_tsv


def values(path: Path) -> list[dict[str, Any]]:
    return [row.values for row in read_rows(path).rows]


def test_csv_keeps_every_text_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes('\ufeffa,b\r\nnull,NA\r\n"1,5","say ""no""\nnow"\r\n\r\n,\u2028x\r\n'.encode())
    assert values(file) == [{"a": "null", "b": "NA"}, {"a": "1,5", "b": 'say "no"\nnow'}, {"a": "", "b": "\u2028x"}]
    assert [row.place for row in read_rows(file).rows] == [f"{file}, line {number}" for number in (2, 3, 6)]


def test_reading_csv_leaves_the_limit_of_the_csv_module_alone(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    file = tmp_path / "x.csv"
    file.write_text("a\n" + "x" * (limit + 1) + "\n")
    assert len(values(file)[0]["a"]) == limit + 1
    assert csv.field_size_limit() == limit


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert values(file) == [{"a": 1}, {"a": 2}]
    assert read_rows(file).rows[1].place == f"{file}, line 3"


def test_one_object_is_one_row(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": 1}')
    assert values(file) == [{"a": 1}]


def test_tsv_lines_are_numbered_as_an_editor_numbers_them(tmp_path: Path) -> None:
    file = tmp_path / "x.tsv"
    file.write_bytes(b'a\tb\r\n\r\n"c\td\n')
    assert list(read_tsv(file)) == [(1, ["a", "b"]), (3, ['"c', "d"])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n[2]\n', r"x.jsonl, line 2: expected one JSON object a line, got \[2\]"),
        ("x.jsonl", b'{"a": "\xff"}\n', "x.jsonl, line 1: expected UTF-8 text, got the byte 0xff. Convert the file to UTF-8"),
        ("x.csv", b"a\nb\n\xe9\n", "x.csv, line 3: expected UTF-8 text, got the byte 0xe9"),
        ("x.csv", b'a,b\n1,2\n"3,4\n', "x.csv, line 3: this is not csv: unexpected end of data"),
        ("x.csv", b"a,b\n1,2,3\n", r"x.csv, line 2: expected 2 cells \(a, b\), got 3"),
        ("x.csv", b"", "x.csv: there are no rows in this file"),
        ("x.csv", b"a,b\n", "x.csv: there are no rows in this file"),
        ("x.parquet", b"not parquet", "x.parquet: this is not a parquet file"),
        ("x.xlsx", b"", "x.xlsx: expected a file named .jsonl, .json, .csv, .parquet, got '.xlsx'"),
        ("x", b"", "x: expected a file named .*, got 'no suffix'"),
    ],
)  # fmt: skip
def test_bad_files_are_named_with_the_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(file)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a data file, got a folder. Name the file in it"):
        read_rows(tmp_path)


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"x\.csv: there is no such file. Check the path"):
        read_rows(tmp_path / "x.csv")
    assert issubclass(MissingFileError, FileNotFoundError)
