"""Windows: every part of the context is in one, offsets point at the right characters, and what does not fit is refused."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squad_eval.data import Example
from squad_eval.windows import Window, WindowError, make_windows

SIZES = [(48, 0, None), (48, 12, None), (48, 12, 2), (512, 128, None)]


def span_text(window: Window, examples: list[Example], first: int, last: int) -> str:
    return examples[window.example].context[window.offsets[first, 0] : window.offsets[last, 1]]


def test_windows_that_can_be_written_down(words: Any) -> None:
    """17 words, a question of 2, windows of 9: 7 words of context, of which 3 repeat."""
    context = (
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    )
    windows = make_windows([Example("1", "one two", context)], words, max_seq_length=9, doc_stride=3)
    found = [span_text(window, [Example("1", "", context)], 2, len(window) - 1).split() for window in windows]
    all_words = context.split()
    assert found == [all_words[0:7], all_words[4:11], all_words[8:15], all_words[12:17]]
    assert [window.offsets[:2].tolist() for window in windows] == [[[-1, -1]] * 2] * 4
    assert [window.null_position for window in windows] == [0] * 4


@pytest.mark.parametrize(("size", "stride", "most"), SIZES)
def test_windows_are_those_of_the_tokenizer(
    size: int, stride: int, most: int | None, tokenizer: Any, examples: list[Example]
) -> None:
    """Question, context and special tokens as one call of the tokenizer for one question gives them."""
    windows = make_windows(examples, tokenizer, max_seq_length=size, doc_stride=stride, max_windows=most)
    left = tokenizer.padding_side == "left"
    assert [window.example for window in windows] == sorted(window.example for window in windows)
    for index, example in enumerate(examples):
        pair = ([example.context], ["Who is what?" if example.context else "Who?"])
        expected = tokenizer(
            *(pair if left else pair[::-1]),
            truncation="only_first" if left else "only_second",
            max_length=size,
            stride=stride,
            return_overflowing_tokens=True,
        )["input_ids"]
        own = [window for window in windows if window.example == index]
        assert [window.inputs["input_ids"] for window in own] == expected[:most]
        for window in own:
            assert len(window) == len(window.inputs["input_ids"]) <= size
            assert set(window.inputs) == set(tokenizer.model_input_names)
            assert {len(values) for values in window.inputs.values()} == {len(window)}


@pytest.mark.parametrize(("size", "stride"), [(48, 0), (48, 12), (512, 128)])
def test_every_token_of_a_context_is_in_a_window_with_its_characters(
    size: int, stride: int, tokenizer: Any, examples
) -> None:
    windows = make_windows(examples, tokenizer, max_seq_length=size, doc_stride=stride)
    for index, example in enumerate(examples):
        alone = tokenizer(example.context, add_special_tokens=False, return_offsets_mapping=True)
        expected = [
            (token, *span)
            for token, span in zip(alone["input_ids"], alone["offset_mapping"], strict=True)
            if span[0] < span[1]
        ]
        found = []
        for window in (window for window in windows if window.example == index):
            inside = np.flatnonzero(window.offsets[:, 0] >= 0)
            assert np.array_equal(window.offsets[:, 0] < 0, window.offsets[:, 1] < 0)
            found += [(window.inputs["input_ids"][place], *window.offsets[place].tolist()) for place in inside]
        assert set(found) == set(expected)


def test_offsets_point_into_the_context_whatever_the_characters(tokenizer: Any, examples: list[Example]) -> None:
    """A token's characters, tokenised alone, start with that token again."""
    for window in make_windows(examples[:2], tokenizer, max_seq_length=512):
        for place in np.flatnonzero(window.offsets[:, 0] >= 0)[:60]:
            text = span_text(window, examples, place, place)
            assert text.strip()
            assert text in examples[window.example].context


def test_neighbouring_windows_share_the_stride(words: Any) -> None:
    context = " ".join(["one"] * 50)
    windows = make_windows([Example("1", "two", context)], words, max_seq_length=20, doc_stride=7)
    for before, after in pairwise(windows):
        assert before.offsets[-7].tolist() == after.offsets[1].tolist()


def test_the_cls_token_stands_for_no_answer(tokenizer: Any, examples: list[Example]) -> None:
    for window in make_windows(examples, tokenizer, max_seq_length=64, doc_stride=8):
        cls = tokenizer.cls_token_id
        assert window.inputs["input_ids"][window.null_position] == cls if cls is not None else window.null_position == 0


