"""Outputs of a checkpoint and labels of the dataset."""

import numpy as np
import pytest

from glue_eval.labels import LabelError, map_labels
from glue_eval.tasks import TASKS

MNLI, QNLI, STSB = TASKS["mnli"], TASKS["qnli"], TASKS["stsb"]


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        ({0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}, (2, 1, 0)),
        ({"0": "entailment", "1": "neutral", "2": "contradiction"}, (0, 1, 2)),
        ({2: "neutral", 0: "contradiction", 1: "entailment"}, (2, 0, 1)),
    ],
)
def test_names_decide_whatever_their_order_and_case(names: dict[int, str], outputs: tuple[int, ...]) -> None:
    mapped = map_labels(names, MNLI)
    assert (mapped.outputs, mapped.how) == (outputs, "names")


def test_more_than_ten_outputs_are_ordered_as_numbers() -> None:
    names = {str(number): f"LABEL_{number}" for number in (0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9)}
    with pytest.raises(LabelError, match="LABEL_9, LABEL_10, the labels of MNLI are"):
        map_labels(names, MNLI)


@pytest.mark.parametrize("name", ["Not-Entailment", "not entailment", " not_entailment "])
def test_blanks_and_hyphens_in_names_do_not_matter(name: str) -> None:
    assert map_labels({0: name, 1: "entailment"}, QNLI).outputs == (1, 0)


@pytest.mark.parametrize("names", [{0: "LABEL_0", 1: "LABEL_1"}, {0: "0", 1: "1"}])
def test_outputs_without_names_take_the_order_of_the_dataset_and_say_so(names: dict[int, str]) -> None:
    mapped = map_labels(names, QNLI)
    assert (mapped.outputs, mapped.how) == ((0, 1), "order")
    assert "the dataset's order was assumed: entailment, not_entailment. --label_map sets another" in mapped.note


@pytest.mark.parametrize(
    "names",
    [
        {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"},
        {0: "LABEL_1", 1: "LABEL_0"},
        {0: "positive", 1: "negative"},
        {0: "entailment", 1: "entailment"},
    ],
)
def test_other_names_are_an_error_that_shows_the_flag(names: dict[int, str]) -> None:
    with pytest.raises(
        LabelError, match=r"the labels of QNLI are entailment, not_entailment.*--label_map .*=entailment"
    ):
        map_labels(names, QNLI)


@pytest.mark.parametrize(
    "option",
    [
        "contradiction,entailment,neutral",
        " Contradiction, entailment , neutral",
        "2,0,1",
        "LABEL_2=neutral,LABEL_0=contradiction,LABEL_1=entailment",
        "0=contradiction,1=entailment,2=neutral",
    ],
)
def test_the_option_is_stronger_than_names(option: str) -> None:
    mapped = map_labels({0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, MNLI, option)
    assert (mapped.outputs, mapped.how) == ((2, 0, 1), "option")
    assert "LABEL_0 = contradiction" in mapped.note


def test_several_outputs_may_stand_for_one_label() -> None:
    names = {0: "entailment", 1: "neutral", 2: "contradiction"}
    mapped = map_labels(names, QNLI, "entailment,not_entailment,not_entailment")
    assert mapped.predict(np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "entailment",
            "--label_map names 1 labels .entailment., the checkpoint has 2 outputs .A, B.. Name one label for each",
        ),
        ("entailment,neutral", "QNLI has no label 'neutral'. Its labels are entailment, not_entailment"),
        ("C=entailment,B=entailment", "the checkpoint has no output 'c'. Its outputs are A, B"),
        ("A=entailment", "--label_map says nothing of the output 'B'. Name a label for each of A, B"),
    ],
)
def test_a_wrong_option_says_what_is_wrong(option: str, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        map_labels({0: "A", 1: "B"}, QNLI, option)


def test_predictions_are_mapped_and_ties_go_to_the_first_output() -> None:
    mapped = map_labels({0: "contradiction", 1: "neutral", 2: "entailment"}, MNLI)
    predicted = mapped.predict(np.array([[3.0, 1.0, 2.0], [0.0, 1.0, 1.0], [np.nan, 0.0, 1.0]]))
    assert predicted.dtype == np.int64
    assert predicted.tolist() == [2, 1, 0]


def test_a_score_has_one_output() -> None:
    mapped = map_labels({0: "LABEL_0"}, STSB)
    assert mapped.how == "regression"
    assert mapped.predict(np.array([[1.5], [2.5]], dtype=np.float32)).tolist() == [1.5, 2.5]


def test_a_classifier_cannot_predict_a_score() -> None:
    with pytest.raises(LabelError, match=r"STS-B predicts a score with one output, the checkpoint has 2 \(A, B\)"):
        map_labels({0: "A", 1: "B"}, STSB)


def test_a_score_has_no_label_map() -> None:
    with pytest.raises(LabelError, match="STS-B predicts a score and has no labels. Leave out --label_map"):
        map_labels({0: "A"}, STSB, "entailment")
