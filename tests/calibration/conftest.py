"""Tiny random models with their tokenizer, texts, and timings in which clustering pays off at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
)

from bert_cluster.calibration import Timings
from bert_cluster.calibration.candidates import name_of, settings_of

WORDS = 60
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
    "initializer_range": 0.2,
    "pad_token_id": 1,
}
# Cheap to dear; the last one is exact for every text here: its top keys are all keys.
CANDIDATES = (
    {"method": "refined-clustered", "clusters": 2, "topk": 2, "key_clusters": 2, "band": 0},
    {"method": "refined-clustered", "clusters": 6, "topk": 24, "key_clusters": 12},
    {"method": "refined-clustered", "clusters": 12, "topk": 40, "key_clusters": 24},
)


@pytest.fixture(scope="session")
def tokenizer() -> BertTokenizer:
    """It knows the words w5 to w59."""
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(5, WORDS))]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """tiny(kind, **config) -> random model: "encoder", "classifier", "qa" or "choice"."""

    def build(kind: str = "encoder", **changes: Any) -> Any:
        torch.manual_seed(7)
        classes = {
            **{"encoder": BertModel, "classifier": BertForSequenceClassification, "qa": BertForQuestionAnswering},
            "choice": BertForMultipleChoice,
        }
        return classes[kind](BertConfig(**{**SIZES, **changes})).eval()

    return build


def text(words: int, seed: int) -> str:
    numbers = torch.randint(5, WORDS, (words,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{number}" for number in numbers.tolist())


@pytest.fixture
def texts() -> list[str]:
    """Twelve, of 40 to 70 words."""
    return [text(40 + 30 * number // 11, number) for number in range(12)]


@pytest.fixture
def fast() -> Callable[..., Timings]:
    """fast(candidates, exact) -> timings by formula: full n^2, exact path `exact` n^2, candidate j (j + 1) n."""

    def build(candidates: Sequence[Mapping[str, Any]] | None = CANDIDATES, exact: float = 0.9) -> Timings:
        seconds = {
            "full": {n: 1e-6 * n * n for n in (2, 16, 80)},
            "exact": {n: exact * 1e-6 * n * n for n in (2, 16, 80)},
        }
        for place, settings in enumerate(settings_of(candidates)):
            seconds[name_of(settings)] = {n: 1e-6 * (place + 1) * n for n in (2, 16, 80)}
        return Timings(seconds, {"made": "by formula"})

    return build


@pytest.fixture
def candidates() -> tuple[Mapping[str, Any], ...]:
    return CANDIDATES


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each forward pass of a BertModel."""
    counted: list[int] = []
    original = BertModel.forward

    def forward(self: BertModel, *arguments: Any, **options: Any) -> Any:
        counted.append(1)
        return original(self, *arguments, **options)

    monkeypatch.setattr(BertModel, "forward", forward)
    return counted
