"""Question and context as overlapping windows of tokens, each token with its place in the context."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_cluster.errors import BertClusterError
from bert_cluster.tokenizing import unchanged
from squad_eval.data import Example

CHUNK = 256
"""Questions tokenised in one call."""


class WindowError(BertClusterError, ValueError):
    """Question and context do not fit into windows of the size that was asked for."""


@dataclass(frozen=True)
class Window:
    """One window of N tokens.

    Attributes:
        example: index of its question.
        inputs: the model's inputs without padding: input_ids, attention_mask, and token_type_ids where the tokenizer
            has them.
        offsets: (N, 2) int32, first character of each token in the context and the one after its last; (-1, -1) for
            tokens that can neither start nor end an answer: question, special tokens, tokens of no characters.
        null_position: the CLS token, whose logits stand for "no answer"; 0 where the tokenizer has none.
    """

    example: int
    inputs: dict[str, list[int]]
    offsets: np.ndarray
    null_position: int

    def __len__(self) -> int:
        return len(self.offsets)


def make_windows(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    max_windows: int | None = None,
) -> list[Window]:
    """Windows of all questions, in their order: the whole question, and as much of the context as fits; the next window
    repeats `doc_stride` tokens of the context. The question comes first, and last for a tokenizer that pads on the
    left, as in run_qa.

    Args:
        tokenizer: a fast tokenizer (one that knows offsets).
        max_seq_length: most tokens in a window, special tokens included.
        doc_stride: tokens of the context that neighbouring windows share.
        max_windows: keep only the first windows of each question; 1 truncates the context, and then doc_stride does not
            matter.

    Raises:
        WindowError: the tokenizer has no offsets; a question leaves no room for the context or less than doc_stride
            needs.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise WindowError(
            f"The tokenizer {type(tokenizer).__name__} does not tell where its tokens stand in the text. Use a "
            "checkpoint with a fast tokenizer (tokenizer.json)."
        )
    if max_windows is not None and max_windows < 1:
        raise WindowError(f"max_windows must be at least 1, or None for all windows, got {max_windows}.")
    stride = 0 if max_windows == 1 else doc_stride
    windows: list[Window] = []
    with unchanged(tokenizer):
        for first in range(0, len(examples), CHUNK):
            chunk = examples[first : first + CHUNK]
            questions = [example.question.lstrip() for example in chunk]
            _check_room(chunk, questions, tokenizer, max_seq_length, stride)
            # the tokenizer refuses a larger stride even where nothing is cut; where something is, it was checked
            possible = min(stride, max_seq_length - tokenizer.num_special_tokens_to_add(pair=True) - 1)
            kept = _tokenise(chunk, questions, tokenizer, max_seq_length, possible, max_windows)
            windows += [_window(first, tokenizer, *one) for one in kept]
    return windows


def _check_room(
    chunk: Sequence[Example], questions: list[str], tokenizer: Any, max_seq_length: int, doc_stride: int
) -> None:
    """The tokenizer itself aborts in Rust where a window cannot move on."""
    special = tokenizer.num_special_tokens_to_add(pair=True)
    lengths = [len(ids) for ids in _ids(tokenizer, questions)]
    narrow = [index for index, length in enumerate(lengths) if max_seq_length - special - length <= doc_stride]
    if not narrow:
        return
    contexts = _ids(tokenizer, [chunk[index].context for index in narrow])
    for index, context in zip(narrow, contexts, strict=True):
        room = max_seq_length - special - lengths[index]
        if len(context) > room or room < 1:
            advice = "Raise --max_seq_length or lower --doc_stride." if room > 0 else "Raise --max_seq_length."
            raise WindowError(
                f"The question {chunk[index].id!r} has {lengths[index]} tokens: of the {max_seq_length} in a window, "
                f"{max(room, 0)} are left for the context, and neighbouring windows share {doc_stride}. {advice}"
            )


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return list(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])


def _tokenise(
    chunk: Sequence[Example],
    questions: list[str],
    tokenizer: Any,
    max_seq_length: int,
    doc_stride: int,
    max_windows: int | None,
) -> list[tuple[int, dict[str, list[int]], list[tuple[int, int]], list[int | None]]]:
    """(index in the chunk, model inputs, offsets, sequence ids; 1 is the context) of every window that is kept."""
    question_first = tokenizer.padding_side == "right"
    contexts = [example.context for example in chunk]
    encoded = tokenizer(
        *((questions, contexts) if question_first else (contexts, questions)),
        truncation="only_second" if question_first else "only_first",
        max_length=max_seq_length,
        stride=doc_stride,
        padding=False,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    sources = encoded.pop("overflow_to_sample_mapping")
    offsets = encoded.pop("offset_mapping")
    inputs = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    windows, seen = [], dict.fromkeys(range(len(chunk)), 0)
    for number, source in enumerate(sources):
        seen[source] += 1
        if max_windows is None or seen[source] <= max_windows:
            sides = [side if side is None or question_first else 1 - side for side in encoded.sequence_ids(number)]
            windows.append((source, inputs[number], offsets[number], sides))
    return windows


def _window(
    first: int,
    tokenizer: Any,
    source: int,
    inputs: dict[str, list[int]],
    offsets: list[tuple[int, int]],
    sides: list[int | None],
) -> Window:
    spans = np.array(offsets, dtype=np.int32).reshape(-1, 2)
    outside = np.array([side != 1 for side in sides]) | (spans[:, 0] == spans[:, 1])
    spans[outside] = -1
    cls = tokenizer.cls_token_id
    null_position = inputs["input_ids"].index(cls) if cls in inputs["input_ids"] else 0
    return Window(first + source, inputs, spans, null_position)
