"""`squad_eval` from flags to files, with tiny random models."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertForQuestionAnswering,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    MPNetConfig,
    MPNetForQuestionAnswering,
)

from bert_cluster import ClusterConfig
from bert_cluster.evaluation import runner
from squad_eval.command import main, new_parser

RUN_QA_FILES = {"all_results.json", "eval_results.json", "eval_predictions.json", "eval_nbest_predictions.json"}
SPEED_KEYS = {
    *("eval_samples", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"),
    "eval_model_preparation_time",
}


def flags(model: str, file: str, output: Path, *more: str) -> list[str]:
    given = ["--model_name_or_path", model, "--validation_file", file, "--output_dir", str(output), "--device", "cpu"]
    return [*given, "--max_seq_length", "32", "--doc_stride", "8", "--bootstrap_samples", "50", "--disable_tqdm", *more]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_run_qas_flags_and_defaults() -> None:
    options = vars(new_parser().parse_args(["--model_name_or_path", "m", "--output_dir", "o"]))
    expected = {
        **{
            "max_seq_length": 384,
            "doc_stride": 128,
            "n_best_size": 20,
            "max_answer_length": 30,
            "model_revision": "main",
        },
        **{"version_2_with_negative": False, "null_score_diff_threshold": 0.0, "per_device_eval_batch_size": 8},
        **{"max_eval_samples": None, "dataset_name": None, "dataset_config_name": None, "validation_file": None},
        **{"tokenizer_name": None, "config_name": None, "cache_dir": None, "token": None},
    }
    assert {name: options[name] for name in expected} == expected


def test_the_files_of_run_qa_and_ours(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    methods = ["--attention", "full", "clustered", "improved-clustered", "--clusters", "2"]
    assert main(flags(qa_model, squad_file(12), output, *methods)) == 0
    assert {path.name for path in output.iterdir()} == {
        *("full", "clustered", "improved-clustered", "chunks", "all_results.json", "report.md", "plot.png")
    }
    content = read(output / "all_results.json")
    for method in ("full", "clustered", "improved-clustered"):
        assert {path.name for path in (output / method).iterdir()} == RUN_QA_FILES
        metrics = read(output / method / "eval_results.json")
        assert set(metrics) == {"eval_exact_match", "eval_f1", *SPEED_KEYS}
        assert metrics == read(output / method / "all_results.json")
        assert metrics["eval_f1"] == content["methods"][method]["scores"]["f1"]
        assert metrics["eval_samples"] == content["batches"]["inputs"] > 12
        assert set(read(output / method / "eval_predictions.json")) == {f"q{number}" for number in range(12)}
    improved = content["methods"]["improved-clustered"]
    assert set(improved["difference_to_full"]) == {"exact_match", "f1"}
    assert 0 <= improved["agreement_with_full"]["value"] <= 1
    assert (
        improved["cluster_config"] == ClusterConfig(method="improved-clustered", clusters=2).with_defaults().to_dict()
    )
    assert content["methods"]["full"]["difference_to_full"] is None
    assert content["settings"]["max_seq_length"] == 32
    text = capsys.readouterr().out
    for word in ("improved-clustered", "f1", "agrees with full", "peak memory"):
        assert word in text


def test_agreement_and_differences_are_those_of_the_predictions(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    methods = ["--attention", "full", "clustered", "--clusters", "1", "--no_plot"]
    assert main(flags(qa_model, squad_file(12), output, *methods)) == 0
    full, clustered = (read(output / name / "eval_predictions.json") for name in ("full", "clustered"))
    result = read(output / "all_results.json")["methods"]
    same = sum(full[name] == clustered[name] for name in full) / len(full)
    assert result["clustered"]["agreement_with_full"] == {"kind": "same predictions", "value": pytest.approx(same)}
    assert same < 1
    difference = result["clustered"]["difference_to_full"]["f1"]
    assert difference["value"] == pytest.approx(result["clustered"]["scores"]["f1"] - result["full"]["scores"]["f1"])
    assert difference["low"] <= difference["value"] <= difference["high"]


def test_all_keys_give_fulls_answers(qa_model: str, squad_file: Callable[..., str], tmp_path: Path) -> None:
    methods = ["--attention", "full", "improved-clustered", "--topk", "64", "--no_plot"]
    assert main(flags(qa_model, squad_file(8), tmp_path / "out", *methods)) == 0
    result = read(tmp_path / "out" / "all_results.json")["methods"]["improved-clustered"]
    assert result["agreement_with_full"]["value"] == 1.0
    assert result["difference_to_full"]["f1"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert result["calls"]["clustered"] > 0 == result["calls"]["exact"]


def test_without_the_flag_the_stored_settings_run(
    save_model: Callable[..., str], squad_file: Callable[..., str], tmp_path: Path
) -> None:
    settings = ClusterConfig(method="clustered", clusters=3).with_defaults()
    model = save_model("qa", settings=settings.to_dict())
    assert main(flags(model, squad_file(4), tmp_path / "out", "--no_plot")) == 0
    methods = read(tmp_path / "out" / "all_results.json")["methods"]
    assert list(methods) == ["full", "clustered"]
    assert methods["clustered"]["cluster_config"] == settings.to_dict()
    assert methods["clustered"]["settings_from"] == "checkpoint"


def test_inputs_below_exact_below_run_exact_and_are_counted(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--attention", "full", "clustered", "--clusters", "1", "--exact_below", "100", "--no_plot"]
    assert main(flags(qa_model, squad_file(5), tmp_path / "out", *more)) == 0
    content = read(tmp_path / "out" / "all_results.json")
    inputs = content["batches"]["inputs"]
    assert f"{inputs} of {inputs} inputs have fewer than exact_below=100 tokens" in capsys.readouterr().out
    assert content["methods"]["clustered"]["agreement_with_full"]["value"] == 1.0


def test_inputs_that_the_model_does_not_take_are_left_out(
    squad_file: Callable[..., str], tmp_path: Path, tokenizer: Any
) -> None:
    """The tokenizer gives token_type_ids, DistilBERT takes none."""
    torch.manual_seed(1)
    DistilBertForQuestionAnswering(
        DistilBertConfig(vocab_size=60, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    ).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    more = ["--attention", "full", "improved-clustered", "--topk", "64", "--no_plot"]
    assert main(flags(str(tmp_path / "model"), squad_file(3), tmp_path / "out", *more)) == 0
    methods = read(tmp_path / "out" / "all_results.json")["methods"]
    assert methods["improved-clustered"]["agreement_with_full"]["value"] == 1.0


def test_a_model_that_cannot_be_patched_is_refused_before_anything_runs(
    squad_file: Callable[..., str], tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = MPNetConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    MPNetForQuestionAnswering(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert main(flags(str(tmp_path / "model"), squad_file(3), tmp_path / "out", "--no_plot")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("squad-eval: error: ") and "MPNet" in error
    assert not (tmp_path / "out").exists()


def test_overwriting_with_what_cannot_run_keeps_the_results(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, file = tmp_path / "out", squad_file(3)
    assert main(flags(qa_model, file, output, "--attention", "full")) == 0
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    more = ["--attention", "clustered", "--layers", '{"9": {"method": "full"}}', "--overwrite_output_dir"]
    assert main(flags(qa_model, file, output, *more)) == 2
    assert "layers names layer 9" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_picture_is_that_of_the_results_beside_it(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, file = tmp_path / "out", squad_file(3)
    assert main(flags(qa_model, file, output, "--attention", "full")) == 0
    assert (output / "plot.png").exists()
    assert main(flags(qa_model, file, output, "--attention", "full", "clustered", "--no_plot")) == 0
    assert not (output / "plot.png").exists()
    assert main(flags(qa_model, file, output, "--attention", "full")) == 0
    monkeypatch.setattr("bert_cluster.evaluation.command.draw", lambda *_: pytest.fail("no picture"))
    with pytest.raises(pytest.fail.Exception):
        main(flags(qa_model, file, output, "--attention", "full", "clustered"))
    assert not (output / "plot.png").exists()
    assert list(read(output / "all_results.json")["methods"]) == ["full", "clustered"]
    assert "| clustered |" in (output / "report.md").read_text()


def test_a_full_disk_continues_only_what_was_begun(
    qa_model: str,
    squad_file: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "f")

    command = flags(qa_model, squad_file(3), tmp_path / "out", "--attention", "full", "--no_plot")
    with monkeypatch.context() as patched:
        patched.setattr(runner.Store, "write_chunk", fail)
        assert main(command) == 2
    assert capsys.readouterr().err.endswith("squad-eval: error: [Errno 28] No space left on device: 'f'.\n")
    with monkeypatch.context() as patched:
        patched.setattr("bert_cluster.evaluation.command.write_text", fail)
        assert main(command) == 2
        assert "'f'. What is finished is stored: the same command continues.\n" in capsys.readouterr().err
        assert main([*command, "--overwrite_output_dir"]) == 2
    assert ": the same command without --overwrite_output_dir continues.\n" in capsys.readouterr().err


def test_the_type_that_is_reported_is_the_one_that_ran(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path, tokenizer: Any
) -> None:
    """config.json may name none, or that of a base into which an adapter is merged in float32."""
    peft = pytest.importorskip("peft")
    narrow, adapter, file = tmp_path / "narrow", tmp_path / "adapter", squad_file(3)
    model = BertForQuestionAnswering.from_pretrained(qa_model).bfloat16()
    model.save_pretrained(narrow)
    tokenizer.save_pretrained(narrow)
    lora = peft.LoraConfig(r=2, target_modules=["query"], task_type="QUESTION_ANS")
    wrapped = peft.get_peft_model(BertForQuestionAnswering.from_pretrained(narrow), lora)
    wrapped.save_pretrained(adapter)
    more = ["--attention", "full", "--dtype", "auto", "--no_plot"]
    assert main(flags(str(adapter), file, tmp_path / "merged", *more)) == 0
    assert read(tmp_path / "merged" / "all_results.json")["model"]["dtype"] == "float32"
    config = read(narrow / "config.json")
    assert config.pop("dtype") == "bfloat16"
    (narrow / "config.json").write_text(json.dumps(config))
    assert main(flags(str(narrow), file, tmp_path / "plain", *more)) == 0
    assert read(tmp_path / "plain" / "all_results.json")["model"]["dtype"] == "bfloat16"


def test_version_2(qa_model: str, squad_file: Callable[..., str], tmp_path: Path) -> None:
    file = squad_file(12, unanswerable=True)
    more = ["--attention", "full", "--version_2_with_negative", "--no_plot"]
    assert main(flags(qa_model, file, tmp_path / "out", *more)) == 0
    folder = tmp_path / "out" / "full"
    assert {path.name for path in folder.iterdir()} == {*RUN_QA_FILES, "eval_null_odds.json"}
    metrics = read(folder / "eval_results.json")
    assert {"eval_exact", "eval_f1", "eval_HasAns_f1", "eval_NoAns_f1", "eval_best_f1", "eval_total"} <= set(metrics)
    assert set(read(folder / "eval_null_odds.json")) == {f"q{number}" for number in range(12)}


def test_the_best_of_version_2_does_not_depend_on_the_threshold_of_the_run(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path
) -> None:
    command = flags(qa_model, squad_file(12, unanswerable=True), tmp_path / "out", "--attention", "full", "--no_plot")
    metrics = []
    for threshold in ("1000", "-1000"):
        assert main([*command, "--version_2_with_negative", "--null_score_diff_threshold", threshold]) == 0
        metrics.append(read(tmp_path / "out" / "full" / "eval_results.json"))
    answered, silent = metrics
    assert (answered["eval_NoAns_exact"], silent["eval_NoAns_exact"], silent["eval_HasAns_exact"]) == (0.0, 100.0, 0.0)
    for name in ("eval_best_exact", "eval_best_exact_thresh", "eval_best_f1", "eval_best_f1_thresh"):
        assert answered[name] == silent[name], name
    assert silent["eval_best_f1"] >= max(answered["eval_f1"], silent["eval_f1"])


def test_version_1_refuses_questions_without_answers(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(qa_model, squad_file(12, unanswerable=True), tmp_path / "out", "--no_plot")) == 2
    assert "--version_2_with_negative" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_labels_predictions_agreement_and_time_but_no_score(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = squad_file(6, labelled=False)
    assert main(flags(qa_model, file, tmp_path / "out", "--attention", "full", "clustered")) == 0
    result = read(tmp_path / "out" / "all_results.json")
    assert (result["data"]["labelled"], result["task"]["primary_scores"]) == (False, [])
    clustered = result["methods"]["clustered"]
    assert clustered["scores"] == {} and clustered["difference_to_full"] is None
    assert clustered["agreement_with_full"]["value"] >= 0 and clustered["seconds"] > 0
    assert set(read(tmp_path / "out" / "clustered" / "eval_results.json")) == SPEED_KEYS
    assert "f1" not in capsys.readouterr().out


def test_max_eval_samples_cuts_questions_not_windows(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path
) -> None:
    assert (
        main(flags(qa_model, squad_file(12), tmp_path / "out", "--attention", "full", "--max_eval_samples", "4")) == 0
    )
    content = read(tmp_path / "out" / "all_results.json")
    assert (content["data"]["examples"], content["batches"]["inputs"] > 4) == (4, True)
    assert len(read(tmp_path / "out" / "full" / "eval_predictions.json")) == 4


def test_padding_to_the_maximum_is_counted(qa_model: str, squad_file: Callable[..., str], tmp_path: Path) -> None:
    shares = []
    for more in ([], ["--pad_to_max_length"]):
        output = tmp_path / f"out{len(more)}"
        assert main(flags(qa_model, squad_file(6), output, "--attention", "full", "--no_plot", *more)) == 0
        batches = read(output / "all_results.json")["batches"]
        assert batches["padded_share"] == pytest.approx(1 - batches["tokens"] / batches["padded_tokens"])
        shares.append(batches["padded_share"])
    assert shares[0] < shares[1]


def test_other_settings_are_refused_and_other_methods_join(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    output, file = tmp_path / "out", squad_file(6)
    assert main(flags(qa_model, file, output, "--attention", "full", "--no_plot")) == 0
    assert main(flags(qa_model, file, output, "--attention", "full", "--no_plot", "--max_eval_samples", "3")) == 2
    assert "max_eval_samples was null and is now 3" in capsys.readouterr().err
    ran: list[str] = []
    original = runner._run_chunks

    def spy(method: Any, *arguments: Any) -> None:
        ran.append(method.name)
        original(method, *arguments)

    monkeypatch.setattr(runner, "_run_chunks", spy)
    assert main(flags(qa_model, file, output, "--attention", "full", "clustered", "--no_plot")) == 0
    assert ran == ["clustered"]
    assert main(flags(qa_model, file, output, "--attention", "clustered", "--clusters", "2", "--no_plot")) == 2
    assert "cluster_config.clusters was 25 and is now 2" in capsys.readouterr().err


def test_another_configuration_is_refused(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = flags(qa_model, squad_file(3), tmp_path / "out", "--attention", "full", "--no_plot", "--config_name")
    for epsilon in ("1e-6", "1e-3"):
        (tmp_path / epsilon).mkdir()
        config = {**read(Path(qa_model) / "config.json"), "layer_norm_eps": float(epsilon)}
        (tmp_path / epsilon / "config.json").write_text(json.dumps(config))
    assert main([*command, str(tmp_path / "1e-6")]) == 0
    assert main([*command, str(tmp_path / "1e-6")]) == 0
    assert main([*command, str(tmp_path / "1e-3")]) == 2
    assert "holds results of other settings: model.files.config_name was " in capsys.readouterr().err


def test_choosing_answers_differently_needs_no_new_run(
    qa_model: str, squad_file: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, file = tmp_path / "out", squad_file(6)
    assert main(flags(qa_model, file, output, "--attention", "full", "--no_plot")) == 0
    monkeypatch.setattr("squad_eval.command.load_model", lambda *_, **__: pytest.fail("the model was loaded again"))
    assert main(flags(qa_model, file, output, "--attention", "full", "--no_plot", "--max_answer_length", "1")) == 0
    answers = read(output / "full" / "eval_predictions.json").values()
    assert all(len(answer.split()) <= 1 for answer in answers)
