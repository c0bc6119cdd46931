"""Tiny random models, a tokenizer made here, and small data: the commands run whole, without network, in seconds."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tokenizer import SPECIAL, WORDS, tiny_tokenizer
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

CITIES = ("paris", "rome", "london", "oslo")
ANIMALS = ("cat", "dog", "bird", "fox", "mouse")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token per word."""
    return tiny_tokenizer()


def tiny_config(**changes: Any) -> BertConfig:
    values = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 96,
        "initializer_range": 0.4,
    }
    return BertConfig(**{**values, **changes})


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Callable[..., str]:
    """save_model(kind, **config) -> folder of a tiny random model: "qa", "classifier" or "encoder"."""

    def save(kind: str, *, settings: Mapping[str, Any] | None = None, **changes: Any) -> str:
        torch.manual_seed(1)
        config = tiny_config(**changes)
        if settings is not None:
            config.clustered_attention = dict(settings)
        classes = {"qa": BertForQuestionAnswering, "classifier": BertForSequenceClassification, "encoder": BertModel}
        folder = str(tmp_path_factory.mktemp(kind))
        classes[kind](config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def qa_model(save_model: Callable[..., str]) -> str:
    return save_model("qa")


@pytest.fixture(scope="session")
def nli_model(save_model: Callable[..., str]) -> str:
    """Three labels under MNLI's names, in another order than the data set's."""
    return save_model("classifier", id2label={0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"})


@pytest.fixture(scope="session")
def pair_model(save_model: Callable[..., str]) -> str:
    """Two labels without names."""
    return save_model("classifier", num_labels=2)


def context(number: int) -> str:
    city, animal = CITIES[number % 4], ANIMALS[number % 5]
    filler = " ".join("and the old house is near the big tree ." for _ in range(1 + number % 4))
    return f"The {animal} lives in {city} . {filler} The red fox sleeps under the tree ."


def squad_articles(questions: int, *, unanswerable: bool = False, labelled: bool = True) -> dict[str, Any]:
    """SQuAD's nested JSON with one question per paragraph."""
    paragraphs = []
    for number in range(questions):
        text, city = context(number), CITIES[number % 4]
        entry: dict[str, Any] = {"id": f"q{number}", "question": f"Where lives the {ANIMALS[number % 5]} ?"}
        if labelled:
            entry["answers"] = [{"text": city, "answer_start": text.index(city)}]
        if unanswerable and number % 3 == 0:
            entry.update(answers=[], is_impossible=True)
        paragraphs.append({"context": text, "qas": [entry]})
    return {"version": "1.1", "data": [{"title": "Animals", "paragraphs": paragraphs}]}


@pytest.fixture
def squad_file(tmp_path: Path) -> Callable[..., str]:
    """squad_file(questions, **options) -> path of a SQuAD file."""

    def write(questions: int = 12, **options: Any) -> str:
        path = tmp_path / f"squad-{questions}-{'-'.join(options) or 'v1'}.json"
        path.write_text(json.dumps(squad_articles(questions, **options)))
        return str(path)

    return write


@pytest.fixture
def mrpc_file(tmp_path: Path) -> Callable[..., str]:
    """mrpc_file(rows) -> path of a tsv as GLUE distributes MRPC."""

    def write(rows: int = 20) -> str:
        lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        for number in range(rows):
            first = f"the {ANIMALS[number % 5]} lives in {CITIES[number % 4]} . " + "the old tree . " * (number % 6)
            second = f"a {ANIMALS[number % 3]} runs near the {CITIES[number % 4]} river ."
            lines.append(f"{number % 2}\t{number}\t{number + 100}\t{first}\t{second}")
        path = tmp_path / "mrpc.tsv"
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write


@pytest.fixture
def jsonl_file(tmp_path: Path) -> Callable[..., str]:
    """jsonl_file(name, rows) -> path."""

    def write(name: str, rows: list[dict[str, Any]]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def nli_rows() -> list[dict[str, Any]]:
    labels = ("entailment", "neutral", "contradiction")
    return [
        {
            "premise": f"the {ANIMALS[number % 5]} lives in {CITIES[number % 4]} . " + "the old tree . " * (number % 5),
            "hypothesis": f"a {ANIMALS[number % 3]} runs .",
            "label": labels[number % 3],
        }
        for number in range(18)
    ]


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Any:
    """accelerate keeps the launch in a singleton: each test joins anew."""
    from accelerate.state import PartialState

    PartialState._reset_state()
    yield
    PartialState._reset_state()
