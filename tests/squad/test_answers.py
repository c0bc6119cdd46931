"""Answers from logits: against a plain loop over all spans, and cases decided by hand."""

import math
from typing import Any

import numpy as np
import pytest

from squad_eval.answers import best_spans, choose_answers
from squad_eval.data import Example
from squad_eval.windows import Window, make_windows

CONTEXT = "zero one two three four"


def window_of(context: str, example: int = 0, question: int = 2) -> Window:
    """CLS and `question` tokens outside the context, then one token a word."""
    spans, place = [(-1, -1)] * question, 0
    for word in context.split():
        first = context.index(word, place)
        place = first + len(word)
        spans.append((first, place))
    offsets = np.array(spans, dtype=np.int32).reshape(-1, 2)
    return Window(example, {"input_ids": list(range(len(spans)))}, offsets, 0)


def logits(window: Window, **values: float) -> np.ndarray:
    """0 everywhere but at the named words; null for the CLS token."""
    result = np.zeros(len(window), dtype=np.float32)
    for word, value in values.items():
        result[0 if word == "null" else 2 + CONTEXT.split().index(word)] = value
    return result


def loop_over_all_spans(
    examples: list[Example],
    windows: list[Window],
    starts: list[np.ndarray],
    ends: list[np.ndarray],
    count: int,
    longest: int,
) -> list[tuple[list[tuple[float, str, float, float]], float]]:
    """For each question the best spans (score, text, start, end logit) and the score of no answer."""
    results = []
    for number, example in enumerate(examples):
        found: dict[tuple[int, int], tuple[float, str, float, float]] = {}
        null = math.inf
        for window, start, end in zip(windows, starts, ends, strict=True):
            if window.example != number:
                continue
            null = min(null, float(start[window.null_position]) + float(end[window.null_position]))
            for i in range(len(window)):
                for j in range(i, min(i + longest, len(window))):
                    if window.offsets[i, 0] < 0 or window.offsets[j, 0] < 0:
                        continue
                    span = (int(window.offsets[i, 0]), int(window.offsets[j, 1]))
                    score = float(start[i]) + float(end[j])
                    if span not in found or score > found[span][0]:
                        found[span] = (score, example.context[span[0] : span[1]], float(start[i]), float(end[j]))
        results.append((sorted(found.values(), key=lambda one: -one[0])[:count], null))
    return results


@pytest.mark.parametrize(("count", "longest"), [(20, 30), (1, 5), (7, 1), (1000, 3)])
def test_the_best_spans_are_those_of_a_loop_over_all(
    count: int, longest: int, tokenizer: Any, examples: list[Example]
) -> None:
    random = np.random.RandomState(0)
    windows = make_windows(examples, tokenizer, max_seq_length=40, doc_stride=8)
    starts, ends = ([random.randn(len(window)).astype(np.float32) for window in windows] for _ in range(2))
    answers = choose_answers(
        examples, windows, starts, ends, n_best_size=count, max_answer_length=longest, version_2_with_negative=False
    )
    expected = loop_over_all_spans(examples, windows, starts, ends, count, longest)
    for example, (ranked, _) in zip(examples, expected, strict=True):
        listed = answers.nbest[example.id]
        assert [(c["text"], c["start_logit"], c["end_logit"]) for c in listed] == [one[1:] for one in ranked]
        assert answers.texts[example.id] == (ranked[0][1] if ranked else "")
        if ranked:
            weights = np.exp(np.array([one[0] for one in ranked]) - ranked[0][0])
            assert [c["probability"] for c in listed] == pytest.approx((weights / weights.sum()).tolist())


@pytest.mark.parametrize("threshold", [0.0, -3.0, 2.5])
def test_no_answer_is_given_where_its_score_is_more_than_the_threshold_above(
    threshold: float, tokenizer: Any, examples
) -> None:
    random = np.random.RandomState(1)
    windows = make_windows(examples, tokenizer, max_seq_length=40, doc_stride=8)
    starts, ends = ([random.randn(len(window)) for window in windows] for _ in range(2))
    for window, start in zip(windows, starts, strict=True):
        start[window.null_position] += 6 * window.example - 6
    answers = choose_answers(
        examples, windows, starts, ends, version_2_with_negative=True, null_score_diff_threshold=threshold
    )
    for example, (ranked, null) in zip(
        examples, loop_over_all_spans(examples, windows, starts, ends, 20, 30), strict=True
    ):
        odds = null - ranked[0][0] if ranked else math.inf
        assert (answers.null_odds or {})[example.id] == pytest.approx(odds)
        assert answers.texts[example.id] == ("" if odds > threshold else ranked[0][1])
        assert [c["text"] for c in answers.nbest[example.id]].count("") == 1
    assert len({bool(text) for text in answers.texts.values()}) == 2


def choose(windows: list[Window], starts: list[np.ndarray], ends: list[np.ndarray], **options: Any) -> Any:
    answers = choose_answers([Example("q", "?", CONTEXT)], windows, starts, ends, **options)
    return answers.texts["q"], answers.nbest["q"], answers.null_odds


def test_an_end_before_its_start_is_no_span() -> None:
    window = window_of(CONTEXT)
    text, _, _ = choose([window], [logits(window, three=5, one=4)], [logits(window, two=5, zero=8)])
    assert text == "one two"


def test_the_question_is_no_answer() -> None:
    window = window_of(CONTEXT)
    start, end = logits(window, two=1, null=99), logits(window, two=1)
    start[1] = end[1] = 50
    assert choose([window], [start], [end])[0] == "two"


