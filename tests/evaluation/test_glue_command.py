"""`glue_eval` from flags to files, with tiny random models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from glue_eval.command import main, new_parser

SPEED_KEYS = {
    *("eval_samples", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"),
    "eval_model_preparation_time",
}


def flags(model: str, task: str, file: str, output: Path, *more: str) -> list[str]:
    given = ["--model_name_or_path", model, "--task_name", task, "--validation_file", file, "--output_dir", str(output)]
    common = ["--device", "cpu", "--max_seq_length", "32", "--bootstrap_samples", "50", "--disable_tqdm", "--no_plot"]
    return [*given, *common, *more]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_run_glues_flags_and_defaults() -> None:
    options = vars(new_parser().parse_args(["--model_name_or_path", "m", "--output_dir", "o", "--task_name", "mrpc"]))
    expected = {
        **{"max_seq_length": 128, "per_device_eval_batch_size": 8, "model_revision": "main", "max_eval_samples": None},
        **{"dataset_name": None, "validation_file": None, "test_file": None, "token": None, "label_map": None},
    }
    assert {name: options[name] for name in expected} == expected


def test_the_files_and_keys_of_run_glue(
    pair_model: str, mrpc_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    methods = ["--attention", "full", "clustered", "improved-clustered", "--clusters", "2"]
    assert main(flags(pair_model, "mrpc", mrpc_file(), output, *methods)) == 0
    content = read(output / "all_results.json")
    for method in ("full", "clustered", "improved-clustered"):
        folder = output / method
        names = {"all_results.json", "eval_results.json", "predict_results_mrpc.txt"}
        assert {path.name for path in folder.iterdir()} == names
        metrics = read(folder / "eval_results.json")
        scores = {"eval_accuracy", "eval_f1", "eval_combined_score", "eval_loss"}
        assert set(metrics) == scores | SPEED_KEYS
        assert metrics["eval_combined_score"] == pytest.approx((metrics["eval_accuracy"] + metrics["eval_f1"]) / 2)
        assert content["methods"][method]["scores"]["accuracy"] == metrics["eval_accuracy"]
        assert metrics["eval_samples"] == 20
        lines = (folder / "predict_results_mrpc.txt").read_text().splitlines()
        assert lines[0] == "index\tprediction"
        assert len(lines) == 21
        assert {line.split("\t")[1] for line in lines[1:]} <= {"not_equivalent", "equivalent"}
    assert content["task"]["label_map"]["how"] == "order"
    assert "accuracy" in capsys.readouterr().out


def test_scores_and_loss_are_the_models(
    pair_model: str, mrpc_file: Callable[..., str], tmp_path: Path, tokenizer: Any
) -> None:
    file = mrpc_file()
    assert main(flags(pair_model, "mrpc", file, tmp_path / "out", "--attention", "full", "--max_seq_length", "64")) == 0
    rows = [line.split("\t") for line in Path(file).read_text().splitlines()[1:]]
    labels = torch.tensor([int(row[0]) for row in rows])
    batch = tokenizer([row[3] for row in rows], [row[4] for row in rows], padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = BertForSequenceClassification.from_pretrained(pair_model).eval()(**batch, labels=labels)
    metrics = read(tmp_path / "out" / "full" / "eval_results.json")
    assert metrics["eval_accuracy"] == pytest.approx((output.logits.argmax(1) == labels).double().mean().item())
    assert metrics["eval_loss"] == pytest.approx(output.loss.item(), rel=1e-4)


def test_an_input_has_room_for_text(
    pair_model: str, mrpc_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = flags(pair_model, "mrpc", mrpc_file(), tmp_path / "out", "--attention", "full")
    assert main([*command, "--max_seq_length", "3"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("leaves no room for text: every input has 3 special tokens. Raise it to 4 or more.")
    assert main([*command, "--max_seq_length", "4"]) == 0
    assert read(tmp_path / "out" / "all_results.json")["batches"]["tokens"] == 4 * 20


def test_agreement_is_the_share_of_equal_predictions(
    pair_model: str, mrpc_file: Callable[..., str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    more = ["--attention", "full", "clustered", "improved-clustered", "--clusters", "1", "--topk", "64"]
    with pytest.raises(SystemExit):
        main([*flags(pair_model, "mrpc", mrpc_file(), output), "--attention", "magic"])
    assert main(flags(pair_model, "mrpc", mrpc_file(), output, *more)) == 0
    methods = read(output / "all_results.json")["methods"]
    full, clustered = (
        (output / name / "predict_results_mrpc.txt").read_text().splitlines()[1:] for name in ("full", "clustered")
    )
    same = float(np.mean([one == other for one, other in zip(full, clustered, strict=True)]))
    assert methods["clustered"]["agreement_with_full"] == {"kind": "same predictions", "value": pytest.approx(same)}
    assert methods["improved-clustered"]["agreement_with_full"]["value"] == 1.0
    assert methods["improved-clustered"]["difference_to_full"]["f1"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_label_names_of_the_checkpoint_decide(
    nli_model: str, jsonl_file: Callable[..., str], nli_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = jsonl_file("dev_matched.jsonl", nli_rows)
    assert main(flags(nli_model, "mnli", file, tmp_path / "names", "--attention", "full")) == 0
    by_names = read(tmp_path / "names" / "all_results.json")
    assert by_names["task"]["label_map"] == {"how": "names", "outputs": [2, 1, 0]}
    map_flag = ["--label_map", "entailment,neutral,contradiction"]
    assert main(flags(nli_model, "mnli", file, tmp_path / "map", "--attention", "full", *map_flag)) == 0
    by_map = read(tmp_path / "map" / "all_results.json")
    assert by_map["task"]["label_map"] == {"how": "option", "outputs": [0, 1, 2]}
    predictions = [
        [
            line.split("\t")[1]
            for line in (tmp_path / name / "full" / "predict_results_mnli.txt").read_text().splitlines()
        ]
        for name in ("names", "map")
    ]
    swap = {"entailment": "contradiction", "contradiction": "entailment"}
    assert predictions[0] == [swap.get(label, label) for label in predictions[1]]


def test_mnli_both_ways(
    nli_model: str, jsonl_file: Callable[..., str], nli_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    matched = jsonl_file("dev_matched.jsonl", nli_rows)
    mismatched = jsonl_file("dev_mismatched.jsonl", nli_rows[:7])
    output = tmp_path / "out"
    more = ["--validation_file_mismatched", mismatched, "--attention", "full", "clustered", "--clusters", "2"]
    assert main(flags(nli_model, "mnli", matched, output, *more)) == 0
    metrics = read(output / "clustered" / "eval_results.json")
    keys = {"eval_accuracy", "eval_loss", *SPEED_KEYS}
    assert set(metrics) == keys | {f"{key}_mm" for key in keys}
    assert (metrics["eval_samples"], metrics["eval_samples_mm"]) == (18, 7)
    files = {path.name for path in (output / "clustered").iterdir()}
    assert {"predict_results_mnli.txt", "predict_results_mnli-mm.txt"} <= files
    result = read(output / "all_results.json")["methods"]["clustered"]
    assert set(result["scores"]) == set(result["difference_to_full"]) == {"accuracy", "accuracy_mm"}


def test_one_mismatched_file_alone(
    nli_model: str, jsonl_file: Callable[..., str], nli_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = jsonl_file("dev_mismatched.jsonl", nli_rows)
    assert main(flags(nli_model, "mnli", file, tmp_path / "out", "--attention", "full")) == 0
    assert "eval_accuracy_mm" in read(tmp_path / "out" / "full" / "eval_results.json")


@pytest.mark.parametrize("label", [None, -1])
def test_without_labels_no_score(
    label: int | None, nli_model: str, jsonl_file: Callable[..., str], nli_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    rows = [{key: value for key, value in row.items() if key != "label"} for row in nli_rows]
    if label is not None:
        rows = [{**row, "label": label} for row in rows]
    file = jsonl_file("test_matched.jsonl", rows)
    assert main(flags(nli_model, "mnli", file, tmp_path / "out", "--attention", "full", "clustered")) == 0
    assert set(read(tmp_path / "out" / "full" / "eval_results.json")) == SPEED_KEYS
    result = read(tmp_path / "out" / "all_results.json")
    assert (result["data"]["labelled"], result["task"]["primary_scores"]) == (False, [])
    assert result["methods"]["clustered"]["scores"] == {}
    assert result["methods"]["clustered"]["agreement_with_full"]["value"] >= 0
    assert len((tmp_path / "out" / "full" / "predict_results_mnli.txt").read_text().splitlines()) == 19


@pytest.mark.parametrize("unlabelled", [0, 1])
def test_one_part_of_mnli_without_labels(
    unlabelled: int, nli_model: str, jsonl_file: Callable[..., str], nli_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    rows = [nli_rows, nli_rows[:7]]
    rows[unlabelled] = [{**row, "label": -1} for row in rows[unlabelled]]
    matched, mismatched = jsonl_file("my dev.jsonl", rows[0]), jsonl_file("dev_mismatched.jsonl", rows[1])
    more = ["--validation_file_mismatched", mismatched, "--attention", "full"]
    assert main(flags(nli_model, "mnli", matched, tmp_path / "out", *more)) == 0
    result = read(tmp_path / "out" / "all_results.json")
    scores = result["methods"]["full"]["scores"]
    assert result["task"]["primary_scores"] == list(scores) == ["accuracy" if unlabelled else "accuracy_mm"]
    file = {"dataset": None, "config": None, "split": None}
    assert result["data"] == {
        "source": f"{matched}, {mismatched}",
        "splits": ["validation_matched", "validation_mismatched"],
        "examples": 25,
        "labelled": True,
        "parts": [
            {**file, "path": matched, "examples": 18, "labelled": unlabelled != 0},
            {**file, "path": mismatched, "examples": 7, "labelled": unlabelled != 1},
        ],
    }


def test_the_diagnostic_runs_an_mnli_model_and_counts_mcc(
    nli_model: str, jsonl_file: Callable[..., str], nli_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = jsonl_file("diagnostic.jsonl", nli_rows)
    assert main(flags(nli_model, "ax", file, tmp_path / "out", "--attention", "full")) == 0
    assert set(read(tmp_path / "out" / "full" / "eval_results.json")) == {
        "eval_matthews_correlation",
        "eval_loss",
        *SPEED_KEYS,
    }
    assert (tmp_path / "out" / "full" / "predict_results_ax.txt").exists()


def test_regression(
    save_model: Callable[..., str], jsonl_file: Callable[..., str], nli_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    model = save_model("classifier", num_labels=1)
    rows = [
        {"sentence1": row["premise"], "sentence2": row["hypothesis"], "label": 0.25 * number}
        for number, row in enumerate(nli_rows)
    ]
    more = ["--attention", "full", "clustered", "--clusters", "1"]
    assert main(flags(model, "stsb", jsonl_file("dev.jsonl", rows), tmp_path / "out", *more)) == 0
    metrics = read(tmp_path / "out" / "full" / "eval_results.json")
    assert {"eval_pearson", "eval_spearmanr", "eval_combined_score", "eval_loss"} <= set(metrics)
    agreement = read(tmp_path / "out" / "all_results.json")["methods"]["clustered"]["agreement_with_full"]
    full, clustered = (
        np.array([float(line.split("\t")[1]) for line in path.read_text().splitlines()[1:]])
        for path in (tmp_path / "out" / name / "predict_results_stsb.txt" for name in ("full", "clustered"))
    )
    assert agreement["kind"] == "mean absolute difference"
    assert agreement["value"] == pytest.approx(np.abs(full - clustered).mean(), abs=1e-3)


def test_max_eval_samples(pair_model: str, mrpc_file: Callable[..., str], tmp_path: Path) -> None:
    more = ["--attention", "full", "--max_eval_samples", "5"]
    assert main(flags(pair_model, "MRPC", mrpc_file(), tmp_path / "out", *more)) == 0
    assert read(tmp_path / "out" / "full" / "eval_results.json")["eval_samples"] == 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task_name", "gluten"], "gluten"),
        (["--validation_file_mismatched", "x.jsonl"], "belongs to --task_name mnli"),
        (["--validation_file", "nowhere.tsv"], "nowhere.tsv"),
        (["--label_map", "yes,no"], "yes"),
        (
            ["--do_eval", "--do_predict"],
            "both given, and a run takes one split. Run the command once with each, into an",
        ),
        (["--do_predict"], "--validation_file is given. Give the file as --test_file, or leave --do_predict out."),
        (["--task_name", "mnli"], ""),
    ],
)
def test_contradictions_in_one_sentence(
    more: list[str],
    message: str,
    pair_model: str,
    mrpc_file: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(flags(pair_model, "mrpc", mrpc_file(), tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("glue-eval: error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_an_encoder_without_the_head(
    save_model: Callable[..., str], mrpc_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(save_model("encoder"), "mrpc", mrpc_file(), tmp_path / "out")) == 2
    assert "lacks the weights classifier.bias, classifier.weight" in capsys.readouterr().err


def test_a_data_set_by_name_takes_its_validation_or_test_split(
    nli_model: str, jsonl_file: Callable[..., str], nli_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """A folder goes the way of a Hub id: datasets.load_dataset."""
    folder = tmp_path / "nli"
    folder.mkdir()
    for name, rows in (
        ("validation_matched", nli_rows[:6]),
        ("validation_mismatched", nli_rows[:4]),
        ("test_matched", nli_rows),
    ):
        Path(jsonl_file("part.jsonl", rows)).rename(folder / f"{name}.jsonl")
    Path(jsonl_file("part.jsonl", [{**row, "label": -1} for row in nli_rows[:3]])).rename(
        folder / "test_mismatched.jsonl"
    )
    splits = ("validation_matched", "validation_mismatched", "test_matched", "test_mismatched")
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in splits)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: mnli\n  data_files:\n{files}---\n")
    given = ["--model_name_or_path", nli_model, "--task_name", "mnli", "--dataset_name", str(folder), "--no_plot"]
    given += ["--dataset_config_name", "mnli"]
    common = [
        *given,
        "--cache_dir",
        str(tmp_path / "cache"),
        "--attention",
        "full",
        "--device",
        "cpu",
        "--disable_tqdm",
    ]
    assert main([*common, "--output_dir", str(tmp_path / "validation")]) == 0
    metrics = read(tmp_path / "validation" / "full" / "eval_results.json")
    assert (metrics["eval_samples"], metrics["eval_samples_mm"]) == (6, 4)
    place = {"dataset": None, "path": str(folder), "config": "mnli"}
    assert read(tmp_path / "validation" / "all_results.json")["data"]["parts"] == [
        {**place, "split": "validation_matched", "examples": 6, "labelled": True},
        {**place, "split": "validation_mismatched", "examples": 4, "labelled": True},
    ]
    assert main([*common, "--output_dir", str(tmp_path / "test"), "--do_predict"]) == 0
    lines = (tmp_path / "test" / "full" / "predict_results_mnli-mm.txt").read_text().splitlines()
    assert len(lines) == 4


def test_an_adapters_outputs_are_the_tasks_labels_in_order(
    save_model: Callable[..., str], mrpc_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peft = pytest.importorskip("peft")
    base = save_model("encoder")
    model = BertForSequenceClassification.from_pretrained(base, num_labels=2)
    lora = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"], task_type="SEQ_CLS")
    peft.get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    adapter = str(tmp_path / "adapter")
    assert main(flags(adapter, "mrpc", mrpc_file(), tmp_path / "out", "--attention", "full")) == 0
    content = read(tmp_path / "out" / "all_results.json")
    assert content["model"]["base"] == base
    assert content["task"]["label_map"] == {"how": "order", "outputs": [0, 1]}
    assert any("order was assumed" in note for note in content["notes"])
    assert main(flags(adapter, "mnli", mrpc_file(), tmp_path / "wrong", "--attention", "full")) == 2
    rows = [{"premise": "a cat", "hypothesis": "a dog", "label": "neutral"}]
    (tmp_path / "dev.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    capsys.readouterr()
    assert main(flags(adapter, "mnli", str(tmp_path / "dev.jsonl"), tmp_path / "wrong", "--attention", "full")) == 2
    assert "its head has 2 outputs, MNLI needs 3" in capsys.readouterr().err
