"""GLUE data: the layouts that GLUE distributes, other files, the Hub's columns, and errors that name the place."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from bert_cluster.evaluation.rows import DataError, MissingFileError, Source
from glue_eval.data import GlueData, load_file, load_hub
from glue_eval.tasks import TASKS

MNLI_HEADER = [
    "index",
    "promptID",
    "pairID",
    "genre",
    "sentence1_binary_parse",
    "sentence2_binary_parse",
    "sentence1_parse",
    "sentence2_parse",
    "sentence1",
    "sentence2",
    "label1",
    "label2",
    "label3",
    "label4",
    "label5",
    "gold_label",
]
STSB_HEADER = [
    "index",
    "genre",
    "filename",
    "year",
    "old_index",
    "source1",
    "source2",
    "sentence1",
    "sentence2",
    "score",
]
AX_HEADER = ["Lexical Semantics", "Predicate-Argument Structure", "Logic", "Knowledge", "Domain"]

# task, file as GLUE lays it out, texts of the rows, labels of the rows
DISTRIBUTED: list[tuple[str, list[list[str]], list[tuple[str, ...]], list[float] | None]] = [
    ("cola", [["gj04", "1", "", "A."], ["gj04", "0", "*", "B the."]], [("A.",), ("B the.",)], [1, 0]),
    ("cola", [["index", "sentence"], ["0", "A."], ["1", "B."]], [("A.",), ("B.",)], None),
    ("sst2", [["sentence", "label"], ["fine ", "1"], ["bad", "0"]], [("fine ",), ("bad",)], [1, 0]),
    ("sst2", [["index", "sentence"], ["0", "fine"]], [("fine",)], None),
    (
        "mrpc",
        [["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"], ["1", "5", "6", 'He said "no', "No"]],
        [('He said "no', "No")],
        [1],
    ),
    (
        "qqp",
        [["id", "qid1", "qid2", "question1", "question2", "is_duplicate"], ["7", "1", "2", "Q?", "R?", "0"]],
        [("Q?", "R?")],
        [0],
    ),
    (
        "stsb",
        [STSB_HEADER, [*"abcdefg", "S", "T", "3.800"], [*"abcdefg", "U", "V", "0"]],
        [("S", "T"), ("U", "V")],
        [3.8, 0.0],
    ),
    ("stsb", [STSB_HEADER[:-1], [*"abcdefg", "S", "T"]], [("S", "T")], None),
    ("mnli", [MNLI_HEADER, [*"abcdefgh", "P", "H", *["neutral"] * 5, "contradiction"]], [("P", "H")], [2]),
    ("qnli", [["index", "question", "sentence", "label"], ["0", "Q", "S", "not_entailment"]], [("Q", "S")], [1]),
    ("rte", [["index", "sentence1", "sentence2", "label"], ["0", "A", "B", "entailment"]], [("A", "B")], [0]),
    ("wnli", [["index", "sentence1", "sentence2", "label"], ["0", "A", "B", "1"]], [("A", "B")], [1]),
    ("ax", [["index", "sentence1", "sentence2"], ["0", "A", "B"]], [("A", "B")], None),
    ("ax", [[*AX_HEADER, "Premise", "Hypothesis", "Label"], [*"vwxyz", "P", "H", "neutral"]], [("P", "H")], [1]),
]


def labels_of(data: GlueData) -> list[float] | None:
    return None if data.labels is None else data.labels.tolist()


def write_tsv(path: Path, lines: list[list[str]]) -> Path:
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(("task", "lines", "texts", "labels"), DISTRIBUTED)
def test_files_as_glue_distributes_them(task: str, lines: Any, texts: Any, labels: Any, tmp_path: Path) -> None:
    data = load_file(write_tsv(tmp_path / "dev.tsv", lines), TASKS[task])
    assert data.texts == texts
    assert labels_of(data) == labels
    assert data.notes == ()


def test_byte_order_mark_and_windows_line_ends_are_not_part_of_the_data(tmp_path: Path) -> None:
    file = tmp_path / "dev.tsv"
    text = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n0\t1\t2\tA\tB\r\n"
    file.write_bytes(text.encode("utf-8"))
    data = load_file(file, TASKS["mrpc"])
    assert (data.texts, labels_of(data)) == ([("A", "B")], [0])


def test_separators_inside_a_text_do_not_end_the_line(tmp_path: Path) -> None:
    text = "one\u2028two\x0bthree\x85four\rfive"
    file = tmp_path / "dev.tsv"
    file.write_bytes(f"sentence\tlabel\n{text}\t1\n".encode())
    assert load_file(file, TASKS["sst2"]).texts == [(text,)]


def test_label_types(tmp_path: Path) -> None:
    classes = load_file(write_tsv(tmp_path / "a.tsv", DISTRIBUTED[2][1]), TASKS["sst2"])
    scores = load_file(write_tsv(tmp_path / "b.tsv", DISTRIBUTED[6][1]), TASKS["stsb"])
    assert [data.labels.dtype for data in (classes, scores) if data.labels is not None] == [np.int64, np.float64]


def save(rows: list[dict[str, Any]], file: Path) -> Path:
    """Rows in the format that the file's name says."""
    frame = datasets.Dataset.from_list(rows)
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".csv":
        frame.to_csv(str(file))
    else:
        frame.to_parquet(str(file))
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("names", [("premise", "hypothesis", "label"), ("sentence1", "sentence2", "gold_label")])
def test_other_files_with_the_names_of_the_hub_or_generic_ones(
    names: tuple[str, ...], suffix: str, tmp_path: Path
) -> None:
    values = [("null", "NA", 0), ("été, “a”", 'say "no"\nnow', 2)]
    rows = [dict(zip(names, row, strict=True)) for row in values]
    data = load_file(save(rows, tmp_path / f"dev_mismatched{suffix}"), TASKS["mnli"])
    assert data.texts == [row[:2] for row in values]
    assert labels_of(data) == [0, 2]
    assert data.split.suffix == "_mm"


