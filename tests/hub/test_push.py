"""What one push leaves on the Hub."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from loopback import OTHER_TOKEN, READ_TOKEN, Hub
from pushed_models import REPO, RESULTS, batch, outputs, same_bits, tiny_answerer, tiny_config
from torch import nn
from transformers import BertForQuestionAnswering, BertModel, PreTrainedTokenizerFast

import bert_cluster
from bert_cluster import HubError, NotPatchedError, SaveError, push_to_hub, save_pretrained

pytestmark = pytest.mark.usefixtures("login", "no_waiting")
FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def commits(hub: Hub) -> int:
    return len(hub.requests("POST", "/commit/"))


def test_everything_goes_up_in_one_commit(
    hub: Hub, model: BertForQuestionAnswering, tokenizer: PreTrainedTokenizerFast
) -> None:
    pushed = push_to_hub(model, REPO, tokenizer)
    files = hub.repos[REPO].files()
    assert set(files) == FILES | {".gitattributes"}
    assert commits(hub) == 1
    assert set(pushed.uploaded) == FILES
    assert (pushed.repo_id, pushed.commit) == (REPO, hub.repos[REPO].refs["main"])
    assert pushed.url == f"{hub.url}/{REPO}/commit/{pushed.commit}"
    settings = json.loads(files["config.json"])["clustered_attention"]
    assert settings["library_version"] == bert_cluster.__version__
    assert (settings["method"], settings["clusters"], settings["bits"]) == ("improved-clustered", 3, 63)


def test_the_commit_names_the_head_that_it_was_made_for(hub: Hub, model: BertForQuestionAnswering) -> None:
    before = hub.create(REPO, {"notes.txt": "mine"}).refs["main"]
    push_to_hub(model, REPO)
    header = json.loads(hub.requests("POST", "/commit/main")[0].body.splitlines()[0])
    assert header["value"]["parentCommit"] == before
    assert hub.repos[REPO].files()["notes.txt"] == b"mine"


def test_pushing_the_same_again_uploads_nothing(
    hub: Hub, model: BertForQuestionAnswering, tokenizer: PreTrainedTokenizerFast
) -> None:
    first = push_to_hub(model, REPO, tokenizer, results=RESULTS_OF_NONE)
    sent = len(hub.log)
    again = push_to_hub(model, REPO, tokenizer)
    assert (again.uploaded, again.commit) == ((), first.commit)
    assert {request.method for request in hub.log[sent:]} == {"GET", "HEAD"}
    assert "nothing had changed, nothing sent" in str(again)


RESULTS_OF_NONE: list[str] = []


@pytest.mark.parametrize("large", [True, False])
def test_what_has_changed_alone_is_sent(hub: Hub, model: BertForQuestionAnswering, large: bool) -> None:
    hub.large = large
    push_to_hub(model, REPO)
    with torch.no_grad():
        model.qa_outputs.bias.add_(1)
    assert push_to_hub(model, REPO).uploaded == ("model.safetensors",)
    bert_cluster.patch(model, method="improved-clustered", clusters=4, topk=2)
    assert push_to_hub(model, REPO).uploaded == ("README.md", "config.json")


def test_results_and_their_plot_go_along(
    hub: Hub, tokenizer: PreTrainedTokenizerFast, results: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_answerer(method="refined-clustered")
    (tmp_path / "all_results.json").write_text(json.dumps(results))
    (tmp_path / "plot.png").write_bytes(b"\x89PNG picture")
    pushed = push_to_hub(model, REPO, tokenizer, results=tmp_path)
    assert "bert-cluster-squad.png" in pushed.uploaded
    files = hub.repos[REPO].files()
    assert files["bert-cluster-squad.png"] == b"\x89PNG picture"
    assert "(bert-cluster-squad.png)" in files["README.md"].decode()
    assert "tokenizer" not in str(pushed)
    assert push_to_hub(model, REPO, tokenizer, results=tmp_path).uploaded == ()


def test_a_name_alone_is_a_repository_of_the_user(hub: Hub, model: BertForQuestionAnswering) -> None:
    assert push_to_hub(model, "answers").repo_id == REPO
    assert '"tester/answers"' in hub.repos[REPO].files()["README.md"].decode()


def test_a_branch_is_made_from_main(hub: Hub, model: BertForQuestionAnswering) -> None:
    repo = hub.create(REPO, {"notes.txt": "mine"})
    main = repo.refs["main"]
    pushed = push_to_hub(model, REPO, revision="fast/er")
    assert repo.refs["main"] == main
    assert repo.refs["fast/er"] == pushed.commit
    assert repo.files("fast/er")["notes.txt"] == b"mine"
    assert f'from_pretrained("{REPO}", revision="fast/er")' in repo.files("fast/er")["README.md"].decode()
    assert push_to_hub(model, REPO, revision="fast/er").uploaded == ()


def test_a_pull_request_leaves_main_alone(
    hub: Hub, model: BertForQuestionAnswering, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.create(REPO, {"notes.txt": "mine"})
    main = repo.refs["main"]
    pushed = push_to_hub(model, REPO, create_pr=True, token=OTHER_TOKEN)
    assert repo.refs == {"main": main, "refs/pr/1": pushed.commit}
    assert pushed.url == f"{hub.url}/{REPO}/discussions/1"
    assert "revision=" not in repo.files("refs/pr/1")["README.md"].decode()


def test_private_makes_a_new_repository_private(hub: Hub, model: BertForQuestionAnswering) -> None:
    push_to_hub(model, REPO, private=True)
    assert hub.repos[REPO].private
    push_to_hub(model, REPO, private=True)  # it is private already


def test_private_refuses_a_repository_that_is_public(hub: Hub, model: BertForQuestionAnswering) -> None:
    hub.create(REPO)
    with pytest.raises(
        HubError,
        match=r"exists and is public.*leave private out \(in a command --private or --hub_private_repo\)\. Nothing was changed",
    ):
        push_to_hub(model, REPO, private=True)
    assert commits(hub) == 0


def test_weights_of_an_earlier_push_in_parts_are_removed(hub: Hub, model: BertForQuestionAnswering) -> None:
    """Else a loader would take model.safetensors.index.json's parts, or find both."""
    old = {"model-00001-of-00002.safetensors": b"1", "model-00002-of-00002.safetensors": b"2", "vocab.txt": b"word"}
    hub.create(REPO, {**old, "model.safetensors.index.json": b"{}"})
    pushed = push_to_hub(model, REPO)
    assert set(hub.repos[REPO].files()) == {"README.md", "config.json", "model.safetensors", "vocab.txt"}
    assert len(pushed.removed) == 3
    assert commits(hub) == 1


