"""SQuAD data: official files, flat rows, the Hub's columns, and errors that name the place."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from bert_cluster.evaluation.rows import DataError, MissingFileError, Source
from squad_eval.data import Example, load_file, load_hub

ANSWERS = [{"text": "Été “x”", "answer_start": 0}, {"text": "x", "answer_start": 5}]


def official(*questions: dict[str, Any], context: Any = "Été “x” null", title: Any = "T") -> dict[str, Any]:
    return {"version": "1.1", "data": [{"title": title, "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def question(identifier: str = "1", **more: Any) -> dict[str, Any]:
    return {"id": identifier, "question": "Q?", **more}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_an_official_file_of_version_1(tmp_path: Path) -> None:
    content = official(question("1", answers=ANSWERS), question("2", answers=ANSWERS[1:]))
    data = load_file(write(tmp_path / "dev.json", content))
    assert data.examples == [
        Example("1", "Q?", "Été “x” null", ("Été “x”", "x"), "T"),
        Example("2", "Q?", "Été “x” null", ("x",), "T"),
    ]
    assert (data.labelled, data.has_unanswerable, str(data.source)) == (True, False, str(tmp_path / "dev.json"))
    data.require_version(False)


def test_an_official_file_of_version_2(tmp_path: Path) -> None:
    impossible = question("2", answers=[], is_impossible=True, plausible_answers=ANSWERS)
    content = official(question("1", answers=ANSWERS, is_impossible=False), impossible)
    data = load_file(write(tmp_path / "dev.json", content))
    assert [len(example.answers) for example in data.examples] == [2, 0]
    assert (data.labelled, data.has_unanswerable) == (True, True)
    data.require_version(True)
    with pytest.raises(
        DataError, match=r"dev.json: the question '2' has no answer, as in SQuAD v2.0. Pass --version_2_with_negative"
    ):
        data.require_version(False)


def test_the_first_questions(tmp_path: Path) -> None:
    content = official(question("1", answers=ANSWERS), question("2", answers=[], is_impossible=True))
    data = load_file(write(tmp_path / "dev.json", content))
    assert (len(data.head(1).examples), data.head(1).has_unanswerable) == (1, False)
    assert (len(data.head(None).examples), data.head(5).has_unanswerable) == (2, True)


def test_a_file_without_answers_has_no_labels(tmp_path: Path) -> None:
    for questions in ([question("1"), question("2")], [question("1", answers=[]), question("2", answers=[])]):
        data = load_file(write(tmp_path / "test.json", official(*questions)))
        assert (data.labelled, data.has_unanswerable, data.head(1).has_unanswerable) == (False, False, False)
        data.require_version(False)


def test_a_file_of_impossible_questions_has_labels(tmp_path: Path) -> None:
    data = load_file(write(tmp_path / "dev.json", official(question("1", answers=[], is_impossible=True))))
    assert (data.labelled, data.has_unanswerable) == (True, True)


FLAT = [
    {"id": "1", "title": "T", "context": 'say "no", NA\nnow', "question": "null", "answers": {"text": ["no", "NA"], "answer_start": [5, 10]}},
    {"id": "2", "title": "T", "context": "C", "question": "Q", "answers": {"text": [], "answer_start": []}},
]  # fmt: skip


@pytest.mark.parametrize("form", [".jsonl", ".json", "data.json", "lines.json", ".csv", ".parquet"])
def test_flat_rows(form: str, tmp_path: Path) -> None:
    file = tmp_path / f"dev{form}"
    if form == ".parquet":
        datasets.Dataset.from_list(FLAT).to_parquet(str(file))
    elif form == ".csv":
        datasets.Dataset.from_list([{**row, "answers": json.dumps(row["answers"])} for row in FLAT]).to_csv(str(file))
    elif form in (".jsonl", "lines.json"):
        write(file, "".join(json.dumps(row) + "\n" for row in FLAT))
    else:
        write(file, {"data": FLAT} if form == "data.json" else FLAT)
    data = load_file(file)
    assert data.examples == [
        Example("1", "null", 'say "no", NA\nnow', ("no", "NA"), "T"),
        Example("2", "Q", "C", (), "T"),
    ]
    assert data.has_unanswerable


@pytest.mark.parametrize(
    "answers", [[{"text": "x"}], {"text": ["x"]}, '{"text": ["x"]}', "{'text': ['x'], 'answer_start': [0]}"]
)
def test_forms_of_answers(answers: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "dev.jsonl", json.dumps({"id": 7, "context": "C", "question": "Q", "answers": answers}))
    assert load_file(file).examples == [Example("7", "Q", "C", ("x",))]


def test_rows_without_answers_have_no_labels(tmp_path: Path) -> None:
    file = write(tmp_path / "test.csv", "id,question,context\n1,Q,C\n")
    assert not load_file(file).labelled


def test_a_context_may_be_longer_than_a_csv_cell_usually_is(tmp_path: Path) -> None:
    file = write(tmp_path / "test.csv", f"id,question,context\n1,Q,{'x ' * 100_000}\n")
    assert len(load_file(file).examples[0].context) == 200_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1, column 2: this is not JSON"),
        ('{"data":\n[1,\n}', "line 3, column 1: this is not JSON"),
        ({"dada": [{"paragraphs": []}]}, "expected the key \"data\" with the articles, got 'dada'"),
        ({"data": {"paragraphs": []}}, "data: expected a list of rows, got {'paragraphs"),
        ({"data": [{"title": "T", "paragraphs": {}}]}, r"data\[0\].paragraphs: expected a list, got {}"),
        ({"data": [{"paragraphs": []}, {"title": "T"}]}, r"data\[1\]: expected the key 'paragraphs', got 'title'"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, r"data\[0\].paragraphs\[0\]: expected a text in 'context', got the keys 'qas'"),
        ({"data": [{"paragraphs": [{"context": "C"}]}]}, r"data\[0\].paragraphs\[0\]: expected the key 'qas', got 'context'"),
        ({"data": [{"paragraphs": [{"context": "C", "qas": [5]}]}]}, r"paragraphs\[0\].qas\[0\]: expected an object, got 5"),
        (official(question(context=None), context=None), r"paragraphs\[0\]: expected a text in 'context', got None"),
        (official({"id": "1", "answers": []}), r"qas\[0\]: expected a text in 'question', got the keys"),
        (official({"question": "Q"}), r"qas\[0\]: expected a text or a number in 'id', got None"),
        (official(question(answers="x")), r"qas\[0\]: expected JSON like .* in 'answers', got 'x'"),
        (official(question(answers=[{"txt": "x"}])), r"qas\[0\].answers\[0\]: expected an object with the key 'text', got {'txt': 'x'}"),
        (official(question(answers=[{"text": 5}])), r"qas\[0\].answers\[0\]: expected a text, got 5"),
        (official(question(answers={"text": "x"})), r"qas\[0\].answers: expected a list of texts under 'text'"),
        (official(question(answers=7)), r"qas\[0\].answers: expected a list of answers, got 7"),
        (official(question(answers=ANSWERS, is_impossible=True)), r"qas\[0\]: is_impossible is true, but there is an answer 'Été “x”'"),
        (official(question("1"), question("2"), question("1")), r"qas\[2\]: the id '1' was already used \(.*qas\[0\]\)"),
        (official(question("1", answers=ANSWERS), question("2")), r"qas\[1\]: there are no 'answers', but other questions have some \(1 of 2"),
        (official(), "there are no questions in this file"),
        ([{"premise": "P"}], "expected the columns id, question, context and answers, or an official SQuAD file; 'id' is missing in 'premise'"),
        ([], "there are no rows in this file"),
        ("", "this is not JSON"),
        ([1, 2], r"\[0\]: expected an object with named columns, got 1"),
    ],
)  # fmt: skip
def test_errors_name_the_file_and_the_key(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"dev.json.*{message}"):
        load_file(write(tmp_path / "dev.json", content))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dev.jsonl", '{"id": "1", "question": "Q", "context": "C"}\n{"id": "2"}\n', "line 2: expected a text in 'question', got the keys 'id'"),
        ("dev.jsonl", '{"id": "1", "question": "Q", "context": "C"}\n{"id": }\n', "line 2, column 8: this is not JSON"),
        ("dev.csv", "id,question,context,answers\n1,Q,C,x\n", "line 2: expected JSON like .* got 'x'. Write the cell with json.dumps"),
        ("dev.csv", "id,question,context\n1,Q,C,D\n", r"line 2: expected 3 cells \(id, question, context\), got 4"),
        ("dev.txt", "x", "expected a file named .jsonl, .json, .csv, .parquet, got '.txt'"),
    ],
)  # fmt: skip
def test_errors_name_the_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        load_file(write(tmp_path / name, text))


HALF = r"holds '\\ud800' \(character 2\), one half of a surrogate pair, which is no character. Remove or repair it."


@pytest.mark.parametrize("key", ["id", "question", "context"])
def test_half_a_character_is_named_with_its_place(key: str, tmp_path: Path) -> None:
    row = {"id": "1", "question": "Q?", "context": "C", "answers": ANSWERS, key: "x\ud800"}
    file = write(tmp_path / "dev.jsonl", json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"dev\.jsonl, line 1: the text in '{key}' {HALF}"):
        load_file(file)
    content = official(question("1", answers=ANSWERS), context="x\ud800")
    with pytest.raises(DataError, match=rf"data\[0\]\.paragraphs\[0\]: the text in 'context' {HALF}"):
        load_file(write(tmp_path / "dev.json", content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing\.json: there is no such file"):
        load_file(tmp_path / "nothing.json")


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, **options: Any) -> datasets.Dataset:
        asked.append((name, config, options["split"]))
        return datasets.Dataset.from_list(FLAT)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_hub("rajpurkar/squad_v2")
    assert asked == [("rajpurkar/squad_v2", None, "validation")]
    assert ([example.answers for example in data.examples], data.source) == (
        [("no", "NA"), ()],
        Source(dataset="rajpurkar/squad_v2", split="validation"),
    )


def test_a_dataset_with_other_columns_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([{"text": "x"}]))
    with pytest.raises(DataError, match="me/texts validation: expected the columns id, question, context"):
        load_hub("me/texts")
