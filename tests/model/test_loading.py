"""`from_pretrained`: which class, which settings, and what happens without any."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SIZES, batch
from transformers import AutoModel, BertConfig, BertForQuestionAnswering, BertModel

import bert_cluster
from bert_cluster import ClusterConfig, ConfigError, UnsupportedModelError
from bert_cluster.errors import NotPatchedWarning

STORED = ClusterConfig(clusters=3, topk=4, key_clusters=2, sample=8)
OTHER = ClusterConfig(method="improved-clustered", clusters=2, topk=3)


def saved(folder: Path, config: ClusterConfig | None) -> BertForQuestionAnswering:
    torch.manual_seed(7)
    model = BertForQuestionAnswering(BertConfig(**SIZES)).eval()
    if config is not None:
        bert_cluster.patch(model, config)
    model.save_pretrained(folder)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch()).start_logits


def test_stored_settings_give_the_same_bits(tmp_path: Path) -> None:
    model = saved(tmp_path, STORED)
    loaded = bert_cluster.from_pretrained(tmp_path)
    assert type(loaded) is BertForQuestionAnswering and not loaded.training
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("stored", [None, STORED], ids=["over nothing", "over the stored ones"])
def test_given_settings_or_a_file_of_them(stored: ClusterConfig | None, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", stored)
    expected = logits(bert_cluster.patch(model, OTHER))
    OTHER.save(tmp_path / "settings.json")
    for config in (OTHER, tmp_path / "settings.json", str(tmp_path / "settings.json")):
        assert torch.equal(logits(bert_cluster.from_pretrained(tmp_path / "model", config)), expected)


def test_without_settings_it_says_so(tmp_path: Path) -> None:
    model = saved(tmp_path, None)
    with pytest.warns(NotPatchedWarning, match="has no settings .* it is not patched. Give config=ClusterConfig()"):
        loaded = bert_cluster.from_pretrained(tmp_path)
    assert bert_cluster.info(loaded).layers == () and torch.equal(logits(loaded), logits(model))


def test_another_class_and_its_arguments(tmp_path: Path) -> None:
    saved(tmp_path, STORED)
    loaded = bert_cluster.from_pretrained(tmp_path, auto_class=AutoModel, dtype=torch.bfloat16)
    assert type(loaded) is BertModel and loaded.dtype == torch.bfloat16
    assert len(bert_cluster.info(loaded).layers) == SIZES["num_hidden_layers"]


def test_settings_are_read_before_weights(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"method": "none"}')
    with pytest.raises(bert_cluster.ConfigError, match="method"):
        bert_cluster.from_pretrained(tmp_path / "no model", tmp_path / "settings.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"auto_class": "AutoModel"},
            "auto_class must be a class with from_pretrained, such as transformers.AutoModel, got 'AutoModel'. Give the class "
            "itself, or a task: question-answering, .*feature-extraction",
        ),
        (
            {"config": {"method": "clustered"}},
            r"config must be a ClusterConfig, or a JSON file of one, got dict. Write config=ClusterConfig\(method=...\)",
        ),
        ({"config": BertConfig()}, "config must be a ClusterConfig, or a JSON file of one, got BertConfig. Write"),
        (
            {"config": "refined-clustered"},
            "config must be .*, and there is no file refined-clustered. A method is given by config=ClusterConfig.method=",
        ),
        (
            {"clusters": 9, "method": "clustered"},
            r"takes settings as one argument, .* Write config=ClusterConfig\(method='clustered', clusters=9\)\.",
        ),
        (
            {"output_loading_info": True},
            "returns the model alone, and output_loading_info=True asks for a second value. Leave it out, or load the model",
        ),
    ],
)
def test_arguments_that_belong_elsewhere(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        bert_cluster.from_pretrained(tmp_path / "no model", **arguments)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"}))
    with pytest.raises(
        UnsupportedModelError, match=f"{tmp_path} is a PEFT adapter. Merge it into its base model first"
    ):
        bert_cluster.from_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match="Unrecognized model"):
        bert_cluster.from_pretrained(tmp_path)
