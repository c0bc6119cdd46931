"""Packages around transformers models: sentence-transformers and pipelines."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SIZES, WORDS, tiny_bert
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, pipeline

import bert_cluster
from bert_cluster import UnsupportedModelError

TEXTS = ["w5 w6 w7 w8 w9 w10", "w11 w12", "w13 w14 w15 w16"]


def tokenizer(folder: Path) -> BertTokenizer:
    """One that knows the words w5 to w59."""
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(5, WORDS))]
    (folder / "vocab.txt").write_text("\n".join(words))
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


def classifier(labels: int = 2) -> BertForSequenceClassification:
    torch.manual_seed(7)
    return BertForSequenceClassification(BertConfig(**SIZES, num_labels=labels)).eval()


def checkpoint(folder: Path, model: nn.Module) -> str:
    model.save_pretrained(folder)
    tokenizer(folder).save_pretrained(folder)
    return str(folder)


def clustered_calls(model: Any) -> list[int]:
    """Per layer, with no call exact."""
    layers = bert_cluster.info(model).layers
    assert all(layer.calls["exact"] == 0 for layer in layers)
    return [layer.calls["clustered"] + layer.calls["reference"] for layer in layers]


def test_text_classification_pipeline(tmp_path: Path) -> None:
    model = classifier()
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer(tmp_path), device="cpu")
    exact = pipe(TEXTS, batch_size=3)
    bert_cluster.patch(model, topk=14)
    for ours, theirs in zip(pipe(TEXTS, batch_size=3), exact, strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["score"] == pytest.approx(theirs["score"], rel=1e-5)
    assert clustered_calls(model) == [1, 1]
    bert_cluster.unpatch(model)
    assert pipe(TEXTS, batch_size=3) == exact


@pytest.fixture
def sentence_transformers() -> Any:
    return pytest.importorskip("sentence_transformers")


def test_sentence_transformer(sentence_transformers: Any, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "bert", tiny_bert())
    model = sentence_transformers.SentenceTransformer(folder, device="cpu")
    exact = model.encode(TEXTS)
    assert bert_cluster.patch(model, topk=14) is model
    assert model.encode(TEXTS) == pytest.approx(exact, rel=1e-4, abs=1e-5)
    assert clustered_calls(model) == [1, 1]
    bert_cluster.unpatch(model)
    assert (model.encode(TEXTS) == exact).all()


def test_a_saved_sentence_transformer_is_patched_again(sentence_transformers: Any, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "bert", tiny_bert())
    model = sentence_transformers.SentenceTransformer(folder, device="cpu")
    expected = bert_cluster.patch(model, clusters=2, topk=3).encode(TEXTS)
    model.save(str(tmp_path / "saved"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert bert_cluster.info(again).layers == ()
    assert (bert_cluster.patch(again).encode(TEXTS) == expected).all()
    assert bert_cluster.info(again).layers[0].budgets["topk"] == 3


def test_cross_encoder(sentence_transformers: Any, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "bert", classifier(labels=1))
    model = sentence_transformers.CrossEncoder(folder, device="cpu")
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[0], TEXTS[2])]
    exact = model.predict(pairs)
    assert bert_cluster.patch(model, topk=20) is model
    assert model.predict(pairs) == pytest.approx(exact, rel=1e-4, abs=1e-5)
    assert clustered_calls(model) == [1, 1]
    bert_cluster.unpatch(model)
    assert (model.predict(pairs) == exact).all()


def test_patching_imports_none_of_them() -> None:
    program = (
        "import sys; sys.path.insert(0, 'tests/model'); import bert_cluster; from tiny_models import tiny_bert;"
        "bert_cluster.unpatch(bert_cluster.patch(tiny_bert()));"
        "print('peft' in sys.modules, 'sentence_transformers' in sys.modules)"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("bert-base-uncased", "is expected, got str. Load it with AutoModel.from_pretrained first"),
        (nn.Linear(2, 2), "Linear holds 0 transformers models, one is expected"),
        (nn.ModuleList([tiny_bert(), tiny_bert()]), "ModuleList holds 2 transformers models"),
    ],
    ids=["a name", "no model", "two models"],
)
def test_what_is_no_model(model: Any, message: str) -> None:
    for function in (bert_cluster.patch, bert_cluster.unpatch, bert_cluster.info):
        with pytest.raises(UnsupportedModelError, match=message):
            function(model)
