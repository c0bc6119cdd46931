"""Loading from the Hub in this process: classes, settings, tokens, and connections that break."""

import json

import pytest
from loopback import READ_TOKEN, WRITE_TOKEN, Hub
from pushed_models import REPO, outputs, same_bits
from transformers import AutoModelForQuestionAnswering, BertForQuestionAnswering, BertModel

import bert_cluster
from bert_cluster import ClusterConfig, ConfigError, LoadError, UnsupportedModelError, from_pretrained, push_to_hub
from bert_cluster.errors import NotPatchedWarning

pytestmark = pytest.mark.usefixtures("login", "no_waiting")


def test_revisions(hub: Hub, model: BertForQuestionAnswering) -> None:
    first = push_to_hub(model, REPO)
    bert_cluster.patch(model, method="clustered", clusters=2)
    push_to_hub(model, REPO)
    assert from_pretrained(REPO).config.clustered_attention["method"] == "clustered"
    assert from_pretrained(REPO, revision=first.commit).config.clustered_attention["method"] == "improved-clustered"
    with pytest.raises(OSError, match="nothing is not a valid git identifier"):
        from_pretrained(REPO, revision="nothing")


def test_task_and_class(hub: Hub, model: BertForQuestionAnswering) -> None:
    push_to_hub(model, REPO)
    assert type(from_pretrained(REPO)) is BertForQuestionAnswering
    assert type(from_pretrained(REPO, task="question-answering")) is BertForQuestionAnswering
    assert type(from_pretrained(REPO, task="feature-extraction")) is BertModel
    assert type(from_pretrained(REPO, auto_class=AutoModelForQuestionAnswering)) is BertForQuestionAnswering
    with pytest.raises(ConfigError, match="takes a task or an auto_class, got both"):
        from_pretrained(REPO, task="fill-mask", auto_class=BertModel)
    with pytest.raises(ConfigError, match="task must be one of question-answering, .*text-ranking, got 'translation'"):
        from_pretrained(REPO, task="translation")


def test_a_repository_without_settings(hub: Hub, model: BertForQuestionAnswering) -> None:
    push_to_hub(model, REPO)
    config = json.loads(hub.repos[REPO].files()["config.json"])
    del config["clustered_attention"]
    head = hub.repos[REPO].commits[hub.repos[REPO].refs["main"]]
    hub.repos[REPO].add("main", {**head, "config.json": hub.file("config.json", json.dumps(config).encode())})
    with pytest.warns(
        NotPatchedWarning, match="tester/answers has no settings.*it is not patched. Give config=ClusterConfig"
    ):
        assert bert_cluster.info(from_pretrained(REPO)).layers == ()
    given = ClusterConfig(method="improved-clustered", clusters=3, topk=2)
    assert same_bits(outputs(from_pretrained(REPO, given)), outputs(model))


def test_settings_of_a_newer_version_are_refused_before_the_weights(hub: Hub, model: BertForQuestionAnswering) -> None:
    push_to_hub(model, REPO)
    config = json.loads(hub.repos[REPO].files()["config.json"])
    config["clustered_attention"] |= {"version": 2, "heads": "by themselves"}
    head = hub.repos[REPO].commits[hub.repos[REPO].refs["main"]]
    hub.repos[REPO].add("main", {**head, "config.json": hub.file("config.json", json.dumps(config).encode())})
    with pytest.raises(ConfigError, match="have version 2; this bert-cluster reads versions up to 1. Install a newer"):
        from_pretrained(REPO)
    assert not any("safetensors" in request.path for request in hub.log if request.method == "GET")


def test_private_and_gated(hub: Hub, model: BertForQuestionAnswering, monkeypatch: pytest.MonkeyPatch) -> None:
    push_to_hub(model, REPO, private=True)
    assert same_bits(outputs(from_pretrained(REPO)), outputs(model))  # HF_TOKEN
    monkeypatch.delenv("HF_TOKEN")
    assert same_bits(outputs(from_pretrained(REPO, token=READ_TOKEN)), outputs(model))
    hub.repos[REPO].private = False
    hub.repos[REPO].gated = True
    other = push_and_gate(hub, model)
    with pytest.raises(OSError, match="gated repo"):
        from_pretrained(other)
    assert same_bits(outputs(from_pretrained(other, token=WRITE_TOKEN)), outputs(model))


