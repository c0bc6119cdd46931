"""Settings travel in config.json: transformers' own save and load, then `patch` again; and the command that shows them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import batch, hidden, tiny_bert, tiny_model
from transformers import AutoConfig, AutoModel

import bert_cluster
from bert_cluster import ClusterConfig, ConfigError
from bert_cluster.cli import main

CONFIG = ClusterConfig(
    method="improved-clustered", clusters=3, topk=4, bits=16, layers={1: {"clusters": 2}}, exact_below=5, seed=3
)


def saved(folder: Path, config: ClusterConfig | None = CONFIG) -> Path:
    """A folder with a tiny BERT, patched before it was saved if there are settings."""
    model = tiny_bert()
    if config is not None:
        bert_cluster.patch(model, config)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["bert", "albert", "modernbert", "eurobert", "distilbert"])
def test_save_load_and_patch_again_gives_the_same_bits(family: str, tmp_path: Path) -> None:
    model, inputs = tiny_model(family), batch()
    names = set(model.state_dict())
    bert_cluster.patch(model, method="improved-clustered", clusters=3, topk=4, bits=16, seed=3)
    expected = hidden(model, inputs)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert set(again.state_dict()) == names
    bert_cluster.patch(again)
    assert torch.equal(hidden(again, inputs), expected)
    assert [layer.budgets for layer in bert_cluster.info(again).layers] == [
        layer.budgets for layer in bert_cluster.info(model).layers
    ]


def test_what_is_written(tmp_path: Path) -> None:
    data = json.loads((saved(tmp_path) / "config.json").read_text())
    assert data["clustered_attention"] == {
        "version": 1,
        "method": "improved-clustered",
        "clusters": 3,
        "topk": 4,
        "bits": 16,
        "layers": {"1": {"clusters": 2}},
        "exact_below": 5,
        "seed": 3,
    }
    assert not [key for key in data if "attn_implementation" in key]


def test_a_loaded_model_is_exact_until_patched(tmp_path: Path) -> None:
    model, inputs = AutoModel.from_pretrained(saved(tmp_path)).eval(), batch()
    assert torch.equal(hidden(model, inputs), hidden(tiny_bert(), inputs))
    assert bert_cluster.info(model).layers == ()
    bert_cluster.patch(model)
    assert [layer.budgets["clusters"] for layer in bert_cluster.info(model).layers] == [3, 2]


def test_saving_an_unpatched_model_saves_no_settings(tmp_path: Path) -> None:
    model = bert_cluster.patch(AutoModel.from_pretrained(saved(tmp_path / "patched")))
    bert_cluster.unpatch(model).save_pretrained(tmp_path / "exact")
    assert "clustered_attention" not in json.loads((tmp_path / "exact" / "config.json").read_text())


def test_settings_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(saved(tmp_path))
    config.clustered_attention["version"] = 2
    model = AutoModel.from_config(config)
    with pytest.raises(ConfigError, match="version 2; this bert-cluster reads versions up to 1"):
        bert_cluster.patch(model)
    assert bert_cluster.info(model).layers == ()


# The command bert-cluster info


def test_info_shows_what_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (saved(tmp_path) / "model.safetensors").unlink()  # no weights are read
    assert main(["info", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{tmp_path}: a bert with improved-clustered attention"
    assert [line.strip() for line in shown[1:]] == [
        "clusters = 3",
        "topk = 4",
        "bits = 16",
        "iterations = 10",
        "exact_below = 5",
        "seed = 3",
        "layer 1: clusters=2",
    ]


def test_info_of_a_model_without_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(saved(tmp_path, None))]) == 0
    assert "a bert without settings of clustered attention" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no config.json. Give the folder or the repository of a saved model"),
        ("{", "config.json is not JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ('{"clustered_attention": {"version": 7}}', "version 7"),
        ('{"clustered_attention": {"clusters": 0}}', "clusters must be a whole number"),
        ('{"clustered_attention": 3}', "must be a JSON object, got int"),
    ],
)
def test_info_of_a_folder_that_cannot_be_read(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert main(["info", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bert-cluster: ")
    assert message in error


def test_the_module_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bert_cluster", "info", str(saved(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "improved-clustered" in done.stdout
