"""Checkpoints and adapters: what is loaded, and what is refused because a weight would be made up."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from loopback import Hub
from tiny_tokenizer import tiny_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    PretrainedConfig,
    RobertaConfig,
)

from bert_cluster import ClusterConfig
from bert_cluster.evaluation.checkpoints import find_checkpoint
from bert_cluster.evaluation.errors import CheckpointError, MissingPackageError
from bert_cluster.evaluation.models import load_model
from bert_cluster.evaluation.options import add_model_options, new_parser
from bert_cluster.lengths import longest_input


def parse(*arguments: str) -> argparse.Namespace:
    parser = new_parser("test", "")
    add_model_options(parser)
    return parser.parse_args(["--model_name_or_path", *arguments])


def save_adapter(base: str, folder: Path, kind: type, task_type: str, head: str, **config: Any) -> torch.nn.Module:
    """Save a LoRA adapter with random weights and a head of its own; returns the merged model it must give."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    model = kind.from_pretrained(base, **config)  # type: ignore[attr-defined]
    lora = peft.LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=[head], task_type=task_type)
    wrapped = peft.get_peft_model(model, lora)
    with torch.no_grad():
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.3)
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload().eval()


@pytest.fixture
def qa_adapter(save_model: Callable[..., str], tmp_path: Path) -> tuple[str, str, torch.nn.Module]:
    """(adapter folder, its base: an encoder without head, the merged model)"""
    base = save_model("encoder")
    merged = save_adapter(base, tmp_path / "adapter", BertForQuestionAnswering, "QUESTION_ANS", "qa_outputs")
    return str(tmp_path / "adapter"), base, merged


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([[2, 7, 8, 9, 3]]))
    return output.start_logits if hasattr(output, "start_logits") else output.logits


def test_a_folder(qa_model: str) -> None:
    checkpoint = find_checkpoint(parse(qa_model), "QUESTION_ANS")
    assert checkpoint.adapter is None and checkpoint.stored is None
    model = load_model(checkpoint, AutoModelForQuestionAnswering)
    assert not model.training
    assert model.dtype == torch.float32
    torch.testing.assert_close(logits_of(model), logits_of(BertForQuestionAnswering.from_pretrained(qa_model).eval()))


def test_the_dtype_asked_for_and_the_checkpoints_own(qa_model: str, tmp_path: Path) -> None:
    checkpoint = find_checkpoint(parse(qa_model), "QUESTION_ANS")
    assert load_model(checkpoint, AutoModelForQuestionAnswering, dtype="bfloat16").dtype == torch.bfloat16
    BertForQuestionAnswering.from_pretrained(qa_model).half().save_pretrained(tmp_path / "half")
    shutil.copy(Path(qa_model) / "tokenizer.json", tmp_path / "half")
    shutil.copy(Path(qa_model) / "tokenizer_config.json", tmp_path / "half")
    half = find_checkpoint(parse(str(tmp_path / "half")), "QUESTION_ANS")
    assert load_model(half, AutoModelForQuestionAnswering, dtype="auto").dtype == torch.float16
    assert load_model(half, AutoModelForQuestionAnswering, dtype="float32").dtype == torch.float32


def test_stored_settings_are_found(save_model: Callable[..., str]) -> None:
    settings = ClusterConfig(clusters=3, topk=5)
    checkpoint = find_checkpoint(parse(save_model("qa", settings=settings.to_dict())), "QUESTION_ANS")
    assert checkpoint.stored == settings


def test_stored_settings_that_cannot_be_read_are_named(save_model: Callable[..., str]) -> None:
    folder = save_model("qa", settings={"version": 99})
    with pytest.raises(CheckpointError, match=r"config\.json, key clustered_attention"):
        find_checkpoint(parse(folder), "QUESTION_ANS")


def test_an_encoder_without_the_head_is_refused_with_the_missing_keys(save_model: Callable[..., str]) -> None:
    checkpoint = find_checkpoint(parse(save_model("encoder")), "QUESTION_ANS")
    with pytest.raises(CheckpointError, match=r"lacks the weights qa_outputs\.bias, qa_outputs\.weight"):
        load_model(checkpoint, AutoModelForQuestionAnswering)
    with pytest.raises(CheckpointError, match=r"lacks the weights classifier\.bias, classifier\.weight"):
        load_model(checkpoint, AutoModelForSequenceClassification)


def test_weights_of_another_shape_are_named_with_both(pair_model: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pair_model, folder)
    config = json.loads((folder / "config.json").read_text())
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    (folder / "config.json").write_text(json.dumps({**config, **labels}))
    checkpoint = find_checkpoint(parse(str(folder)), "SEQ_CLS")
    with pytest.raises(
        CheckpointError, match=r"classifier\.bias have the shape \(2,\), and by config\.json it is \(3,\)"
    ):
        load_model(checkpoint, AutoModelForSequenceClassification)


