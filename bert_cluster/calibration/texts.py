"""The user's texts as batches that stay the same for every setting compared."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from bert_cluster.errors import CalibrationError
from bert_cluster.tokenizing import unchanged

Text = str | tuple[str, str]

TOKENS_PER_BATCH = 4096  # padded tokens; part of what the stored errors depend on


@dataclass(frozen=True)
class Batch:
    """Some texts as the model reads them.

    Attributes:
        inputs: input_ids, attention_mask and what else the tokenizer gives, each (B, N).
        lengths: valid tokens of each row.
    """

    inputs: dict[str, Tensor]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """The calibration texts or the held-out ones."""

    name: str
    batches: tuple[Batch, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Valid tokens of each text, in the order of the batches."""
        return tuple(length for batch in self.batches for length in batch.lengths)


def listed(texts: Iterable[Text]) -> list[Text]:
    """The texts of a list, a generator or the like.

    Raises:
        CalibrationError: one text, no texts, or something else.
    """
    if isinstance(texts, str):
        raise CalibrationError("texts must be a list of texts, got one text. Write [text].")
    if not isinstance(texts, Iterable):
        raise CalibrationError(f"texts must be a list of texts, got {type(texts).__name__}.")
    several = list(texts)
    if not several:
        raise CalibrationError(
            "There are no texts. Give some of those that the model will read; 32 or more are a good start."
        )
    return several


def encode(tokenizer: Any, texts: Sequence[Text], max_tokens: int) -> list[dict[str, list[int]]]:
    """The tokens of each text, cut to max_tokens. Texts without any token are left out.

    Raises:
        CalibrationError: something that is neither a text nor a pair of them, or no tokens at all.
    """
    encoded = []
    with unchanged(tokenizer):
        for number, text in enumerate(texts):
            pair = (text,) if isinstance(text, str) else tuple(text) if isinstance(text, tuple | list) else ()
            if len(pair) not in (1, 2) or not all(isinstance(part, str) for part in pair):
                raise CalibrationError(
                    f"texts[{number}] must be a text or a pair of texts, got {type(text).__name__}: {text!r:.80}."
                )
            tokens = tokenizer(*pair, truncation=True, max_length=max_tokens, return_attention_mask=True)
            if len(tokens["input_ids"]):
                encoded.append({name: list(values) for name, values in tokens.items()})
    if not encoded:
        raise CalibrationError("The tokenizer finds no token in any of the texts. Give texts that are not empty.")
    return encoded


def split(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the calibration texts and of the held-out ones: every third of a seeded permutation, one of two."""
    order = [int(index) for index in numpy.random.RandomState(seed).permutation(count)]
    held_out = order[1:] if count == 2 else order[2::3]
    return sorted(set(order) - set(held_out)), sorted(held_out)


def part_of(name: str, encoded: Sequence[dict[str, list[int]]], tokenizer: Any, device: torch.device) -> Part:
    """Texts in batches of similar lengths, the longest first, at most TOKENS_PER_BATCH padded tokens each."""
    ordered = sorted(encoded, key=lambda tokens: -len(tokens["input_ids"]))
    batches: list[Batch] = []
    while ordered:
        rows = max(1, TOKENS_PER_BATCH // len(ordered[0]["input_ids"]))
        taken, ordered = ordered[:rows], ordered[rows:]
        batches.append(_batch(taken, tokenizer, device))
    return Part(name, tuple(batches))


def _batch(rows: list[dict[str, list[int]]], tokenizer: Any, device: torch.device) -> Batch:
    if tokenizer.pad_token_id is None and len({len(row["input_ids"]) for row in rows}) > 1:
        raise CalibrationError(
            "The tokenizer has no padding token, and the texts differ in length. Set tokenizer.pad_token."
        )
    if tokenizer.pad_token_id is None:
        inputs = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    else:
        inputs = dict(tokenizer.pad(rows, return_tensors="pt"))
    lengths = tuple(int(length) for length in inputs["attention_mask"].sum(dim=1))
    return Batch({name: values.to(device) for name, values in inputs.items()}, lengths)