def test_an_answer_cut_by_the_border_is_whole_in_the_next_window(words: Any) -> None:
    context = "one two three four five six seven eight nine ten"
    windows = make_windows([Example("1", "one", context)], words, max_seq_length=6, doc_stride=2)
    first, last = context.index("five"), context.index("six") + len("six")
    whole = [
        number
        for number, window in enumerate(windows)
        if first in window.offsets[:, 0].tolist() and last in window.offsets[:, 1].tolist()
    ]
    assert [span_text(w, [Example("1", "", context)], 1, len(w) - 1) for w in windows[:2]] == [
        "one two three four five",
        "four five six seven eight",
    ]
    assert whole == [1]


def test_one_window_truncates(words: Any) -> None:
    context = " ".join(["one"] * 500)
    windows = make_windows([Example("1", "two", context)] * 3, words, max_seq_length=20, max_windows=1)
    assert [(window.example, len(window)) for window in windows] == [(0, 20), (1, 20), (2, 20)]


def test_many_questions_keep_their_order(words: Any) -> None:
    examples = [Example(str(number), "one", " ".join(["two"] * (number % 5 + 1))) for number in range(600)]
    windows = make_windows(examples, words, max_seq_length=20)
    assert [window.example for window in windows] == list(range(600))
    assert [len(window) for window in windows] == [number % 5 + 2 for number in range(600)]


def test_blanks_before_the_question_are_cut(tokenizer: Any) -> None:
    plain, blank = (
        make_windows([Example("1", question, "Who is who?")], tokenizer)[0] for question in ("Who?", " \n Who?")
    )
    assert plain.inputs == blank.inputs


def test_an_empty_context_has_a_window_without_places_for_an_answer(tokenizer: Any, examples: list[Example]) -> None:
    (window,) = make_windows(examples[-1:], tokenizer)
    assert (window.offsets == -1).all()


@pytest.mark.parametrize(
    ("question", "size", "stride", "most", "message"),
    [
        ("one " * 30, 20, 5, None, "The question 'q' has 30 tokens: of the 20 in a window, 0 are left for the context.*Raise --max_seq_length.$"),
        ("one " * 30, 20, 5, 1, "The question 'q' has 30 tokens"),
        ("one " * 10, 20, 10, None, "has 10 tokens: of the 20 in a window, 10 are left for the context, and neighbouring windows share 10. Raise --max_seq_length or lower"),
        ("one", 100, 128, None, "neighbouring windows share 128. Raise --max_seq_length or lower --doc_stride"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(
    question: str, size: int, stride: int, most: int | None, message: str, words: Any
) -> None:
    good = Example("good", "one", "two")
    with pytest.raises(WindowError, match=message):
        make_windows(
            [good, Example("q", question, "two " * 200)],
            words,
            max_seq_length=size,
            doc_stride=stride,
            max_windows=most,
        )


def test_a_stride_that_does_not_fit_is_no_matter_where_one_window_is_enough(words: Any) -> None:
    assert len(make_windows([Example("q", "one", "two " * 99)], words, max_seq_length=100, doc_stride=128)) == 1
    assert len(make_windows([Example("q", "one", "two " * 200)], words, max_seq_length=100, max_windows=1)) == 1


def test_the_smallest_window_moves_on(words: Any) -> None:
    windows = make_windows([Example("q", "one", "two three four")], words, max_seq_length=2, doc_stride=0)
    assert len(windows) == 3


def test_a_slow_tokenizer_is_refused(examples: list[Example]) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(WindowError, match=r"The tokenizer Slow does not tell where its tokens stand.*tokenizer\.json"):
        make_windows(examples, Slow())


def test_no_window_is_no_choice(words: Any, examples: list[Example]) -> None:
    with pytest.raises(WindowError, match="max_windows must be at least 1, or None for all windows, got 0"):
        make_windows(examples, words, max_windows=0)


@pytest.mark.parametrize("own", [False, True])
def test_the_tokenizer_is_saved_as_it_was(own: bool, tokenizer: Any, examples: list[Example], tmp_path: Path) -> None:
    """A tokenizer keeps the truncation of its last call, and writes it into tokenizer.json."""
    tokenizer = copy.deepcopy(tokenizer)
    if own:
        tokenizer.backend_tokenizer.enable_truncation(77, stride=3, strategy="only_first", direction="left")
        tokenizer.backend_tokenizer.enable_padding(length=88, direction="left")
    tokenizer.save_pretrained(tmp_path / "before")
    make_windows(examples, tokenizer, max_seq_length=40, doc_stride=4)
    tokenizer.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "tokenizer.json").read_text() for name in ("before", "after"))
    assert after == before
