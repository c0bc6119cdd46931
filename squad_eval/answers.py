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
        spans: the text of the best span, also where "no answer" was chosen; "" where there is no span.
        nbest: the best candidates with text, probability, start_logit and end_logit, best first
            (eval_nbest_predictions.json). A question whose windows hold no token of its context has no candidates, or
            only the empty one.
        null_odds: score of "no answer" minus that of the best answer, None without version_2_with_negative
            (eval_null_odds.json).
        not_finite: number of windows left out because a logit is NaN or infinite.
    """

    texts: dict[str, str]
    spans: dict[str, str]
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


_Scored = tuple[Window, np.ndarray, np.ndarray]
"""A window with its start and end logits, float64, finite."""


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

    Different from run_qa: all spans are candidates (not only those of the n best starts with the n best ends, which may
    leave none), a span in two windows counts once, and equal scores go to the first window and token. Where there is no
    candidate the answer is "", not the word "empty"; a v2 question without any span gets "" and null odds of +inf
    (run_qa raises IndexError).

    Args:
        start_logits, end_logits: of each window, (N,), padding removed, any float type.
        n_best_size: candidates kept for a question.

    Raises:
        ValueError: windows and logits do not fit together.
    """
    _check(windows, start_logits, end_logits)
    scored, not_finite = _by_example(windows, start_logits, end_logits)
    texts: dict[str, str] = {}
    spans: dict[str, str] = {}
    nbest: dict[str, list[dict[str, Any]]] = {}
    null_odds: dict[str, float] = {}
    for index, example in enumerate(examples):
        own = scored.get(index, [])
        ranked = _ranked(own, n_best_size, max_answer_length)
        texts[example.id] = spans[example.id] = _text(example, ranked[0]) if ranked else ""
        if version_2_with_negative:
            null = _least_null(own)
            null_odds[example.id] = null.score - ranked[0].score if null and ranked else math.inf
            if null_odds[example.id] > null_score_diff_threshold:
                texts[example.id] = ""
            ranked = _with_null(ranked, null, n_best_size)
        nbest[example.id] = _described(example, ranked)
    return Answers(texts, spans, nbest, null_odds if version_2_with_negative else None, not_finite)


def _by_example(
    windows: Sequence[Window], start_logits: Sequence[np.ndarray], end_logits: Sequence[np.ndarray]
) -> tuple[dict[int, list[_Scored]], int]:
    """The windows of each question, and how many were left out for logits that are not finite."""
    scored: dict[int, list[_Scored]] = {}
    not_finite = 0
    for window, *logits in zip(windows, start_logits, end_logits, strict=True):
        start, end = (np.asarray(side, dtype=np.float64) for side in logits)
        if np.isfinite(start).all() and np.isfinite(end).all():
            scored.setdefault(window.example, []).append((window, start, end))
        else:
            not_finite += 1
    return scored, not_finite


def _ranked(own: Sequence[_Scored], count: int, max_length: int) -> list[_Candidate]:
    """The best spans of all windows of one question, best first."""
    spans: dict[tuple[int, int], _Candidate] = {}
    for window, start, end in own:
        for candidate in best_spans(window.offsets, start, end, count, max_length):
            known = spans.get(candidate.span)
            if known is None or candidate.score > known.score:
                spans[candidate.span] = candidate
    return sorted(spans.values(), key=lambda candidate: -candidate.score)[:count]


def _least_null(own: Sequence[_Scored]) -> _Candidate | None:
    """The candidate "no answer", from the window where its score is lowest."""
    nulls = [
        _Candidate((0, 0), float(start[window.null_position]), float(end[window.null_position]))
        for window, start, end in own
    ]
    return min(nulls, key=lambda candidate: candidate.score, default=None)


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
    return together[:count] if null in together[:count] else [*together[:count], null]


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
