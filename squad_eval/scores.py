"""Exact match and F1 by the rules of the official SQuAD scripts (evaluate-v1.1.py, evaluate-v2.0.py), in plain
Python."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from squad_eval.data import Example

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, then ASCII punctuation removed, then the words a, an, the, then runs of white space made one
    blank."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 if both are the same after `normalise`, else 0."""
    return float(normalise(prediction) == normalise(answer))


def word_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the words after `normalise`, repeated words counted as often as they
    occur on both sides; 0 without common words."""
    predicted, expected = normalise(prediction).split(), normalise(answer).split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0


def example_scores(
    examples: Sequence[Example], texts: Mapping[str, str], version_2_with_negative: bool = False
) -> np.ndarray:
    """Exact match and F1 of every question, (n, 2) float64, 0 to 1: the best over its right answers.

    In v2.0 an answer that is empty after `normalise` does not count, a question without answers wants the empty text,
    and the F1 of two empty texts is 1 (in v1.1 it is 0).

    Args:
        texts: the chosen answer of each question by its id.

    Raises:
        ValueError: a question has no prediction, or (v1.1) no right answer; names it.
    """
    rows = []
    for example in examples:
        if example.id not in texts:
            raise ValueError(
                f"There is no prediction for the question {example.id!r}. Predict the empty text for no answer."
            )
        answers = list(example.answers)
        if version_2_with_negative:
            answers = [answer for answer in answers if normalise(answer)] or [""]
        elif not answers:
            raise ValueError(
                f"The question {example.id!r} has no answer, as in SQuAD v2.0. Score with version_2_with_negative."
            )
        text = texts[example.id]
        best_f1 = max(word_f1(text, answer) for answer in answers)
        if version_2_with_negative and not normalise(text) and answers == [""]:
            best_f1 = 1.0
        rows.append((max(exact_match(text, answer) for answer in answers), best_f1))
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def squad_v1_scores(examples: Sequence[Example], texts: Mapping[str, str]) -> dict[str, float]:
    """exact_match and f1 of SQuAD v1.1, in percent."""
    exact, f1 = _percent(example_scores(examples, texts))
    return {"exact_match": exact, "f1": f1}


def squad_v2_scores(
    examples: Sequence[Example],
    texts: Mapping[str, str],
    null_odds: Mapping[str, float] | None = None,
    threshold: float | None = None,
    *,
    spans: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """exact, f1 and total of SQuAD v2.0, the same for questions with (HasAns_) and without an answer (NoAns_) where
    there are any, and the best that another threshold for "no answer" would give (best_exact, best_f1) with that
    threshold (…_thresh). Percent.

    Args:
        null_odds: by question, how strongly "no answer" is meant: null odds, or a probability. None: 0 for all, as
            run_qa does, and then the best_ values say nothing.
        threshold: questions whose odds are above it count as answered with the empty text; None: the texts as they are.
        spans: by question, the answer that another threshold would give, where `texts` has the empty one for the odds.
            With them the thresholds found are values for --null_score_diff_threshold. None: `texts`, and as in the
            official script the threshold is 0 where it is best to leave every answer empty, whether 0 does that or not.
    """
    odds = {example.id: 0.0 if null_odds is None else float(null_odds[example.id]) for example in examples}
    raw = example_scores(examples, texts, version_2_with_negative=True)
    has_answer = np.array([bool(example.answers) for example in examples], dtype=bool)
    scores = raw
    if threshold is not None:
        silent = np.array([odds[example.id] > threshold for example in examples], dtype=bool)
        scores = np.where(silent[:, None], ~has_answer[:, None], raw)
    result: dict[str, float] = {}
    for prefix, rows in (("", np.ones_like(has_answer)), ("HasAns_", has_answer), ("NoAns_", ~has_answer)):
        if rows.any():
            exact, f1 = _percent(scores[rows])
            result |= {f"{prefix}exact": exact, f"{prefix}f1": f1, f"{prefix}total": int(rows.sum())}
    if spans is not None:
        raw = example_scores(examples, spans, version_2_with_negative=True)
    empty = np.array([not (texts if spans is None else spans)[example.id] for example in examples], dtype=bool)
    order = np.array([odds[example.id] for example in examples])
    below_all = 0.0 if spans is None else min(0.0, float(np.nextafter(order.min(initial=np.inf), -np.inf)))
    for column, name in enumerate(("exact", "f1")):
        best, where = _best_threshold(raw[:, column], has_answer, empty, order, below_all)
        result |= {f"best_{name}": best, f"best_{name}_thresh": where}
    return result


def _best_threshold(
    scores: np.ndarray, has_answer: np.ndarray, empty: np.ndarray, odds: np.ndarray, below_all: float
) -> tuple[float, float]:
    """Walk through the questions from the least to the most doubtful answer, each answered instead of left empty.

    Starts with every answer empty (right where there is none); returns the best sum on the way in percent and the odds
    reached, or `below_all` where none is.
    """
    gains = np.where(has_answer, scores, np.where(empty, 0.0, -1.0))
    order = np.argsort(odds, kind="stable")
    sums = float(np.sum(~has_answer)) + np.concatenate([[0.0], np.cumsum(gains[order])])
    best = int(np.argmax(sums))
    return 100.0 * float(sums[best]) / len(scores), float(odds[order[best - 1]]) if best else below_all


def _percent(scores: np.ndarray) -> tuple[float, float]:
    exact, f1 = (100.0 * scores.mean(axis=0)).tolist() if len(scores) else (float("nan"), float("nan"))
    return exact, f1
