"""From start and end logits to answers: the best spans of all windows of a question, and the choice to give none.

The rules are those of transformers' run_qa (utils_qa.py). Where its code falls short this differs, see
`choose_answers`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from squad_eval.data import Example
from squad_eval.windows import Window


@dataclass(frozen=True)
class Answers:
    """Answers of one method to all questions, by the question's id.

    Attributes:
        texts: the chosen answer, "" for none (eval_predictions.json).
        nbest: the best candidates with text, probability, start_logit and end_logit, best first
            (eval_nbest_predictions.json). A question whose windows hold no token of its context has no candidates, or
            only the empty one.
        null_odds: score of "no answer" minus that of the best answer, None without version_2_with_negative
            (eval_null_odds.json).
        not_finite: number of windows left out because a logit is NaN or infinite.
    """

    texts: dict[str, str]
    nbest: dict[str, list[dict[str, Any]]]
    null_odds: dict[str, float] | None
    not_finite: int


@dataclass(frozen=True)
class _Candidate:
    """A span of characters with its two logits; (0, 0) is "no answer"."""

    span: tuple[int, int]
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


def choose_answers(
    examples: Sequence[Example],
    windows: Sequence[Window],
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    *,
    n_best_size: int = 20,
    max_answer_length: int = 30,
    version_2_with_negative: bool = False,
    null_score_diff_threshold: float = 0.0,
) -> Answers:
    """Choose an answer for every question.

    A candidate is a span of the context of at most `max_answer_length` tokens; its score is the start logit of its
    first token plus the end logit of its last. The score of "no answer" is that of the CLS token in the window where it
    is lowest. With `version_2_with_negative` the answer is empty if that score is more than `null_score_diff_threshold`
    above the best span's.

    Different from run_qa: all spans are candidates, not only those of the n best starts with the n best ends, which may
        leave none;
    a span in two windows counts once; where there is no candidate the answer is "", not the word "empty"; without any
    span a v2 question gets "" (run_qa raises IndexError) and null odds of +inf; equal scores go to the first window and
    token.

    Args:
        start_logits, end_logits: of each window, (N,), padding removed, any float type.
        n_best_size: candidates kept for a question.

    Raises:
        ValueError: windows and logits do not fit together.
    """
    _check(windows, start_logits, end_logits)
    texts: dict[str, str] = {}
    nbest: dict[str, list[dict[str, Any]]] = {}
    null_odds: dict[str, float] = {}
    not_finite = 0
    by_example: dict[int, list[int]] = {}
    for number, window in enumerate(windows):
        by_example.setdefault(window.example, []).append(number)
    for index, example in enumerate(examples):
        spans: dict[tuple[int, int], _Candidate] = {}
        null: _Candidate | None = None
        for number in by_example.get(index, []):
            start, end = (np.asarray(side[number], dtype=np.float64) for side in (start_logits, end_logits))
            if not (np.isfinite(start).all() and np.isfinite(end).all()):
                not_finite += 1
                continue
            position = windows[number].null_position
            here = _Candidate((0, 0), float(start[position]), float(end[position]))
            null = here if null is None or here.score < null.score else null
            for candidate in best_spans(windows[number].offsets, start, end, n_best_size, max_answer_length):
                known = spans.get(candidate.span)
                if known is None or candidate.score > known.score:
                    spans[candidate.span] = candidate
        ranked = sorted(spans.values(), key=lambda candidate: -candidate.score)[:n_best_size]
        texts[example.id] = _text(example, ranked[0]) if ranked else ""
        if version_2_with_negative:
            odds = null.score - ranked[0].score if null and ranked else math.inf
            null_odds[example.id] = odds
            if odds > null_score_diff_threshold:
                texts[example.id] = ""
            ranked = _with_null(ranked, null, n_best_size)
        nbest[example.id] = _described(example, ranked)
    return Answers(texts, nbest, null_odds if version_2_with_negative else None, not_finite)


def best_spans(
    offsets: np.ndarray, start_logits: np.ndarray, end_logits: np.ndarray, count: int, max_length: int
) -> Iterator[_Candidate]:
    """The `count` best spans of a window, best first; equal scores by first, then by last token.

    Args:
        offsets: (N, 2) as in `Window`.
        start_logits, end_logits: (N,) float64, finite.
        max_length: most tokens in a span.
    """
    inside = offsets[:, 0] >= 0
    length = min(max_length, len(offsets))
    ends = np.pad(np.where(inside, end_logits, -np.inf), (0, length), constant_values=-np.inf)
    scores = (
        np.where(inside, start_logits, -np.inf)[:, None] + np.lib.stride_tricks.sliding_window_view(ends, length)[:-1]
    )
    flat = scores.ravel()
    count = min(count, int(np.isfinite(flat).sum()))
    if not count:
        return
    least = np.partition(flat, flat.size - count)[flat.size - count]
    chosen = np.flatnonzero(flat >= least)
    for place in chosen[np.argsort(-flat[chosen], kind="stable")][:count].tolist():
        first, more = divmod(place, length)
        span = (int(offsets[first, 0]), int(offsets[first + more, 1]))
        yield _Candidate(span, float(start_logits[first]), float(end_logits[first + more]))


def _with_null(ranked: list[_Candidate], null: _Candidate | None, count: int) -> list[_Candidate]:
    """The candidates and "no answer" in order; it stays on the list also where it is not among the best."""
    if null is None:
        return ranked
    together = sorted([*ranked, null], key=lambda candidate: -candidate.score)
    return together[:count] if null in together[:count] else [*together[: count - 1], null]


def _text(example: Example, candidate: _Candidate) -> str:
    first, last = candidate.span
    return example.context[first:last]


def _described(example: Example, ranked: Sequence[_Candidate]) -> list[dict[str, Any]]:
    """Candidates as in eval_nbest_predictions.json; probabilities are the softmax of the scores listed."""
    if not ranked:
        return []
    scores = np.array([candidate.score for candidate in ranked])
    weights = np.exp(scores - scores.max())
    return [
        {
            "text": _text(example, candidate),
            "probability": float(weight),
            "start_logit": candidate.start_logit,
            "end_logit": candidate.end_logit,
        }
        for candidate, weight in zip(ranked, weights / weights.sum(), strict=True)
    ]


def _check(windows: Sequence[Window], start_logits: Sequence[np.ndarray], end_logits: Sequence[np.ndarray]) -> None:
    if not len(windows) == len(start_logits) == len(end_logits):
        raise ValueError(
            f"There are {len(windows)} windows, {len(start_logits)} start and {len(end_logits)} end logits; "
            "expected one each."
        )
    for number, window in enumerate(windows):
        for side in (start_logits, end_logits):
            if np.shape(side[number]) != (len(window),):
                raise ValueError(
                    f"Window {number} has {len(window)} tokens, its logits have the shape "
                    f"{np.shape(side[number])}. Remove the padding."
                )
