"""The SQuAD metrics as `evaluate.Metric` classes that need no network, with the inputs and results of
`evaluate.load("squad")` and `evaluate.load("squad_v2")`:

    SquadV1().compute(
        predictions=[{"id": "1", "prediction_text": "1976"}],
        references=[{"id": "1", "answers": {"text": ["1976"], "answer_start": [97]}}],
    )
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

from squad_eval.data import Example
from squad_eval.scores import squad_v1_scores, squad_v2_scores

CITATION = """\
@inproceedings{rajpurkar2016squad, title={{SQuAD}: 100,000+ Questions for Machine Comprehension of Text},
author={Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy}, booktitle={EMNLP}, year={2016}}
@inproceedings{rajpurkar2018squad, title={Know What You Don't Know: Unanswerable Questions for {SQuAD}},
author={Rajpurkar, Pranav and Jia, Robin and Liang, Percy}, booktitle={ACL}, year={2018}}"""


def _information(description: str, prediction: Mapping[str, str]) -> evaluate.MetricInfo:
    text = datasets.Value("string")
    answers = {"text": datasets.List(text), "answer_start": datasets.List(datasets.Value("int32"))}
    return evaluate.MetricInfo(
        description=description,
        citation=CITATION,
        inputs_description="predictions: id and prediction_text of a question; references: id and "
        "answers (text, answer_start).",
        features=datasets.Features(
            {
                "predictions": {name: datasets.Value(kind) for name, kind in prediction.items()},
                "references": {"id": text, "answers": answers},
            }
        ),
    )


def _read(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
) -> tuple[list[Example], dict[str, str]]:
    examples = [Example(row["id"], "", "", tuple(row["answers"]["text"])) for row in references]
    return examples, {row["id"]: row["prediction_text"] for row in predictions}


class SquadV1(evaluate.Metric):
    """exact_match and f1 of SQuAD v1.1, in percent."""

    def _info(self) -> evaluate.MetricInfo:
        return _information("Exact match and F1 of SQuAD v1.1.", {"id": "string", "prediction_text": "string"})

    def _compute(
        self, predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        return squad_v1_scores(*_read(predictions, references))


class SquadV2(evaluate.Metric):
    """exact, f1 and total of SQuAD v2.0, HasAns_, NoAns_ and best_ values, in percent.

    `compute` takes `no_answer_threshold` (default 1.0): predictions whose no_answer_probability is above it count as
    empty.
    """

    def _info(self) -> evaluate.MetricInfo:
        prediction = {"id": "string", "prediction_text": "string", "no_answer_probability": "float64"}
        return _information("Exact match and F1 of SQuAD v2.0.", prediction)

    def _compute(
        self,
        predictions: Sequence[Mapping[str, Any]],
        references: Sequence[Mapping[str, Any]],
        no_answer_threshold: float = 1.0,
    ) -> dict[str, float]:
        examples, texts = _read(predictions, references)
        odds = {row["id"]: row["no_answer_probability"] for row in predictions}
        return squad_v2_scores(examples, texts, odds, no_answer_threshold)
