"""What `squad_eval` refuses: one sentence, exit status 2, and nothing is written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bert_cluster.evaluation.lock import sole_run
from squad_eval.command import main


def flags(model: str, file: str, output: Path, *more: str) -> list[str]:
    given = ["--model_name_or_path", model, "--validation_file", file, "--output_dir", str(output), "--device", "cpu"]
    return [*given, "--max_seq_length", "32", "--doc_stride", "8", "--bootstrap_samples", "50", "--disable_tqdm", *more]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--test_file", "x.json"], "--validation_file and --test_file are both given"),
        (["--dataset_name", "squad"], "--dataset_name and a local file are both given"),
        (
            ["--do_eval", "--do_predict"],
            "both given, and a run takes one split. Run the command once with each, into an",
        ),
        (["--do_predict"], "--validation_file is given. Give the file as --test_file, or leave --do_predict out."),
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


def test_a_threshold_that_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(flags("m", "f", Path("out"), "--null_score_diff_threshold", "nan"))
    assert "--null_score_diff_threshold: must be a number, got nan" in capsys.readouterr().err


def test_what_cannot_be_the_output_folder(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = squad_file(2)
    for output, message in (
        (Path(file), f"--output_dir {file} is a file. Give a folder."),
        (Path(file) / "out", "out cannot be a folder: Not a directory. Give another."),
        (tmp_path / ("x" * 300), "x cannot be a folder: File name too long. Give another."),
        (Path("/proc/out"), "/proc/out"),
    ):
        assert main(flags(qa_model, file, output)) == 2
        error = capsys.readouterr().err
        assert error.startswith("squad-eval: error: ") and message in error
    assert main([*flags(qa_model, file, tmp_path), "--output_dir", ""]) == 2
    assert "--output_dir is empty. Give a folder." in capsys.readouterr().err


def test_a_folder_in_which_another_run_is_at_work(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fcntl")
    with sole_run(tmp_path / "out"):
        assert main(flags(qa_model, squad_file(2), tmp_path / "out")) == 2
        assert "Another run is at work in" in capsys.readouterr().err


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


def test_a_model_that_was_cut_off(
    save_model: Callable[..., str], squad_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model("qa")
    weights = Path(model) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(flags(model, squad_file(2), tmp_path / "out", "--no_plot")) == 2
    assert f"squad-eval: error: {model}: the model cannot be loaded: " in capsys.readouterr().err


def test_an_encoder_without_the_head(
    save_model: Callable[..., str], squad_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(save_model("encoder"), squad_file(2), tmp_path / "out", "--no_plot")) == 2
    assert "lacks the weights qa_outputs.bias, qa_outputs.weight" in capsys.readouterr().err
