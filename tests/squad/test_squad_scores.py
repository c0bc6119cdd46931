"""Exact match and F1 against the official rules, and cases decided by hand."""

import numpy as np
import official
import pytest

from squad_eval.data import Example
from squad_eval.scores import (
    exact_match,
    example_scores,
    normalise,
    squad_v1_scores,
    squad_v2_scores,
    word_f1,
)

WORDS = [
    "the",
    "The",
    "a",
    "cat",
    "Cat's",
    "an",
    "dog,",
    "dog",
    "U.S.",
    "us",
    "“dog”",
    "10%",
    "",
    " ",
    "straße",
    "thé",
    "a.",
    "an-a",
    "_a_",
]


def questions(seed: int, unanswerable: float) -> tuple[list[Example], dict[str, str], dict[str, float]]:
    """Random questions, predictions that often share words with the answers, and odds with ties."""
    random = np.random.RandomState(seed)

    def text() -> str:
        return " ".join(random.choice(WORDS, size=random.randint(1, 5)))

    examples, texts, odds = [], {}, {}
    for number in range(random.randint(1, 40)):
        answers = () if random.rand() < unanswerable else tuple(text() for _ in range(random.randint(1, 4)))
        examples.append(Example(str(number), "", "", answers))
        guess = random.rand()
        texts[str(number)] = "" if guess < 0.3 else answers[0] if answers and guess < 0.6 else text()
        odds[str(number)] = float(random.randint(-3, 4))
    return examples, texts, odds


@pytest.mark.parametrize("seed", range(40))
def test_version_1_is_the_official_one(seed: int) -> None:
    examples, texts, _ = questions(seed, unanswerable=0)
    expected = official.version_1([(texts[example.id], list(example.answers)) for example in examples])
    scores = squad_v1_scores(examples, texts)
    assert list(scores) == ["exact_match", "f1"]
    assert tuple(scores.values()) == pytest.approx(expected)


@pytest.mark.parametrize("threshold", [1.0, -1.0])
@pytest.mark.parametrize("unanswerable", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(20))
def test_version_2_is_the_official_one(seed: int, unanswerable: float, threshold: float) -> None:
    examples, texts, odds = questions(seed, unanswerable)
    rows = [(texts[example.id], list(example.answers), odds[example.id]) for example in examples]
    assert squad_v2_scores(examples, texts, odds, threshold) == pytest.approx(official.version_2(rows, threshold))


def test_without_odds_all_are_equal() -> None:
    examples, texts, _ = questions(1, 0.5)
    rows = [(texts[example.id], list(example.answers), 0.0) for example in examples]
    assert squad_v2_scores(examples, texts) == pytest.approx(official.version_2(rows, 1.0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat's\tU.S.\n", "cats us"),
        ("a the an", ""),
        ("theatre", "theatre"),
        ("well-known", "wellknown"),
        ("A-Team", "ateam"),
        ("“quoted”", "“quoted”"),
        ("É", "é"),
        ("the\u00a0cat", "cat"),
        ("", ""),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_known_scores() -> None:
    assert exact_match("The cat!", "cat") == 1.0
    assert word_f1("the black cat", "cat") == pytest.approx(2 / 3)
    assert word_f1("cat cat dog", "cat dog dog") == pytest.approx(2 / 3)
    assert word_f1("cat", "dog") == 0.0


def test_the_best_of_the_right_answers_counts() -> None:
    examples = [Example("1", "", "", ("dog", "black cat")), Example("2", "", "", ("x",))]
    assert example_scores(examples, {"1": "cat", "2": "X."}).tolist() == [[0.0, pytest.approx(2 / 3)], [1.0, 1.0]]


def test_two_empty_texts_differ_between_the_versions() -> None:
    examples = [Example("1", "", "", ("the",))]
    assert example_scores(examples, {"1": "a"}).tolist() == [[1.0, 0.0]]
    assert example_scores(examples, {"1": "a"}, version_2_with_negative=True).tolist() == [[1.0, 1.0]]


def test_an_empty_answer_is_right_where_there_is_none() -> None:
    examples = [Example("1", "", ""), Example("2", "", "", ("x",))]
    assert example_scores(examples, {"1": "", "2": ""}, version_2_with_negative=True).tolist() == [[1, 1], [0, 0]]


def test_the_best_threshold_is_a_value_for_the_flag() -> None:
    examples = [Example("1", "", "", ("x",)), Example("2", "", ""), Example("3", "", "", ("y",))]
    scores = squad_v2_scores(examples, {"1": "x", "2": "wrong", "3": "y"}, {"1": -5.0, "2": -1.0, "3": -2.0})
    assert (scores["exact"], scores["best_exact"], scores["best_exact_thresh"]) == (pytest.approx(200 / 3), 100.0, -2.0)


@pytest.mark.parametrize("unanswerable", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(10))
def test_the_best_threshold_gives_the_best_score_whatever_the_threshold_of_this_run(
    seed: int, unanswerable: float
) -> None:
    """Odds are negative and without ties, no text is a mere article; `silenced` is what the flag makes of the spans."""
    examples, texts, _ = questions(seed, unanswerable)
    spans = {name: text if normalise(text) else "" for name, text in texts.items()}
    examples = [Example(one.id, "", "", tuple(text for text in one.answers if normalise(text))) for one in examples]
    odds = dict(zip(spans, np.random.RandomState(seed).uniform(-9, -1, len(spans)).tolist(), strict=True))

    def silenced(threshold: float) -> dict[str, str]:
        return {name: "" if odds[name] > threshold else text for name, text in spans.items()}

    found = [squad_v2_scores(examples, silenced(threshold), odds, spans=spans) for threshold in (0.0, -5.0, -99.0)]
    for name in ("exact", "f1"):
        (best,) = {scores[f"best_{name}"] for scores in found}
        (threshold,) = {scores[f"best_{name}_thresh"] for scores in found}
        assert squad_v2_scores(examples, silenced(threshold), odds)[name] == pytest.approx(best)
        assert best >= max(scores[name] for scores in found) - 1e-9


def test_the_threshold_that_leaves_every_answer_empty() -> None:
    examples = [Example("1", "", ""), Example("2", "", "")]
    spans, odds = {"1": "x", "2": "y"}, {"1": -3.0, "2": -7.0}
    scores = squad_v2_scores(examples, spans, odds, spans=spans)
    assert (scores["exact"], scores["best_exact"]) == (0.0, 100.0)
    assert scores["best_exact_thresh"] < -7.0
    assert squad_v2_scores(examples, spans, {"1": 3.0, "2": 7.0}, spans=spans)["best_exact_thresh"] == 0.0
    assert squad_v2_scores(examples, spans, odds)["best_exact_thresh"] == 0.0, "that of the official script"


def test_groups_without_a_question_have_no_scores() -> None:
    scores = squad_v2_scores([Example("1", "", "", ("x",))], {"1": "x"})
    assert not [name for name in scores if name.startswith("NoAns")]


def test_a_missing_prediction_is_named() -> None:
    with pytest.raises(ValueError, match="There is no prediction for the question '7'"):
        example_scores([Example("7", "", "", ("x",))], {})


def test_version_1_needs_answers() -> None:
    with pytest.raises(ValueError, match="The question '7' has no answer, as in SQuAD v2.0"):
        squad_v1_scores([Example("7", "", "")], {"7": ""})


def test_no_questions_have_no_rows() -> None:
    assert example_scores([], {}).shape == (0, 2)