def test_an_adapter_is_merged_and_brings_its_head(qa_adapter: tuple[str, str, torch.nn.Module]) -> None:
    folder, _, merged = qa_adapter
    checkpoint = find_checkpoint(parse(folder), "QUESTION_ANS")
    assert checkpoint.adapter is not None and checkpoint.adapter.outputs == 2
    model = load_model(checkpoint, AutoModelForQuestionAnswering)
    assert type(model) is BertForQuestionAnswering
    assert not any("lora" in name for name, _ in model.named_modules())
    torch.testing.assert_close(logits_of(model), logits_of(merged))


def test_the_base_can_be_overridden(qa_adapter: tuple[str, str, torch.nn.Module], tmp_path: Path) -> None:
    folder, base, merged = qa_adapter
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    settings = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(CheckpointError, match="there is no folder /nowhere/base"):
        find_checkpoint(parse(str(moved)), "QUESTION_ANS")
    checkpoint = find_checkpoint(parse(str(moved), "--base_model_name_or_path", base), "QUESTION_ANS")
    torch.testing.assert_close(logits_of(load_model(checkpoint, AutoModelForQuestionAnswering)), logits_of(merged))


def test_the_number_of_labels_comes_from_the_adapters_head(save_model: Callable[..., str], tmp_path: Path) -> None:
    base = save_model("encoder")
    kind = BertForSequenceClassification
    merged = save_adapter(base, tmp_path / "nli", kind, "SEQ_CLS", "classifier", num_labels=3)
    checkpoint = find_checkpoint(parse(str(tmp_path / "nli")), "SEQ_CLS")
    assert checkpoint.adapter is not None and checkpoint.adapter.outputs == 3
    names = {0: "entailment", 1: "neutral", 2: "contradiction"}
    model = load_model(checkpoint, AutoModelForSequenceClassification, id2label=names)
    assert (model.config.num_labels, model.config.id2label) == (3, names)
    torch.testing.assert_close(logits_of(model), logits_of(merged))


def test_an_adapter_of_another_task_or_model_is_refused(
    qa_adapter: tuple[str, str, torch.nn.Module], save_model: Callable[..., str]
) -> None:
    folder, _, _ = qa_adapter
    with pytest.raises(CheckpointError, match="task_type is QUESTION_ANS, this command needs SEQ_CLS"):
        find_checkpoint(parse(folder), "SEQ_CLS")
    deeper = save_model("encoder", num_hidden_layers=3)
    checkpoint = find_checkpoint(parse(folder, "--base_model_name_or_path", deeper), "QUESTION_ANS")
    with pytest.raises(CheckpointError, match="weights only on one side: .*layer.2"):
        load_model(checkpoint, AutoModelForQuestionAnswering)
    wider = save_model("encoder", hidden_size=48)
    checkpoint = find_checkpoint(parse(folder, "--base_model_name_or_path", wider), "QUESTION_ANS")
    with pytest.raises(CheckpointError, match="the adapter does not fit"):
        load_model(checkpoint, AutoModelForQuestionAnswering)


