"""The batches that every method runs over: sorted by length, padded to their own longest input, cut into chunks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Input = Mapping[str, Sequence[int]]

CHUNK_TOKENS = 2**16  # padded tokens per process and chunk: about half a minute of MiniLM on two cores


@dataclass(frozen=True)
class Batch:
    """Inputs that run together: their part and indices within it, and the length that they are padded to."""

    part: int
    indices: tuple[int, ...]
    tokens: int
    length: int

    @property
    def padded_tokens(self) -> int:
        """Tokens that the model sees, padding included."""
        return len(self.indices) * self.length


@dataclass(frozen=True)
class Plan:
    """All batches in the order in which they run, grouped in chunks. A chunk is stored whole and lies in one part."""

    chunks: tuple[tuple[Batch, ...], ...]

    @property
    def batches(self) -> tuple[Batch, ...]:
        """All batches, in order."""
        return tuple(batch for chunk in self.chunks for batch in chunk)

    @property
    def tokens(self) -> int:
        """Valid tokens of all inputs."""
        return sum(batch.tokens for batch in self.batches)

    @property
    def padded_tokens(self) -> int:
        """Tokens that the model sees, padding included."""
        return sum(batch.padded_tokens for batch in self.batches)

    @property
    def padded_share(self) -> float:
        """Share of the tokens the model sees that are padding, 0 to 1."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0


def plan_batches(
    lengths: Sequence[Sequence[int]], batch_size: int, *, pad_to: int | None = None, chunk_tokens: int = CHUNK_TOKENS
) -> Plan:
    """Cut every part into batches of similar length, the longest first (a lack of memory shows at once).

    Args:
        lengths: valid tokens of each input, part by part (MNLI has two parts, everything else one).
        batch_size: inputs per batch; a part's last batch may be smaller.
        pad_to: pad every batch to this length instead of its own longest input.
        chunk_tokens: close a chunk when it holds this many padded tokens.
    """
    chunks: list[tuple[Batch, ...]] = []
    for part, part_lengths in enumerate(lengths):
        order = sorted(range(len(part_lengths)), key=lambda index: (-part_lengths[index], index))
        chunk: list[Batch] = []
        for start in range(0, len(order), batch_size):
            indices = tuple(order[start : start + batch_size])
            longest = part_lengths[indices[0]]
            tokens = sum(part_lengths[index] for index in indices)
            chunk.append(Batch(part, indices, tokens, max(longest, pad_to or 0)))
            if sum(batch.padded_tokens for batch in chunk) >= chunk_tokens:
                chunks.append(tuple(chunk))
                chunk = []
        if chunk:
            chunks.append(tuple(chunk))
    return Plan(tuple(chunks))


class Collator:
    """Pads the inputs of a batch on the tokenizer's side and makes tensors of them.

    Args:
        tokenizer: a transformers tokenizer.
        parts: model inputs (`input_ids`, `attention_mask`, ...) of each part, unpadded.
    """

    def __init__(self, tokenizer: Any, parts: Sequence[Sequence[Input]]):
        self._tokenizer = tokenizer
        self._parts = parts

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Model inputs of the batch, each (B, N) int64, with an `attention_mask`."""
        inputs = [self._parts[batch.part][index] for index in batch.indices]
        padded: dict[str, torch.Tensor] = {}
        for name in inputs[0]:
            padded[name] = self._pad([list(one[name]) for one in inputs], self._padding_value(name), batch.length)
        if "attention_mask" not in padded:
            ones = [[1] * len(one["input_ids"]) for one in inputs]
            padded["attention_mask"] = self._pad(ones, 0, batch.length)
        return padded

    def _padding_value(self, name: str) -> int:
        if name == "input_ids":
            return int(self._tokenizer.pad_token_id or 0)
        return int(self._tokenizer.pad_token_type_id) if name == "token_type_ids" else 0

    def _pad(self, rows: list[list[int]], value: int, length: int) -> torch.Tensor:
        left = self._tokenizer.padding_side == "left"
        fill = [[value] * (length - len(row)) for row in rows]
        return torch.tensor([more + row if left else row + more for row, more in zip(rows, fill, strict=True)])
