"""The `evaluate.Metric` classes take what `evaluate.load("squad")` and `("squad_v2")` take, and compute what `scores` computes."""

from pathlib import Path
from typing import Any

import evaluate
import pytest

from squad_eval.data import Example
from squad_eval.metrics import SquadV1, SquadV2
from squad_eval.scores import squad_v1_scores, squad_v2_scores

EXAMPLES = [Example("a", "", "", ("the cat", "dog")), Example("b", "", "", ("1976",)), Example("c", "", "", ("x",))]
TEXTS = {"a": "black cat", "b": "1976", "c": ""}


def references(examples: list[Example]) -> list[dict[str, Any]]:
    return [{"id": e.id, "answers": {"text": list(e.answers), "answer_start": [0] * len(e.answers)}} for e in examples]


def test_version_1() -> None:
    metric = SquadV1(keep_in_memory=True)
    assert isinstance(metric, evaluate.Metric)
    predictions = [{"id": name, "prediction_text": text} for name, text in reversed(TEXTS.items())]
    result = metric.compute(predictions=predictions, references=references(EXAMPLES))
    assert result == squad_v1_scores(EXAMPLES, TEXTS)
    assert result == {"exact_match": pytest.approx(100 / 3), "f1": pytest.approx(100 * (2 / 3 + 1) / 3)}


def test_version_2(tmp_path: Path) -> None:
    examples = [*EXAMPLES, Example("d", "", "")]
    texts, odds = {**TEXTS, "d": ""}, {"a": 0.1, "b": 0.3, "c": 0.9, "d": 0.7}
    predictions = [{"id": n, "prediction_text": t, "no_answer_probability": odds[n]} for n, t in texts.items()]
    for options, threshold in (({}, 1.0), ({"no_answer_threshold": 0.2}, 0.2)):
        metric = SquadV2(cache_dir=str(tmp_path))
        result = metric.compute(predictions=predictions, references=references(examples), **options)
        assert result == squad_v2_scores(examples, texts, odds, threshold)


def test_a_missing_prediction_is_named() -> None:
    metric = SquadV1(keep_in_memory=True)
    predictions = [
        {"id": "a", "prediction_text": "x"},
        {"id": "b", "prediction_text": "x"},
        {"id": "z", "prediction_text": "x"},
    ]
    with pytest.raises(ValueError, match="There is no prediction for the question 'c'"):
        metric.compute(predictions=predictions, references=references(EXAMPLES))