def test_an_adapter_without_peft(qa_adapter: tuple[str, str, torch.nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = find_checkpoint(parse(qa_adapter[0]), "QUESTION_ANS")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingPackageError, match="peft is not installed: pip install peft"):
        load_model(checkpoint, AutoModelForQuestionAnswering)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "there is no folder ./nowhere"),
        ("a/b/c", "there is no folder a/b/c, and it cannot be a Hub id"),
    ],
)
def test_mistyped_paths_do_not_ask_the_hub(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(parse(name), "QUESTION_ANS")


def test_a_file_and_an_empty_folder_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        find_checkpoint(parse(str(tmp_path / "file")), "QUESTION_ANS")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty: its configuration cannot be read"):
        find_checkpoint(parse(str(tmp_path / "empty")), "QUESTION_ANS")


@pytest.mark.parametrize("offline", [False, True])
def test_an_adapter_on_a_hub_out_of_reach_is_not_taken_for_a_model(
    hub: Hub, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where connections break nor where the environment says to stay offline."""
    adapter = {"task_type": "QUESTION_ANS", "base_model_name_or_path": "owner/base"}
    hub.create("owner/adapter", {"adapter_config.json": json.dumps(adapter), "adapter_model.safetensors": b""})
    for cached, missing in ((None, "adapter_config.json"), ("adapter_config.json", "adapter_model.safetensors")):
        if cached is not None:
            huggingface_hub.hf_hub_download("owner/adapter", cached, cache_dir=tmp_path)
        with monkeypatch.context() as away:
            away.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
            faults = [hub.fault(method, "/", cut="before", times=999) for method in ("GET", "HEAD")]
            expected = (
                rf"adapter: the Hub could not be reached \(.+\), and the cache has neither its {missing} nor its config"
            )
            with pytest.raises(CheckpointError, match=expected):
                find_checkpoint(parse("owner/adapter", "--cache_dir", str(tmp_path)), "QUESTION_ANS")
            assert all(fault.times == 999 for fault in faults) is offline
            hub.faults.clear()


def test_a_model_in_the_cache_needs_no_hub(
    hub: Hub, qa_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that something else loaded, which did not look for an adapter."""
    hub.create("owner/model", {path.name: path.read_bytes() for path in Path(qa_model).iterdir()})
    for auto in (AutoConfig, AutoTokenizer):
        auto.from_pretrained("owner/model", cache_dir=tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    checkpoint = find_checkpoint(parse("owner/model", "--cache_dir", str(tmp_path)), "QUESTION_ANS")
    assert checkpoint.adapter is None and checkpoint.fingerprint["commit"] == hub.repos["owner/model"].refs["main"]


def upload(hub: Hub, name: str, folder: str) -> None:
    hub.create(name, {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != "README.md"})


def test_an_adapter_on_the_hub_brings_its_tokenizer(
    hub: Hub, qa_adapter: tuple[str, str, torch.nn.Module], tokenizer: Any, tmp_path: Path
) -> None:
    """That of its own revision, though nothing has loaded it before."""
    adapter, base, _ = qa_adapter
    upload(hub, "owner/base", base)
    upload(hub, "owner/adapter", adapter)
    own = tiny_tokenizer()
    own.add_tokens(["seine-et-marne"])
    own.save_pretrained(tmp_path / "own")
    repo = hub.repos["owner/adapter"]
    added = {path.name: hub.file(path.name, path.read_bytes()) for path in (tmp_path / "own").iterdir()}
    repo.add("worded", {**repo.commits[repo.refs["main"]], **added})
    flags = ["owner/adapter", "--base_model_name_or_path", "owner/base", "--cache_dir", str(tmp_path / "cache")]
    assert len(find_checkpoint(parse(*flags), "QUESTION_ANS").tokenizer) == len(tokenizer)
    worded = find_checkpoint(parse(*flags, "--model_revision", "worded"), "QUESTION_ANS")
    assert len(worded.tokenizer) == len(tokenizer) + 1


def test_an_adapter_in_the_cache_that_has_no_tokenizer_needs_no_hub(
    hub: Hub,
    qa_adapter: tuple[str, str, torch.nn.Module],
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload(hub, "owner/adapter", qa_adapter[0])
    command = parse("owner/adapter", "--cache_dir", str(tmp_path))
    find_checkpoint(command, "QUESTION_ANS")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert len(find_checkpoint(command, "QUESTION_ANS").tokenizer) == len(tokenizer)


def test_a_gated_model_is_told(hub: Hub) -> None:
    hub.create("owner/gated", {"config.json": "{}"}, gated=True)
    with pytest.raises(CheckpointError, match="owner/gated: its configuration cannot be read: .*gated repo"):
        find_checkpoint(parse("owner/gated"), "QUESTION_ANS")


def test_a_model_that_was_cut_off_is_told(qa_model: str, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(qa_model, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    checkpoint = find_checkpoint(parse(str(folder)), "QUESTION_ANS")
    with pytest.raises(CheckpointError, match=r"cut: the model cannot be loaded: .*incomplete.*"):
        load_model(checkpoint, AutoModelForQuestionAnswering)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"task_type": "QUES', r"adapter_config\.json is not JSON: Unterminated .*Save or download the adapter again"),
        ("[1]", r"adapter_config\.json must be a JSON object, got \[1\]\. Save the adapter again"),
    ],
)
def test_settings_of_an_adapter_that_were_cut_off_are_told(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(parse(str(tmp_path)), "QUESTION_ANS")


def test_a_base_for_something_that_is_no_adapter(qa_model: str) -> None:
    with pytest.raises(CheckpointError, match="is for adapters"):
        find_checkpoint(parse(qa_model, "--base_model_name_or_path", qa_model), "QUESTION_ANS")


def test_changed_weights_change_the_fingerprint(qa_model: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(qa_model, copy)
    before = find_checkpoint(parse(str(copy)), "QUESTION_ANS").fingerprint
    assert before == find_checkpoint(parse(qa_model), "QUESTION_ANS").fingerprint
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert before != find_checkpoint(parse(str(copy)), "QUESTION_ANS").fingerprint


def test_another_configuration_changes_the_fingerprint(qa_model: str, tmp_path: Path) -> None:
    before = find_checkpoint(parse(qa_model), "QUESTION_ANS").fingerprint
    config = json.loads((Path(qa_model) / "config.json").read_text())
    found = []
    for number, epsilon in enumerate((1e-6, 1e-6, 1e-7)):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "config.json").write_text(json.dumps({**config, "layer_norm_eps": epsilon}))
        found.append(find_checkpoint(parse(qa_model, "--config_name", str(place)), "QUESTION_ANS").fingerprint)
    assert found[0] == found[1] != found[2]
    assert found[0] != before and {name: found[0][name] for name in before} == before


class Limited:
    model_max_length = 128


def test_the_longest_input_is_what_the_position_table_holds() -> None:
    assert longest_input(PretrainedConfig(max_position_embeddings=512), Limited(), 384) == 384
    assert longest_input(PretrainedConfig(max_position_embeddings=512), Limited(), 4096) == 512
    assert longest_input(RobertaConfig(max_position_embeddings=514, pad_token_id=1), Limited(), 4096) == 512
    assert longest_input(PretrainedConfig(), Limited(), 4096) == 128
    assert longest_input(PretrainedConfig(max_position_embeddings=16384), Limited(), None) == 16384
    assert longest_input(PretrainedConfig(), Limited(), None) == 128