def push_and_gate(hub: Hub, model: BertForQuestionAnswering) -> str:
    push_to_hub(model, "tester/gated", token=WRITE_TOKEN)
    hub.repos["tester/gated"].gated = True
    return "tester/gated"


@pytest.mark.parametrize("times", [1, 999])
def test_a_download_cut_in_the_middle(
    hub: Hub, model: BertForQuestionAnswering, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on where it stopped, or an error says what to do; a later load is not harmed by it."""
    repo = f"tester/cut-{times}"
    push_to_hub(model, repo)
    hub.fault("GET", "/_objects/down/", cut="middle", times=times)
    if times == 1:
        assert same_bits(outputs(from_pretrained(repo)), outputs(model))
        return
    with pytest.raises((LoadError, OSError), match="could not be loaded: the connection to the Hub failed"):
        from_pretrained(repo)
    hub.faults.clear()
    assert same_bits(outputs(from_pretrained(repo)), outputs(model))


def test_a_hub_that_is_not_there(hub: Hub, model: BertForQuestionAnswering) -> None:
    hub.fault("GET", "/api/", cut="before", times=99)
    hub.fault("HEAD", "/", cut="before", times=99)
    with pytest.raises(OSError, match="(?i)connect"):
        from_pretrained("tester/never-seen")


def test_an_adapter_is_no_model(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    from bert_cluster.cli import main

    hub.create("tester/adapter", {"adapter_config.json": '{"peft_type": "LORA"}', "README.md": "# Adapter"})
    with pytest.raises(UnsupportedModelError, match="tester/adapter is a PEFT adapter. Merge it into its base model"):
        from_pretrained("tester/adapter")
    assert main(["push", "tester/adapter", REPO]) == 2
    assert "bert-cluster: tester/adapter is a PEFT adapter. Merge it" in capsys.readouterr().err


def test_info_of_a_repository_reads_no_weights(
    hub: Hub, model: BertForQuestionAnswering, capsys: pytest.CaptureFixture[str]
) -> None:
    from bert_cluster.cli import main

    push_to_hub(model, REPO)
    seen = len(hub.log)
    assert main(["info", REPO]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{REPO}: a bert with improved-clustered attention\n  clusters = 3\n  topk = 2\n")
    assert f"saved by bert-cluster {bert_cluster.__version__}" in told
    assert not any("safetensors" in request.path for request in hub.log[seen:])
    assert main(["info", REPO, "--revision", "nothing"]) == 2
    assert "nothing is not a valid git identifier" in capsys.readouterr().err
    assert main(["info", "nobody/nothing"]) == 2
    assert "bert-cluster: nobody/nothing is not a local folder and is not a valid" in capsys.readouterr().err


def test_settings_that_are_null_are_none(
    hub: Hub, model: BertForQuestionAnswering, capsys: pytest.CaptureFixture[str]
) -> None:
    from bert_cluster.cli import main

    push_to_hub(model, REPO)
    config = json.loads(hub.repos[REPO].files()["config.json"]) | {"clustered_attention": None}
    head = hub.repos[REPO].commits[hub.repos[REPO].refs["main"]]
    hub.repos[REPO].add("main", {**head, "config.json": hub.file("config.json", json.dumps(config).encode())})
    assert main(["info", REPO]) == 0
    assert "without settings of clustered attention" in capsys.readouterr().out


def test_a_hub_out_of_reach_is_not_a_file_that_is_missing(
    hub: Hub, model: BertForQuestionAnswering, capsys: pytest.CaptureFixture[str]
) -> None:
    """modules.json decides the class: without an answer nothing else may be assumed."""
    from bert_cluster.cli import main

    push_to_hub(model, REPO)
    hub.fault("HEAD", "modules.json", status=400, times=99)
    with pytest.raises(OSError, match="planted fault"):
        from_pretrained(REPO)
    hub.faults.clear()
    hub.fault("HEAD", "modules.json", cut="before", times=99)
    with pytest.raises(LoadError, match="tester/answers could not be loaded: the connection to the Hub failed"):
        from_pretrained(REPO)
    hub.faults.clear()
    hub.fault("HEAD", "config.json", cut="before", times=99)
    assert main(["info", "tester/never-asked"]) == 2
    assert "never-asked could not be loaded: the connection to the Hub failed" in capsys.readouterr().err
