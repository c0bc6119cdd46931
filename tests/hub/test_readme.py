"""The six lines of the README: they push and load a model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import Hub
from pushed_models import ROOT, batch
from tiny_tokenizer import SPECIAL, WORDS
from transformers import DistilBertConfig, DistilBertForQuestionAnswering, PreTrainedTokenizerFast

import bert_cluster

pytestmark = pytest.mark.usefixtures("login", "no_waiting")
BASE = "distilbert/distilbert-base-cased-distilled-squad"


def six_lines() -> str:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Push to the Hub, and load from it")[1]
    return section.split("```python\n")[1].split("```")[0]


def upload_base(hub: Hub, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A tiny model under the name of the one in the README."""
    words = len(SPECIAL) + len(WORDS)
    config = DistilBertConfig(
        vocab_size=words, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64
    )
    DistilBertForQuestionAnswering(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = "---\nlicense: apache-2.0\n---\n# DistilBERT\n"
    hub.create(BASE, {**{path.name: path.read_bytes() for path in folder.iterdir()}, "README.md": card})


def test_they_run(
    hub: Hub,
    tokenizer: PreTrainedTokenizerFast,
    results: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = six_lines()
    assert len([line for line in code.splitlines() if line]) == 6
    upload_base(hub, tokenizer, tmp_path / "base")
    results["model"]["model_type"] = "distilbert"
    (tmp_path / "output" / "squad").mkdir(parents=True)
    (tmp_path / "output" / "squad" / "all_results.json").write_text(json.dumps(results))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("your-name", "tester"), names)
    assert bert_cluster.info(names["model"]).layers
    assert torch.isfinite(names["model"](**batch()).start_logits).all()
    card = hub.repos["tester/fast-answers"].files()["README.md"].decode()
    assert f"base_model: {BASE}" in card
    assert "license: apache-2.0" in card
    assert "SQuAD v1.1, 400 examples" in card
