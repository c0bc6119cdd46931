"""`save_pretrained`: what lies in the folder, and what it leaves alone."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pushed_models import batch, outputs, same_bits, tiny_answerer
from transformers import AutoModel, BertForQuestionAnswering, PreTrainedTokenizerFast

import bert_cluster
from bert_cluster import SaveError, save_pretrained


def test_the_folder_loads_patched_and_plain(
    model: BertForQuestionAnswering, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    saved = save_pretrained(model, tmp_path / "deep" / "answers", tokenizer)
    assert saved.folder == tmp_path / "deep" / "answers"
    assert set(saved.files) == {path.name for path in saved.folder.iterdir()}
    assert same_bits(outputs(bert_cluster.from_pretrained(saved.folder)), outputs(model))
    plain = AutoModel.from_pretrained(saved.folder)
    assert plain.config._attn_implementation == "sdpa"
    assert torch.isfinite(plain(**batch()).last_hidden_state).all()
    assert [path.name for path in saved.folder.parent.iterdir()] == ["answers"]


def test_nothing_foreign_is_in_the_configuration(model: BertForQuestionAnswering, tmp_path: Path) -> None:
    config = json.loads((save_pretrained(model, tmp_path / "answers").folder / "config.json").read_text())
    assert not {"auto_map", "_attn_implementation", "attn_implementation", "_name_or_path"} & set(config)
    assert config["clustered_attention"]["library_version"] == bert_cluster.__version__
    assert config["architectures"] == ["BertForQuestionAnswering"]


def test_defaults_are_written_out(tmp_path: Path) -> None:
    """So that other defaults of a later version do not change what was saved."""
    save_pretrained(tiny_answerer(method="clustered"), tmp_path / "answers")
    config = json.loads((tmp_path / "answers" / "config.json").read_text())
    assert {"clusters": 25, "bits": 63, "iterations": 10}.items() <= config["clustered_attention"].items()


def test_what_is_not_ours_stays_and_old_weights_go(model: BertForQuestionAnswering, tmp_path: Path) -> None:
    (tmp_path / "training_args.txt").write_text("mine")
    (tmp_path / "model-00001-of-00002.safetensors").write_text("old")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    save_pretrained(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "training_args.txt",
    }


def test_saving_again_over_it(model: BertForQuestionAnswering, tmp_path: Path) -> None:
    first = save_pretrained(model, tmp_path / "answers")
    before = {name: (first.folder / name).read_bytes() for name in first.files}
    again = save_pretrained(model, tmp_path / "answers")
    assert {name: (again.folder / name).read_bytes() for name in again.files} == before


def test_results_and_benchmark(results: dict[str, Any], tmp_path: Path) -> None:
    saved = save_pretrained(
        tiny_answerer(method="refined-clustered"), tmp_path, results=results, base_model="a/b", benchmark="c/d:e"
    )
    assert ".eval_results/bert-cluster-c--d--e.yaml" in saved.files
    assert "SQuAD v1.1" in (tmp_path / "README.md").read_text()
    assert "base_model: a/b" in (tmp_path / "README.md").read_text()


def test_results_of_an_earlier_save_do_not_stay(results: dict[str, Any], tmp_path: Path) -> None:
    """They were measured with other settings, or with other weights."""
    written = tmp_path / "output"
    written.mkdir()
    (written / "all_results.json").write_text(json.dumps(results))
    (written / "plot.png").write_bytes(b"picture")
    model = tiny_answerer(method="refined-clustered")
    folder = tmp_path / "answers"
    save_pretrained(model, folder, results=written, benchmark="c/d:e")
    (folder / "mine.png").write_bytes(b"mine")
    (folder / ".eval_results" / "mine.yaml").write_text("[]")
    assert {path.name for path in folder.rglob("*.*")} >= {"bert-cluster-squad.png", "bert-cluster-c--d--e.yaml"}
    save_pretrained(model, folder)
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert left == {"README.md", "config.json", "model.safetensors", "mine.png", "mine.yaml"}


def test_the_model_itself_is_not_changed(model: BertForQuestionAnswering, tmp_path: Path) -> None:
    settings, expected = dict(model.config.clustered_attention), outputs(model)
    save_pretrained(model, tmp_path)
    assert model.config.clustered_attention == settings
    assert same_bits(outputs(model), expected)
    bert_cluster.unpatch(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types(model: BertForQuestionAnswering, tmp_path: Path, dtype: torch.dtype) -> None:
    save_pretrained(model.to(dtype), tmp_path)
    loaded = bert_cluster.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == dtype
    assert same_bits(outputs(loaded), outputs(model))


def test_a_folder_in_the_way_is_told_before_anything_is_moved(model: BertForQuestionAnswering, tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(SaveError, match="config.json is a folder, and a file of this name is to be saved there"):
        save_pretrained(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    (tmp_path / "other" / "README.md").mkdir(parents=True)
    with pytest.raises(SaveError, match="README.md is not UTF-8 text.*Is a directory"):
        save_pretrained(model, tmp_path / "other")


@pytest.mark.parametrize("change", ["removed", "changed"])
def test_what_runs_is_saved_whatever_the_configuration_says(
    model: BertForQuestionAnswering, tmp_path: Path, change: str
) -> None:
    if change == "removed":
        del model.config.clustered_attention
    else:
        model.config.clustered_attention = {"version": 1, "method": "clustered"}
    save_pretrained(model, tmp_path)
    assert same_bits(outputs(bert_cluster.from_pretrained(tmp_path)), outputs(model))


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than tmp_path."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no file system of its own here")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize("there", [True, False], ids=["link to a folder", "link to what is not there yet"])
def test_a_link_to_another_file_system(
    model: BertForQuestionAnswering, tmp_path: Path, other_disk: Path, there: bool
) -> None:
    if there:
        (other_disk / "answers").mkdir()
    (tmp_path / "link").symlink_to(other_disk / "answers")
    saved = save_pretrained(model, tmp_path / "link")
    assert saved.folder == tmp_path / "link" and saved.folder.is_symlink()
    assert {path.name for path in (other_disk / "answers").iterdir()} == set(saved.files)
    assert [path.name for path in other_disk.iterdir()] == ["answers"]
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
    assert "answers" in (other_disk / "answers" / "README.md").read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_whose_parent_cannot_be_written(model: BertForQuestionAnswering, tmp_path: Path) -> None:
    (tmp_path / "parent" / "answers").mkdir(parents=True)
    (tmp_path / "parent").chmod(0o555)
    try:
        saved = save_pretrained(model, tmp_path / "parent" / "answers")
        assert {path.name for path in saved.folder.iterdir()} == set(saved.files)
        with pytest.raises(SaveError, match=f"could not be written into {tmp_path}/parent: .*Permission denied"):
            save_pretrained(model, tmp_path / "parent" / "new" / "answers")
    finally:
        (tmp_path / "parent").chmod(0o755)


@pytest.mark.parametrize("there", [True, False], ids=["a folder", "no folder"])
def test_a_failure_leaves_what_was_there(
    model: BertForQuestionAnswering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    if there:
        (tmp_path / "deep" / "answers").mkdir(parents=True)
        (tmp_path / "deep" / "answers" / "config.json").write_text("before")
    before = sorted(tmp_path.rglob("*"))

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bert_cluster.hub.contents.write_card", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(model, tmp_path / "deep" / "answers")
    assert sorted(tmp_path.rglob("*")) == before
    assert not there or (tmp_path / "deep" / "answers" / "config.json").read_text() == "before"


def test_a_place_that_is_no_folder(model: BertForQuestionAnswering, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SaveError, match=f"{tmp_path}/file is a file. Give a folder."):
        save_pretrained(model, tmp_path / "file" / "answers")
    with pytest.raises(SaveError, match="folder must be a path, got int. Give the folder to save into."):
        save_pretrained(model, 3)  # type: ignore[arg-type]
