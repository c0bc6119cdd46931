"""Tiny patched models that are pushed, and what they are asked."""

from pathlib import Path
from typing import Any

import torch
from tiny_tokenizer import SPECIAL, WORDS
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

import bert_cluster

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "demo-squad.json"
REPO = "tester/answers"


def tiny_config(**changes: Any) -> BertConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    words = len(SPECIAL) + len(WORDS)
    return BertConfig(
        **{"vocab_size": words, "max_position_embeddings": 64, "initializer_range": 0.4, **sizes, **changes}
    )


def tiny_answerer(**settings: Any) -> BertForQuestionAnswering:
    """A patched model for question answering; by default with so few clusters and keys that its outputs are not exact."""
    torch.manual_seed(3)
    model = BertForQuestionAnswering(tiny_config()).eval()
    return bert_cluster.patch(model, **(settings or {"method": "improved-clustered", "clusters": 3, "topk": 2}))


def tiny_classifier(**settings: Any) -> BertForSequenceClassification:
    """A patched classifier of two labels."""
    torch.manual_seed(3)
    return bert_cluster.patch(BertForSequenceClassification(tiny_config()).eval(), **settings)


def batch() -> dict[str, torch.Tensor]:
    """Two rows of different length."""
    torch.manual_seed(5)
    ids = torch.randint(5, 40, (2, 37))
    mask = torch.ones_like(ids)
    mask[1, 23:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def outputs(model: torch.nn.Module) -> list[torch.Tensor]:
    with torch.inference_mode():
        return list(model(**batch()).to_tuple())


def same_bits(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


# Code for other processes.
ASK = """
import sys
sys.path[:0] = {path!r}
import torch
from pushed_models import batch
import bert_cluster
model = bert_cluster.from_pretrained("{repo}"{options})
with torch.inference_mode():
    torch.save([each.clone() for each in model(**batch()).to_tuple()], "outputs.pt")
print(bert_cluster.info(model))
"""

PUSH = """
import sys
sys.path[:0] = {path!r}
from pushed_models import tiny_answerer
import bert_cluster
print(bert_cluster.push_to_hub(tiny_answerer(), "{repo}"))
"""
