"""What `squad_eval` refuses: one sentence, exit status 2, and nothing is written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from squad_eval.command import main


def flags(model: str, file: str, output: Path, *more: str) -> list[str]:
    given = ["--model_name_or_path", model, "--validation_file", file, "--output_dir", str(output), "--device", "cpu"]
    return [*given, "--max_seq_length", "32", "--doc_stride", "8", "--bootstrap_samples", "50", "--disable_tqdm", *more]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--test_file", "x.json"], "--validation_file and --test_file are both given"),
        (["--dataset_name", "squad"], "--dataset_name and a local file are both given"),
        (["--device", "tpu9"], "--device must be"),
        (["--attention", "full", "--clusters", "3"], "--clusters changes nothing"),
        (["--base_model_name_or_path", "x"], "is for adapters"),
    ],
)
def test_contradictions_in_one_sentence(
    more: list[str],
    message: str,
    qa_model: str,
    squad_file: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(flags(qa_model, squad_file(2), tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("squad-eval: error: ")
    assert message in error


@pytest.mark.parametrize("content", ["not json", '{"data": [{"title": "x"}]}', "[1, 2]"])
def test_data_that_is_no_squad_is_refused_before_a_model_is_looked_at(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.json").write_text(content)
    assert main(flags("./no-model-here", str(tmp_path / "data.json"), tmp_path / "out", "--no_plot")) == 2
    assert "data.json" in capsys.readouterr().err


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags("./no-model-here", str(tmp_path / "nowhere.json"), tmp_path / "out", "--no_plot")) == 2
    assert "nowhere.json" in capsys.readouterr().err


def test_no_data_at_all(qa_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_name_or_path", qa_model, "--output_dir", str(tmp_path / "out"), "--no_plot"]) == 2
    assert "There is no data" in capsys.readouterr().err


def test_an_encoder_without_the_head(
    save_model: Callable[..., str], squad_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(save_model("encoder"), squad_file(2), tmp_path / "out", "--no_plot")) == 2
    assert "lacks the weights qa_outputs.bias, qa_outputs.weight" in capsys.readouterr().err