@pytest.mark.parametrize("label", ["Entailment", "entailment", 0, "0", 0.0, "0.0"])
def test_a_label_is_a_word_or_a_number(label: object, tmp_path: Path) -> None:
    file = save([{"premise": "P", "hypothesis": "H", "label": label}], tmp_path / "dev.jsonl")
    assert labels_of(load_file(file, TASKS["mnli"])) == [0]


@pytest.mark.parametrize("label", [-1, "-1", None, "", -1.0, float("nan")])
@pytest.mark.parametrize("task", ["rte", "stsb"])
def test_minus_one_or_nothing_means_no_label(task: str, label: object, tmp_path: Path) -> None:
    file = save([{"sentence1": "A", "sentence2": "B", "label": label}] * 2, tmp_path / "test.jsonl")
    assert load_file(file, TASKS[task]).labels is None


def test_rows_without_a_gold_label_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"sentence1": "A", "sentence2": "B", "gold_label": label} for label in ("neutral", "-", "entailment")]
    data = load_file(save(rows, tmp_path / "dev.jsonl"), TASKS["mnli"])
    assert labels_of(data) == [1, 0]
    assert "1 rows without a gold label" in data.notes[0]


def test_damaged_lines_of_qqp_are_left_out_and_counted(tmp_path: Path) -> None:
    header = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
    file = write_tsv(tmp_path / "train.tsv", [header, ["1", "2", "3"], ["1", "2", "3", "Q", "R", "1"]])
    data = load_file(file, TASKS["qqp"])
    assert len(data) == 1
    assert "1 damaged lines with missing cells were left out, the first is line 2" in data.notes[0]