def test_a_model_that_is_compiled_or_parallel_is_pushed_as_itself(hub: Hub, model: BertForQuestionAnswering) -> None:
    push_to_hub(torch.compile(model), REPO)
    assert push_to_hub(nn.DataParallel(model), REPO).uploaded == ()


def test_message_and_benchmark(hub: Hub, results: dict[str, Any]) -> None:
    model = tiny_answerer(method="refined-clustered")
    push_to_hub(model, REPO, results=results, benchmark="somebody/answers:default", commit_message="Faster")
    header = json.loads(hub.requests("POST", "/commit/main")[0].body.splitlines()[0])
    assert header["value"]["summary"] == "Faster"
    assert ".eval_results/bert-cluster-somebody--answers--default.yaml" in hub.repos[REPO].files()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bert_cluster.unpatch(tiny_answerer()), NotPatchedError, "is not patched. Call bert_cluster.patch"),
        (
            lambda: with_part_patched(),
            NotPatchedError,
            "only its part 'bert' is patched.*unpatch on the part and bert_cluster.patch on the model",
        ),
        (lambda: with_adapter(), SaveError, "has PEFT adapters.*model = model.merge_and_unload()"),
        (lambda: with_adapter().base_model.model, SaveError, "has PEFT adapters.*merge_and_unload"),
        (lambda: nn.Sequential(tiny_answerer()), SaveError, "Sequential is no model that transformers"),
    ],
    ids=["not patched", "part patched", "peft", "inside peft", "wrapper"],
)
def test_a_model_that_cannot_be_pushed(
    hub: Hub, make: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    model = make()
    with pytest.raises(error, match=message):
        push_to_hub(model, REPO)
    with pytest.raises(error, match=message):
        save_pretrained(model, tmp_path / "folder")
    assert hub.log == []
    assert list(tmp_path.iterdir()) == []


def with_part_patched() -> BertForQuestionAnswering:
    model = bert_cluster.unpatch(tiny_answerer())
    bert_cluster.patch(model.bert)
    return model


def with_adapter() -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(tiny_answerer(), LoraConfig(target_modules=["query"]))


def test_a_merged_adapter_is_pushed(hub: Hub) -> None:
    model = with_adapter().merge_and_unload()
    push_to_hub(model, REPO)
    loaded = bert_cluster.from_pretrained(REPO)
    assert torch.equal(loaded(**batch()).start_logits, model(**batch()).start_logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repo_id": "a/b/c"}, "repo_id must be owner/name, or a name, got 'a/b/c'"),
        ({"repo_id": None}, "repo_id must be owner/name, or a name, got None"),
        ({"revision": 3}, "revision must be a text such as main, got int: 3"),
        ({"commit_message": " "}, "commit_message is empty"),
        ({"base_model": "./checkpoints/mine"}, "base_model must be a repository on the Hub.*got './checkpoints/mine'"),
        ({"tokenizer": "bert"}, "tokenizer must be a tokenizer or processor of transformers, got str"),
        ({"tokenizer": BertModel(tiny_config())}, "tokenizer must be a tokenizer .* of transformers, got BertModel"),
        ({"tokenizer": tiny_config()}, "tokenizer must be a tokenizer .* of transformers, got BertConfig"),
        ({"results": 3}, "results must be all_results.json .*a file, its folder, its content.*, got int: 3"),
        ({"results": [None]}, "results must be all_results.json of squad-eval or glue-eval .*, got NoneType: None"),
        ({"results": "no/such.json"}, "results: there is no file no/such.json"),
        ({"results": {"f1": 3}}, "results is no comparison of methods.*Give the all_results.json in the OUTPUT_DIR"),
        ({"benchmark": 3}, "benchmark must be a text such as owner/name:default, got int: 3"),
        ({"benchmark": "squad"}, "benchmark must be DATASET:TASK.*got 'squad'"),
        ({"benchmark": "a/b:c"}, "needs the scores of exactly one task, got 0 results"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_sent(
    hub: Hub, model: BertForQuestionAnswering, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(SaveError, match=message):
        push_to_hub(model, **{"repo_id": REPO, **arguments})
    assert hub.log == []


def test_results_must_have_measured_this_model(
    hub: Hub, model: BertForQuestionAnswering, results: dict[str, Any]
) -> None:
    with pytest.raises(
        SaveError, match="results has not measured this model's settings. It has clustered .*the model has improved"
    ):
        push_to_hub(model, REPO, results=results)
    with pytest.raises(SaveError, match="results has SQuAD v1.1 twice"):
        push_to_hub(tiny_answerer(method="refined-clustered"), REPO, results=[results, RESULTS])
    with pytest.raises(SaveError, match="schema version 7; this bert-cluster reads 1"):
        push_to_hub(model, REPO, results={**results, "schema_version": 7})
    assert hub.log == []


def test_a_folder_of_ours_can_be_pushed_by_command(
    hub: Hub, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bert_cluster.cli import main

    folder = tmp_path / "model"
    save_pretrained(tiny_answerer(method="refined-clustered"), folder, tokenizer)
    readme = folder / "README.md"
    readme.write_text(readme.read_text().replace("# model", "# My own words"))
    assert main(["push", str(folder), REPO, "--results", str(RESULTS), "--base_model", "owner/base", "--private"]) == 0
    files = hub.repos[REPO].files()
    assert set(files) == FILES | {".gitattributes"}
    assert "# My own words" in files["README.md"].decode()
    assert "SQuAD v1.1" in files["README.md"].decode()
    assert hub.repos[REPO].private
    assert f"{REPO}: 5 files in one commit: {hub.url}/{REPO}/commit/" in capsys.readouterr().out


def test_the_command_tells_what_is_wrong(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bert_cluster.cli import main

    bert_cluster.unpatch(tiny_answerer()).save_pretrained(tmp_path / "exact")
    assert main(["push", str(tmp_path / "exact"), REPO]) == 2
    assert "has no settings of clustered attention in its config.json. Give --config FILE" in capsys.readouterr().err
    assert main(["push", "nobody/nothing", REPO]) == 2
    assert "nobody/nothing is not a local folder" in capsys.readouterr().err
    tiny_answerer().save_pretrained(tmp_path / "model")
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    assert main(["push", str(tmp_path / "model"), REPO]) == 2
    assert "bert-cluster: The token may not write to tester/answers (403" in capsys.readouterr().err
    assert hub.repos == {}


def test_settings_can_be_given_to_the_command(hub: Hub, tmp_path: Path) -> None:
    from bert_cluster.cli import main

    bert_cluster.unpatch(tiny_answerer()).save_pretrained(tmp_path / "exact")
    bert_cluster.ClusterConfig(method="clustered", clusters=5).save(tmp_path / "settings.json")
    assert main(["push", str(tmp_path / "exact"), REPO, "--config", str(tmp_path / "settings.json")]) == 0
    settings = json.loads(hub.repos[REPO].files()["config.json"])["clustered_attention"]
    assert (settings["method"], settings["clusters"]) == ("clustered", 5)


def test_an_encoder_and_its_auto_class(hub: Hub) -> None:
    torch.manual_seed(0)
    push_to_hub(bert_cluster.patch(BertModel(tiny_config())), REPO)
    readme = hub.repos[REPO].files()["README.md"].decode()
    assert "pipeline_tag: feature-extraction" in readme
    assert "model = AutoModel.from_pretrained" in readme


def test_proposing_the_same_again_opens_no_second_pull_request(hub: Hub, model: BertForQuestionAnswering) -> None:
    hub.create(REPO)
    first = push_to_hub(model, REPO, create_pr=True)
    again = push_to_hub(model, REPO, create_pr=True)
    assert (again.uploaded, again.url, again.commit) == ((), first.url, first.commit)
    assert hub.repos[REPO].pulls == 1


@pytest.mark.parametrize(
    ("name", "what"), [("adapter_config.json", "a PEFT adapter"), ("modules.json", "a model of sentence-transformers")]
)
def test_a_place_that_would_be_loaded_as_something_else(
    hub: Hub, model: BertForQuestionAnswering, tmp_path: Path, name: str, what: str
) -> None:
    hub.create(REPO, {name: "{}"})
    message = f"holds {what} .{name}., and a BertForQuestionAnswering beside it would be loaded as that"
    with pytest.raises(SaveError, match=f"{message}.*Choose another place.*Nothing was changed on the Hub"):
        push_to_hub(model, REPO)
    (tmp_path / name).write_text("{}")
    with pytest.raises(SaveError, match=message):
        save_pretrained(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert set(hub.repos[REPO].files()) == {name}


class Answerer(BertForQuestionAnswering):
    """A class of the user's own."""


def test_a_class_that_nobody_else_has_is_refused(hub: Hub) -> None:
    model = bert_cluster.patch(Answerer(tiny_config()))
    with pytest.raises(
        SaveError, match="Answerer .of .*. is no class of transformers, so nobody else could load it again"
    ):
        push_to_hub(model, REPO)
    assert hub.log == []


@pytest.mark.parametrize(
    ("name", "loader", "task"),
    [
        ("BertModel", "AutoModel", "feature-extraction"),
        ("BertForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
        ("BertForPreTraining", "AutoModelForPreTraining", None),
        ("BertForTokenClassification", "AutoModelForTokenClassification", "token-classification"),
        ("BertForNextSentencePrediction", "AutoModelForNextSentencePrediction", None),
    ],
)
def test_every_head_comes_back(hub: Hub, name: str, loader: str, task: str | None) -> None:
    model = bert_cluster.patch(getattr(transformers, name)(tiny_config()).eval(), method="clustered", clusters=3)
    push_to_hub(model, REPO)
    card = hub.repos[REPO].files()["README.md"].decode()
    assert f"model = {loader}.from_pretrained" in card
    assert (f"pipeline_tag: {task}\n" in card) if task else ("pipeline_tag" not in card)
    loaded = bert_cluster.from_pretrained(REPO)
    assert type(loaded) is type(model)
    assert same_bits(outputs(loaded), outputs(model))


def test_code_that_came_with_a_model_is_not_named(hub: Hub, tokenizer: PreTrainedTokenizerFast) -> None:
    """Configurations of models that once were remote code carry auto_map on, though their class is one of transformers."""
    model = tiny_answerer()
    model.config.auto_map = {"AutoConfig": "owner/model--configuration.Config"}
    tokenizer.init_kwargs["auto_map"] = {"AutoTokenizer": ["owner/model--tokenization.Tokenizer", None]}
    try:
        push_to_hub(model, REPO, tokenizer)
    finally:
        del tokenizer.init_kwargs["auto_map"]
    assert not [path for path, content in hub.repos[REPO].files().items() if b"auto_map" in content]


@pytest.mark.parametrize("hub_model", [True, False])
def test_a_tokenizer_is_never_made_up(hub: Hub, tmp_path: Path, hub_model: bool) -> None:
    """transformers gives an empty one where there is none."""
    from bert_cluster.cli import main

    save_pretrained(tiny_answerer(), tmp_path / "model")
    if hub_model:
        push_to_hub(tiny_answerer(), "tester/source")
    assert main(["push", "tester/source" if hub_model else str(tmp_path / "model"), REPO]) == 0
    assert "tokenizer.json" not in hub.repos[REPO].files()


def test_a_vocabulary_alone_is_a_tokenizer(hub: Hub, tmp_path: Path) -> None:
    from bert_cluster.cli import main

    save_pretrained(tiny_answerer(), tmp_path / "model")
    (tmp_path / "model" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfox\n")
    assert main(["push", str(tmp_path / "model"), REPO]) == 0
    assert "fox" in json.loads(hub.repos[REPO].files()["tokenizer.json"])["model"]["vocab"]


def spoil(folder: Path, what: str) -> None:
    """Damage a saved model."""
    if what == "card":
        (folder / "README.md").write_bytes("# M\u00fcll".encode("latin-1"))
    elif what == "type":
        config = json.loads((folder / "config.json").read_text())
        del config["model_type"]
        (folder / "config.json").write_text(json.dumps(config))
    elif what == "weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:300])
    elif what == "shapes":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    elif what == "folder":
        (folder / "config.json").unlink()
        (folder / "config.json").mkdir()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("card", "README.md is not UTF-8 text"),
        ("type", "cannot be loaded: "),
        ("weights", "cannot be loaded: "),
        ("shapes", "cannot be loaded: "),
        ("folder", "cannot be loaded: "),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, message: str
) -> None:
    from bert_cluster.cli import main

    save_pretrained(tiny_answerer(), tmp_path / "model")
    spoil(tmp_path / "model", what)
    assert main(["push", str(tmp_path / "model"), REPO]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("bert-cluster: ") and message in told
    assert hub.repos == {}


def test_settings_that_cannot_be_read_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bert_cluster.cli import main

    assert main(["push", "anything", REPO, "--config", str(tmp_path / "none.json")]) == 2
    assert "bert-cluster: --config " in capsys.readouterr().err


@pytest.mark.parametrize("key", ["task", "environment", "methods", "data"])
def test_damaged_results_are_refused_before_anything_is_sent(hub: Hub, results: dict[str, Any], key: str) -> None:
    del results[key]
    with pytest.raises(SaveError, match="results is damaged: .*Evaluate again"):
        push_to_hub(tiny_answerer(method="refined-clustered"), REPO, results=results)
    assert hub.log == []


def test_a_score_that_is_not_defined(hub: Hub, results: dict[str, Any]) -> None:
    """Such as a correlation with constant predictions."""
    model = tiny_answerer(method="refined-clustered")
    for entry in results["methods"].values():
        entry["scores"]["f1"] = None
    with pytest.raises(SaveError, match="needs the score f1, which is not defined in SQuAD v1.1's results"):
        push_to_hub(model, REPO, results=results, benchmark="a/b:c")
    push_to_hub(model, REPO, results=results)
    assert "| – | – |" in hub.repos[REPO].files()["README.md"].decode()


@pytest.mark.parametrize("benchmark", ["a/b:../../x", "a/b:", "../a:b", "a/b:c/d"])
def test_a_benchmark_cannot_leave_its_folder(hub: Hub, results: dict[str, Any], benchmark: str) -> None:
    with pytest.raises(SaveError, match="benchmark must be DATASET:TASK"):
        push_to_hub(tiny_answerer(method="refined-clustered"), REPO, results=results, benchmark=benchmark)
