"""`--push_to_hub` of both commands: checked before anything runs, pushed after everything is stored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from loopback import READ_TOKEN, WRITE_TOKEN, Hub
from safetensors.torch import load
from transformers import BertForQuestionAnswering

import bert_cluster
import glue_eval.command
import squad_eval.command
from bert_cluster.evaluation.errors import StoredResultsError
from bert_cluster.evaluation.lock import sole_run
from bert_cluster.hub import faults

Main = Callable[..., int]


@pytest.fixture(autouse=True)
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    monkeypatch.setattr(faults, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def squad(qa_model: str, squad_file: Callable[..., str], tmp_path: Path) -> Main:
    """squad(*flags): squad_eval of a tiny model into tmp_path/answers."""
    given = [
        "--model_name_or_path",
        qa_model,
        "--validation_file",
        squad_file(4),
        "--output_dir",
        str(tmp_path / "answers"),
    ]
    common = [
        "--device",
        "cpu",
        "--max_seq_length",
        "48",
        "--doc_stride",
        "8",
        "--bootstrap_samples",
        "20",
        "--disable_tqdm",
    ]
    return lambda *flags: squad_eval.command.main([*given, *common, *flags])


def test_squad_eval_pushes_the_one_method_with_its_results(
    hub: Hub, squad: Main, qa_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert squad("--push_to_hub", "--hub_base_model", "owner/base") == 0
    files = hub.repos["tester/answers"].files()
    assert files["tokenizer.json"] == (Path(qa_model) / "tokenizer.json").read_bytes()
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "bert-cluster-squad.png"} <= set(files)
    assert len(hub.requests("POST", "/commit/")) == 1
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "owner/base"
    stored = json.loads((tmp_path / "answers" / "all_results.json").read_text())
    f1 = {one.metric_args["attention"]: one.metric_value for one in card.data.eval_results if one.metric_type == "f1"}
    assert f1 == {name: round(entry["scores"]["f1"], 4) for name, entry in stored["methods"].items()}
    assert f"tester/answers: 6 files in one commit: {hub.url}/tester/answers/commit/" in capsys.readouterr().out
    loaded = bert_cluster.from_pretrained("tester/answers")
    assert {layer.method for layer in bert_cluster.info(loaded).layers} == {"refined-clustered"}


def test_the_card_of_an_adapter_credits_its_repository(
    hub: Hub, squad: Main, save_model: Callable[..., str], tmp_path: Path
) -> None:
    """Unless another is given, or the card already names one."""
    peft = pytest.importorskip("peft")
    base = save_model("qa")
    lora = peft.LoraConfig(r=2, target_modules=["query"], task_type="QUESTION_ANS")
    peft.get_peft_model(BertForQuestionAnswering.from_pretrained(base), lora).save_pretrained(tmp_path / "adapter")
    for name, folder in (("owner/base", Path(base)), ("owner/adapter", tmp_path / "adapter")):
        hub.create(name, {path.name: path.read_bytes() for path in folder.iterdir()})
    given = ["--model_name_or_path", "owner/adapter", "--base_model_name_or_path", "owner/base", "--push_to_hub"]
    given += ["--cache_dir", str(tmp_path / "cache")]

    def credited(*more: str) -> Any:
        assert squad(*given, *more) == 0
        return ModelCard(hub.repos["tester/answers"].files()["README.md"].decode()).data.base_model

    assert credited() == "owner/adapter"
    assert credited("--hub_base_model", "owner/base") == "owner/base"
    assert credited() == "owner/base"


def test_what_is_pushed_has_the_type_of_the_checkpoint(hub: Hub, squad: Main, tmp_path: Path) -> None:
    assert squad("--push_to_hub", "--dtype", "bfloat16") == 0
    files = hub.repos["tester/answers"].files()
    assert {tensor.dtype for tensor in load(files["model.safetensors"]).values()} == {torch.float32}
    assert json.loads(files["config.json"])["dtype"] == "float32"
    assert json.loads((tmp_path / "answers" / "all_results.json").read_text())["model"]["dtype"] == "bfloat16"


def test_glue_eval_pushes_the_method_that_is_named(
    hub: Hub, pair_model: str, mrpc_file: Callable[..., str], tmp_path: Path
) -> None:
    flags = ["--model_name_or_path", pair_model, "--task_name", "mrpc", "--validation_file", mrpc_file()]
    flags += [
        "--output_dir",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--bootstrap_samples",
        "20",
        "--disable_tqdm",
        "--no_plot",
    ]
    flags += ["--attention", "full", "clustered", "improved-clustered", "--clusters", "2", "--push_to_hub"]
    named = ["--push_attention", "clustered", "--hub_model_id", "pairs", "--hub_private_repo", "--hub_revision", "fast"]
    assert glue_eval.command.main([*flags, *named, "--hub_benchmark", "owner/pairs:mrpc"]) == 0
    repo = hub.repos["tester/pairs"]
    assert repo.private
    assert repo.files("fast")["tokenizer.json"] == (Path(pair_model) / "tokenizer.json").read_bytes()
    settings = json.loads(repo.files("fast")["config.json"])["clustered_attention"]
    assert (settings["method"], settings["clusters"]) == ("clustered", 2)
    assert ".eval_results/bert-cluster-owner--pairs--mrpc.yaml" in repo.files("fast")
    assert "MRPC, 20 examples" in repo.files("fast")["README.md"].decode()
    assert not any(path.endswith(".png") for path in repo.files("fast"))


def test_the_card_names_the_file_that_was_evaluated(
    hub: Hub, pair_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/my dev.csv").write_text("sentence1,sentence2,label\n" + "the cat runs .,a dog runs .,1\n" * 4)
    flags = ["--model_name_or_path", pair_model, "--task_name", "mrpc", "--validation_file", "data/my dev.csv"]
    run = ["--output_dir", "pairs", "--device", "cpu", "--bootstrap_samples", "20", "--disable_tqdm", "--no_plot"]
    assert glue_eval.command.main([*flags, *run, "--attention", "clustered", "--clusters", "2", "--push_to_hub"]) == 0
    data = ModelCard(hub.repos["tester/pairs"].files()["README.md"].decode()).data
    assert data.datasets is None
    assert {(one.dataset_type, one.dataset_split) for one in data.eval_results} == {("my dev.csv", None)}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--attention", "full", "clustered", "improved-clustered", "--push_to_hub"],
            "this run compares clustered, improved-clustered. Name one with --push_attention",
        ),
        (
            ["--attention", "full", "--push_to_hub"],
            "pushes a clustered method, and this run has none. Add one to --attention",
        ),
        (
            ["--push_to_hub", "--push_attention", "clustered"],
            "clustered is none of the clustered methods of this run (refined-clustered)",
        ),
        (["--hub_model_id", "a/b"], "--hub_model_id means nothing without --push_to_hub"),
        (["--push_to_hub", "--hub_model_id", "a/b/c"], "repo_id must be owner/name, or a name, got 'a/b/c'"),
        (["--push_to_hub", "--hub_base_model", "./mine"], "base_model must be a repository on the Hub"),
        (["--push_to_hub", "--hub_benchmark", "glue"], "benchmark must be DATASET:TASK"),
        (["--push_to_hub", "--hub_token", "hf_expired"], "The Hub does not accept the token (401"),
        (
            ["--push_to_hub", "--hub_token", READ_TOKEN],
            "The token of tester can only read. Use one with the role write.",
        ),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_runs(
    hub: Hub, squad: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert squad(*flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "answers").exists()
    assert hub.repos == {}


def test_a_push_that_fails_can_be_repeated_by_the_same_command(
    hub: Hub, squad: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fault("POST", "/commit/", status=403)
    assert squad("--push_to_hub") == 2
    told = capsys.readouterr().err
    assert "squad-eval: error: The token may not write to" in told
    assert f"The results are stored in {tmp_path / 'answers'}: the same command pushes again." in told
    stored = json.loads((tmp_path / "answers" / "all_results.json").read_text())
    assert squad("--push_to_hub") == 0
    assert json.loads((tmp_path / "answers" / "all_results.json").read_text()) == stored
    assert "model.safetensors" in hub.repos["tester/answers"].files()


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_push_that_was_interrupted_continues_with(
    overwrite: bool, hub: Hub, squad: Main, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    more = ["--overwrite_output_dir"] if overwrite else []
    without = " without --overwrite_output_dir" if overwrite else ""
    hub.fault("POST", "/commit/", status=403)
    assert squad("--push_to_hub", *more) == 2
    assert capsys.readouterr().err.endswith(f": the same command{without} pushes again.\n")
    monkeypatch.setattr("bert_cluster.evaluation.publishing.push_to_hub", interrupt)
    assert squad("--push_to_hub", *more) == 130
    told = f"squad-eval: interrupted. The same command{without} continues where it stopped.\n"
    assert capsys.readouterr().err.endswith(told)


def test_no_other_run_changes_the_results_while_they_are_pushed(
    hub: Hub, squad: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl")

    def push(*_: Any, **__: Any) -> str:
        with pytest.raises(StoredResultsError, match="Another run is at work"), sole_run(tmp_path / "answers"):
            pytest.fail("two runs in one folder")
        return "pushed"

    monkeypatch.setattr("bert_cluster.evaluation.publishing.push_to_hub", push)
    assert squad("--push_to_hub") == 0


def test_without_the_flag_nothing_is_asked(hub: Hub, squad: Main) -> None:
    assert squad() == 0
    assert hub.log == []


def test_the_flags_of_the_examples_are_there() -> None:
    for command in (squad_eval.command, glue_eval.command):
        options = vars(command.new_parser().parse_args(required(command)))
        assert {"push_to_hub", "hub_model_id", "hub_token", "hub_private_repo"} <= set(options)
        assert options["push_to_hub"] is False


def required(command: Any) -> list[str]:
    given = ["--model_name_or_path", "m", "--output_dir", "o"]
    return [*given, *(["--task_name", "mrpc"] if command is glue_eval.command else [])]
