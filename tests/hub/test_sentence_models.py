"""SentenceTransformers and CrossEncoders: saved, pushed and loaded as what they are, modules and card included."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback import Hub
from pushed_models import REPO, tiny_config
from tiny_tokenizer import tiny_tokenizer
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel

import bert_cluster
from bert_cluster import LoadError, SaveError, from_pretrained, push_to_hub, save_pretrained

sentence_transformers = pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.usefixtures("login", "no_waiting")

TEXTS = ["the old house is near the river .", "a small red fox sleeps", "paris and rome , london and oslo ."]
PAIRS = [(TEXTS[0], TEXTS[1]), (TEXTS[0], TEXTS[2])]
SETTINGS: dict[str, Any] = {"method": "improved-clustered", "clusters": 2, "topk": 1}


def checkpoint(folder: Path, model: Any) -> str:
    model.eval().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def sentence_model(folder: Path) -> Any:
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(3)
    encoder = modules.Transformer(checkpoint(folder, BertModel(tiny_config())))
    pooling = modules.Pooling(encoder.get_embedding_dimension(), pooling_mode="max")
    model = sentence_transformers.SentenceTransformer(
        modules=[encoder, pooling, modules.Dense(32, 7), modules.Normalize()],
        device="cpu",
        prompts={"query": "what is "},
    )
    return bert_cluster.patch(model, **SETTINGS)


def cross_encoder(folder: Path) -> Any:
    torch.manual_seed(3)
    model = BertForSequenceClassification(tiny_config(num_labels=1))
    return bert_cluster.patch(sentence_transformers.CrossEncoder(checkpoint(folder, model), device="cpu"), **SETTINGS)


def test_a_sentence_transformer_comes_back_patched_and_whole(hub: Hub, tmp_path: Path) -> None:
    model = sentence_model(tmp_path / "base")
    expected = model.encode(TEXTS)
    push_to_hub(model, REPO)
    assert len(hub.requests("POST", "/commit/")) == 1
    files = hub.repos[REPO].files()
    assert {"modules.json", "config_sentence_transformers.json", "tokenizer.json", "2_Dense/model.safetensors"} <= set(
        files
    )
    card = files["README.md"].decode()
    assert "library_name: sentence-transformers" in card and "pipeline_tag: sentence-similarity" in card
    assert str(tmp_path) not in card
    loaded = from_pretrained(REPO, device="cpu")
    assert type(loaded).__name__ == "SentenceTransformer"
    assert [type(module).__name__ for module in loaded] == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert loaded.prompts["query"] == "what is "
    assert np.array_equal(loaded.encode(TEXTS), expected)
    assert len(bert_cluster.info(loaded).layers) == 3


def test_a_plain_sentence_transformer_is_exact(hub: Hub, tmp_path: Path) -> None:
    model = sentence_model(tmp_path / "base")
    clustered = model.encode(TEXTS)
    push_to_hub(model, REPO)
    plain = sentence_transformers.SentenceTransformer(REPO, device="cpu").encode(TEXTS)
    exact = bert_cluster.unpatch(model).encode(TEXTS)
    assert plain == pytest.approx(exact, abs=1e-6)
    assert not np.allclose(clustered, exact, atol=1e-4), "the settings must matter for this test to mean anything"


def test_a_cross_encoder(hub: Hub, tmp_path: Path) -> None:
    model = cross_encoder(tmp_path / "base")
    expected = model.predict(PAIRS)
    push_to_hub(model, REPO)
    card = hub.repos[REPO].files()["README.md"].decode()
    assert "pipeline_tag: text-ranking" in card
    loaded = from_pretrained(REPO, device="cpu")
    assert type(loaded).__name__ == "CrossEncoder"
    assert np.array_equal(loaded.predict(PAIRS), expected)
    assert np.array_equal(from_pretrained(REPO, task="text-ranking", device="cpu").predict(PAIRS), expected)
    plain = sentence_transformers.CrossEncoder(REPO, device="cpu").predict(PAIRS)
    assert plain == pytest.approx(bert_cluster.unpatch(model).predict(PAIRS), abs=1e-6)


@pytest.mark.parametrize("make", [sentence_model, cross_encoder])
def test_the_code_on_the_card_runs(hub: Hub, tmp_path: Path, make: Any) -> None:
    push_to_hub(make(tmp_path / "base"), REPO)
    card = hub.repos[REPO].files()["README.md"].decode()
    clustered, exact = (part.split("```")[0] for part in card.split("```python\n")[1:])
    for code, patched in ((clustered, True), (exact, False)):
        names: dict[str, Any] = {}
        exec(code, names)
        assert bool(bert_cluster.info(names["model"]).layers) is patched


def test_the_encoder_alone(hub: Hub, tmp_path: Path) -> None:
    push_to_hub(sentence_model(tmp_path / "base"), REPO)
    assert type(from_pretrained(REPO, task="feature-extraction")) is BertModel


def test_its_own_card_is_kept(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    bert_cluster.unpatch(sentence_model(tmp_path / "base")).save_pretrained(str(folder))
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# Our sentences\n\nTrained with care.\n")
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    push_to_hub(bert_cluster.patch(model, **SETTINGS), REPO)
    card = hub.repos[REPO].files()["README.md"].decode()
    assert card.startswith("---\nlicense: mit\nlanguage: en\nlibrary_name: sentence-transformers\n")
    assert "# Our sentences\n\nTrained with care.\n\n<!-- bert-cluster:begin -->" in card


def test_a_base_model_on_its_card_that_is_a_folder_here_is_left_out(hub: Hub, tmp_path: Path) -> None:
    """As sentence-transformers writes it after training on a folder."""
    folder = tmp_path / "theirs"
    bert_cluster.unpatch(sentence_model(tmp_path / "base")).save_pretrained(str(folder))
    (folder / "README.md").write_text(f"---\nbase_model: {tmp_path}/base\ntags:\n- a\n---\n# Ours\n")
    model = bert_cluster.patch(sentence_transformers.SentenceTransformer(str(folder), device="cpu"), **SETTINGS)
    pushed = push_to_hub(model, REPO)
    assert "base_model" not in hub.repos[REPO].files()["README.md"].decode()
    assert any("names no base_model" in note for note in pushed.notes)


def test_a_folder_of_one_can_be_pushed_by_command(hub: Hub, tmp_path: Path) -> None:
    from bert_cluster.cli import main

    model = sentence_model(tmp_path / "base")
    save_pretrained(model, tmp_path / "saved")
    assert main(["push", str(tmp_path / "saved"), REPO]) == 0
    assert np.array_equal(from_pretrained(REPO, device="cpu").encode(TEXTS), model.encode(TEXTS))


def test_arguments_reach_the_encoder(tmp_path: Path) -> None:
    save_pretrained(sentence_model(tmp_path / "base"), tmp_path / "saved")
    loaded = from_pretrained(tmp_path / "saved", dtype=torch.bfloat16, device="cpu", local_files_only=True)
    assert loaded[0].auto_model.dtype == torch.bfloat16


def test_it_carries_its_tokenizer(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(
        SaveError, match="A SentenceTransformer carries its tokenizer and saves it. Leave tokenizer out"
    ):
        push_to_hub(sentence_model(tmp_path / "base"), REPO, tiny_tokenizer())


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pretrained(sentence_model(tmp_path / "base"), tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        LoadError, match="is a SentenceTransformer, and sentence-transformers is not installed: pip install"
    ):
        from_pretrained(tmp_path / "saved")
    assert type(from_pretrained(tmp_path / "saved", task="feature-extraction")) is BertModel


def test_saved_settings_are_signed(tmp_path: Path) -> None:
    save_pretrained(sentence_model(tmp_path / "base"), tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["clustered_attention"]["library_version"] == bert_cluster.__version__


def test_a_cross_encoder_with_several_labels_classifies(hub: Hub, tmp_path: Path) -> None:
    model = BertForSequenceClassification(tiny_config(num_labels=3))
    encoder = sentence_transformers.CrossEncoder(checkpoint(tmp_path / "base", model), device="cpu")
    push_to_hub(bert_cluster.patch(encoder, **SETTINGS), REPO)
    assert "pipeline_tag: text-classification" in hub.repos[REPO].files()["README.md"].decode()
    assert np.array_equal(from_pretrained(REPO, device="cpu").predict(PAIRS), encoder.predict(PAIRS))


def test_a_sparse_encoder(hub: Hub, tmp_path: Path) -> None:
    from sentence_transformers.sparse_encoder import modules

    torch.manual_seed(3)
    transformer = modules.MLMTransformer(checkpoint(tmp_path / "base", BertForMaskedLM(tiny_config())))
    model = sentence_transformers.SparseEncoder(modules=[transformer, modules.SpladePooling()], device="cpu")
    push_to_hub(bert_cluster.patch(model, **SETTINGS), REPO)
    loaded = from_pretrained(REPO, device="cpu")
    assert type(loaded).__name__ == "SparseEncoder"
    assert torch.equal(loaded.encode(TEXTS).to_dense(), model.encode(TEXTS).to_dense())


def test_a_model_whose_encoder_is_not_at_the_root_is_refused(hub: Hub, tmp_path: Path) -> None:
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer import modules

    encoder = modules.Transformer(checkpoint(tmp_path / "base", BertModel(tiny_config())))
    words = modules.StaticEmbedding(tiny_tokenizer(), embedding_dim=32)
    router = Router.for_query_document([words], [encoder, modules.Pooling(32)])
    model = bert_cluster.patch(sentence_transformers.SentenceTransformer(modules=[router], device="cpu"), **SETTINGS)
    with pytest.raises(SaveError, match="keeps its transformers model in a folder of its own"):
        push_to_hub(model, REPO)
    assert hub.log == []


def test_arguments_of_the_class_reach_it(tmp_path: Path) -> None:
    save_pretrained(sentence_model(tmp_path / "base"), tmp_path / "saved")
    loaded = from_pretrained(tmp_path / "saved", device="cpu", truncate_dim=5, prompts={"query": "where is "})
    assert loaded.encode(TEXTS).shape == (3, 5)
    assert loaded.prompts["query"] == "where is "