def test_head_takes_the_first_rows(tmp_path: Path) -> None:
    data = load_file(write_tsv(tmp_path / "dev.tsv", DISTRIBUTED[2][1]), TASKS["sst2"])
    assert (len(data.head(1)), labels_of(data.head(1)), len(data.head(9)), len(data.head(None))) == (1, [1], 2, 2)


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tmaybe\n", r"line 2: expected a label of RTE in the column 'label' \(0 or entailment, 1 or not_entailment; -1 for none\), got 'maybe'"),
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t2\n", "line 2: expected a label of RTE .*, got '2'"),
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t0\n\n1\tA\tB\t\n", r"line 4: there is no label in the column 'label', but other rows have one \(1 of 2"),
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tC\t0\n", r"line 2: expected 4 cells separated by tabs \(index, .*\), got 5"),
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\tA\n", "line 2: expected 4 cells .*, got 2"),
        ("rte", "a\tb\n1\t2\n", "expected the text columns of RTE .sentence1, sentence2., got 'a, b'. Rename the columns, or check --task_name"),
        ("stsb", "sentence1\tsentence2\tscore\nA\tB\tgood\n", r"line 2: expected a score \(a number\) in the column 'score', got 'good'"),
        ("stsb", "sentence1\tsentence2\tscore\nA\tB\tinf\n", "line 2: expected a score .*, got 'inf'"),
        ("cola", "a\tb\tc\n", "expected the text columns of CoLA"),
        ("cola", "", "expected the text columns of CoLA"),
        ("sst2", "sentence\tlabel\n", "there are no rows in this file"),
    ],
)  # fmt: skip
def test_errors_name_the_file_and_the_line(task: str, text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "dev.tsv"
    file.write_text(text)
    with pytest.raises(DataError, match=f"dev.tsv.*{message}"):
        load_file(file, TASKS[task])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence1": "A", "sentence2": None}, "line 2: expected a text in the column 'sentence2', got None"),
        ({"sentence1": "A"}, "line 2: expected a text in the column 'sentence2', got None"),
        ({"sentence1": 7, "sentence2": "B"}, "line 2: expected a text in the column 'sentence1', got 7"),
        ({"sentence1": "A", "sentence2": "\udcff"}, "line 2: the text in 'sentence2' holds .*half of a surrogate pair"),
        ({"sentence1": "A", "sentence2": "B", "label": True}, "line 2: expected a label of RTE .* got True"),
        ({"sentence1": "A", "sentence2": "B", "label": 0.5}, "line 2: expected a label of RTE .* got 0.5"),
        ({"sentence1": "A", "sentence2": "B", "label": [0]}, r"line 2: expected a label of RTE .* got \[0\]"),
    ],
)
def test_errors_name_the_row(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "dev.jsonl"
    file.write_text(json.dumps({"sentence1": "A", "sentence2": "B", "label": 0}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"dev.jsonl, {message}"):
        load_file(file, TASKS["rte"])


@pytest.mark.parametrize("unlabelled", [1, 2, 3])
def test_a_label_that_is_missing_in_any_row_is_told(unlabelled: int, tmp_path: Path) -> None:
    """In the first, where the columns begin, as in every other."""
    rows = [{"sentence1": "A", "sentence2": "B", "label": 0} for _ in range(3)]
    del rows[unlabelled - 1]["label"]
    message = rf"line {unlabelled}: there is no label in the column 'label', but other rows have one \(1 of 3 rows"
    with pytest.raises(DataError, match=message):
        load_file(save(rows, tmp_path / "dev.jsonl"), TASKS["rte"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing\.tsv: there is no such file"):
        load_file(tmp_path / "nothing.tsv", TASKS["rte"])


class Hub:
    """Stands in for `datasets.load_dataset`; keeps what it was asked for."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, rows: dict[str, list[Any]], features: datasets.Features
    ) -> None:
        self.asked: list[tuple[Any, ...]] = []

        def load_dataset(name: str, config: str | None, **options: Any) -> datasets.Dataset:
            self.asked.append((name, config, options["split"]))
            return datasets.Dataset.from_dict(rows, features=features)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def pair_features(label: Any) -> datasets.Features:
    text = datasets.Value("string")
    return datasets.Features({"question": text, "sentence": text, "label": label, "idx": datasets.Value("int32")})


PAIRS: dict[str, list[Any]] = {"question": ["Q", "R"], "sentence": ["S", "T"], "label": [0, 1], "idx": [0, 1]}


def test_the_hub_is_asked_for_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, PAIRS, pair_features(datasets.ClassLabel(names=["entailment", "not_entailment"])))
    data = load_hub(TASKS["qnli"], TASKS["qnli"].validation_splits[0])
    assert hub.asked == [("nyu-mll/glue", "qnli", "validation")]
    assert (data.texts, labels_of(data)) == ([("Q", "S"), ("R", "T")], [0, 1])
    assert data.source == Source(dataset="nyu-mll/glue", config="qnli", split="validation")
    assert str(data.source) == "nyu-mll/glue qnli validation"


def test_a_folder_is_no_dataset_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its name may have the form of one."""
    Hub(monkeypatch, PAIRS, pair_features(datasets.Value("int64")))
    monkeypatch.chdir(tmp_path)
    Path("me/qnli").mkdir(parents=True)
    data = load_hub(TASKS["qnli"], TASKS["qnli"].validation_splits[0], dataset_name="me/qnli")
    assert data.source == Source(path="me/qnli", split="validation")


def test_labels_declared_in_another_order_are_mapped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, PAIRS, pair_features(datasets.ClassLabel(names=["Not_Entailment", "Entailment"])))
    data = load_hub(TASKS["qnli"], TASKS["qnli"].validation_splits[0], dataset_name="me/qnli")
    assert labels_of(data) == [1, 0]


@pytest.mark.parametrize("label", [datasets.Value("int64"), datasets.ClassLabel(names=["0", "1"])])
def test_labels_without_names_are_in_the_order_of_the_dataset(label: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, PAIRS, pair_features(label))
    data = load_hub(TASKS["qnli"], TASKS["qnli"].validation_splits[0], dataset_name="me/qnli")
    assert (labels_of(data), hub.asked[0][1]) == ([0, 1], None)


def test_labels_of_another_task_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, PAIRS, pair_features(datasets.ClassLabel(names=["good", "bad"])))
    with pytest.raises(
        DataError,
        match="me/qnli validation: expected the labels entailment, not_entailment in the column 'label', got good, bad",
    ):
        load_hub(TASKS["qnli"], TASKS["qnli"].validation_splits[0], dataset_name="me/qnli")


def test_an_unlabelled_split_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    label = datasets.ClassLabel(names=["entailment", "not_entailment"])
    Hub(monkeypatch, {**PAIRS, "label": [-1, -1]}, pair_features(label))
    assert load_hub(TASKS["qnli"], TASKS["qnli"].test_splits[0]).labels is None


def test_a_dataset_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    expected = r"The dataset nyu-mll/glue rte test could not be loaded \(ConnectionError: no route to the Hub\)"
    with pytest.raises(DataError, match=expected):
        load_hub(TASKS["rte"], TASKS["rte"].test_splits[0])