@pytest.mark.parametrize(("longest", "text"), [(5, "zero one two three four"), (4, "one two three four"), (1, "four")])
def test_a_span_has_at_most_so_many_tokens(longest: int, text: str) -> None:
    window = window_of(CONTEXT)
    start, end = logits(window, zero=5, one=4, four=1), logits(window, four=5)
    assert choose([window], [start], [end], max_answer_length=longest)[0] == text


def test_the_best_start_and_end_are_not_missed_with_one_candidate() -> None:
    """run_qa looks at the n best starts and ends only, here at one pair that is no span."""
    window = window_of(CONTEXT)
    text, nbest, _ = choose([window], [logits(window, four=3, one=2)], [logits(window, zero=3, two=2)], n_best_size=1)
    assert (text, len(nbest)) == ("one two", 1)


def test_a_span_in_two_windows_counts_once_with_its_better_score() -> None:
    window = window_of(CONTEXT)
    starts = [logits(window, one=2), logits(window, one=3)]
    _, nbest, _ = choose([window, window], starts, [logits(window, one=2)] * 2)
    assert [candidate["text"] for candidate in nbest].count("one") == 1
    assert (nbest[0]["text"], nbest[0]["start_logit"]) == ("one", 3.0)


def test_equal_scores_go_to_the_first_token() -> None:
    window = window_of(CONTEXT)
    text, nbest, _ = choose([window], [logits(window)], [logits(window)], n_best_size=3)
    assert (text, [candidate["text"] for candidate in nbest]) == ("zero", ["zero", "zero one", "zero one two"])


def test_no_answer_is_scored_by_the_window_where_it_is_least_likely() -> None:
    window = window_of(CONTEXT)
    starts = [logits(window, null=9, two=1), logits(window, null=1)]
    text, nbest, odds = choose([window] * 2, starts, [logits(window, two=3)] * 2, version_2_with_negative=True)
    assert (text, odds) == ("two", {"q": -3.0})
    assert [candidate["start_logit"] for candidate in nbest if candidate["text"] == ""] == [1.0]


def test_no_answer_stays_on_the_list() -> None:
    window = window_of(CONTEXT)
    _, nbest, _ = choose(
        [window], [logits(window, null=-50)], [logits(window, two=1)], n_best_size=2, version_2_with_negative=True
    )
    assert [candidate["text"] for candidate in nbest] == ["zero one two", "one two", ""]


def test_a_difference_of_exactly_the_threshold_keeps_the_answer() -> None:
    window = window_of(CONTEXT)
    start, end = logits(window, null=4, two=1), logits(window, two=1)
    options = {"version_2_with_negative": True}
    assert choose([window], [start], [end], null_score_diff_threshold=2.0, **options)[0] == "two"
    assert choose([window], [start], [end], null_score_diff_threshold=1.9, **options)[0] == ""


@pytest.mark.parametrize("version_2", [False, True])
def test_a_question_whose_windows_hold_no_context_gets_the_empty_answer(version_2: bool) -> None:
    """run_qa raises IndexError here in v2, and answers with the word "empty" in v1."""
    window = window_of("")
    start = np.array([3.0, 1.0])
    text, nbest, odds = choose([window], [start], [start], version_2_with_negative=version_2)
    assert text == ""
    assert [candidate["text"] for candidate in nbest] == ([""] if version_2 else [])
    assert odds == ({"q": math.inf} if version_2 else None)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_window_with_a_bad_logit_is_left_out_and_counted(bad: float) -> None:
    window = window_of(CONTEXT)
    good, poisoned = logits(window, two=3), logits(window, four=9, three=bad)
    answers = choose_answers([Example("q", "?", CONTEXT)], [window] * 2, [poisoned, good], [good, good])
    assert (answers.texts["q"], answers.not_finite) == ("two", 1)
    answers = choose_answers([Example("q", "?", CONTEXT)], [window], [poisoned], [good], version_2_with_negative=True)
    assert (answers.texts, answers.nbest, answers.null_odds) == ({"q": ""}, {"q": []}, {"q": math.inf})


def test_large_scores_have_probabilities() -> None:
    window = window_of(CONTEXT)
    _, nbest, _ = choose([window], [logits(window, two=2e4)], [logits(window, two=2e4)])
    assert (nbest[0]["text"], nbest[0]["probability"]) == ("two", 1.0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float_type(dtype: Any) -> None:
    window = window_of(CONTEXT)
    assert choose([window], [logits(window, two=3).astype(dtype)], [logits(window, two=3).astype(dtype)])[0] == "two"


def test_answers_keep_the_characters_of_the_context() -> None:
    context = "In “Zürich” 👩‍🚀 lived"
    window = window_of(context)
    start, end = np.zeros(len(window)), np.zeros(len(window))
    start[3], end[4] = 5, 5
    answers = choose_answers([Example("q", "?", context)], [window], [start], [end])
    assert answers.texts["q"] == "“Zürich” 👩‍🚀"


def test_best_spans_come_in_order_and_number() -> None:
    window = window_of(CONTEXT)
    random = np.random.RandomState(0)
    start, end = random.randn(7), random.randn(7)
    scores = [candidate.score for candidate in best_spans(window.offsets, start, end, 6, 30)]
    assert (len(scores), scores) == (6, sorted(scores, reverse=True))
    assert len(list(best_spans(window.offsets, start, end, 100, 30))) == 15


def test_logits_that_do_not_fit_are_refused() -> None:
    window = window_of(CONTEXT)
    right, padded = logits(window), np.zeros(len(window) + 1)
    with pytest.raises(
        ValueError, match=r"Window 0 has 7 tokens, its logits have the shape \(8,\). Remove the padding"
    ):
        choose([window], [padded], [right])
    with pytest.raises(ValueError, match="There are 1 windows, 2 start and 1 end logits; expected one each"):
        choose([window], [right, right], [right])
