"""`bert-cluster calibrate` on a tiny saved model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert_cluster import ClusterConfig, cli
from bert_cluster.calibration import api
from bert_cluster.calibration.files import read_texts


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Any, tiny: Any) -> Callable[..., Path]:
    """saved(kind) -> folder of a model with its tokenizer."""

    def save(kind: str = "encoder") -> Path:
        folder = tmp_path / kind
        tiny(kind).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def text_file(tmp_path: Path, texts: list[str]) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"body": text, "title": "w5 w6"}) + "\n" for text in texts))
    return path


def call(*flags: object) -> int:
    return cli.main(["calibrate", *map(str, flags), "--disable_tqdm"])


def test_end_to_end(
    saved: Any, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], compiled: None
) -> None:
    flags = (saved("qa"), "--texts", text_file, "--text_column", "body", "--second_text_column", "title")
    more = ("--metric", "agreement", "--target", 0.5, "--output_dir", tmp_path / "out", "--max_texts", 6)
    assert call(*flags, *more) == 0
    printed = capsys.readouterr()
    assert "share of texts with the decision of full attention, target >= 0.5" in printed.out
    assert "4 calibration texts: 1" in printed.out and "--cluster_config" in printed.err
    names = {"cluster_config.json", "calibration.json", "curve.png", "progress.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    ClusterConfig.load(tmp_path / "out" / "cluster_config.json")
    assert call(*flags, *more) == 0  # what is stored is taken over
    assert "measurements were taken over from" in capsys.readouterr().out


def test_mistakes_are_one_line(saved: Any, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = saved(), ("--output_dir", tmp_path / "out")
    capsys.readouterr()

    def error(*flags: object) -> str:
        assert call(*flags, *out) == 2
        told = capsys.readouterr().err
        assert told.startswith("bert-cluster: ") and told.count("\n") == 1
        return told

    assert "there is no file" in error(model, "--texts", tmp_path / "no.txt")
    assert "must be one of .txt, .jsonl, .json, .csv, .tsv, got '.parquet'" in error(model, "--texts", "a.parquet")
    assert "no text in the column 'text'; its columns are body, title" in error(model, "--texts", text_file)
    assert "a finite number above 0, such as 0.05; got -1.0" in error(model, "--texts", text_file, "--target", -1)
    assert "--device must be auto, cpu, cuda" in error(
        model, "--texts", text_file, "--text_column", "body", "--device", "gpu"
    )
    assert "cannot be loaded" in error(tmp_path / "nothing", "--texts", text_file, "--text_column", "body")
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert f"{model} cannot be loaded: " in error(model, "--texts", text_file, "--text_column", "body")
    (model / "adapter_config.json").write_text("{}")
    assert "merge_and_unload" in error(model, "--texts", text_file, "--text_column", "body")
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_not_in_the_file(
    saved: Any, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["BertForSequenceClassification"]}))
    flags = ("--texts", text_file, "--text_column", "body", "--metric", "kl", "--output_dir", tmp_path / "out")
    assert call(model, *flags) == 2
    assert "lacks the weights classifier.bias, classifier.weight: outputs of a random head" in capsys.readouterr().err


def test_interruptions(
    saved: Any, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "run", interrupted)
    assert call(saved(), "--texts", text_file, "--text_column", "body", "--output_dir", tmp_path / "out") == 130
    assert "The same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        ("a.txt", "w5 w6\n\nw7\n", {}, ["w5 w6", "", "w7"]),
        ("a.txt", "", {}, []),
        ("a.txt", "a\nb\nc", {"limit": 2}, ["a", "b"]),
        ("a.jsonl", '{"text": "a"}\n\n"b"\n', {}, ["a", "b"]),
        ("a.json", '[{"x": "a", "y": "b"}]', {"column": "x", "second": "y"}, [("a", "b")]),
        ("a.csv", '\ufefftext,other\n"a, b",c\n', {}, ["a, b"]),
        ("a.tsv", "q\ttext\nc\ta b\n", {"column": "q", "second": "text"}, [("c", "a b")]),
    ],
)
def test_files(name: str, content: str, options: dict[str, Any], expected: list[Any], tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_texts(tmp_path / name, **options) == expected
