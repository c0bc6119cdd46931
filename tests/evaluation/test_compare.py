"""What a comparison says about inputs that ran exact attention."""

from bert_cluster import ClusterConfig
from bert_cluster.evaluation.compare import exact_notes
from bert_cluster.evaluation.methods import Method

LENGTHS = [[10, 20], [30]]
FULL = Method("full", None, "defaults")


def refined(**settings: object) -> Method:
    return Method("refined-clustered", ClusterConfig(**settings), "flags")  # type: ignore[arg-type]


def test_layers_that_agree_are_one_note() -> None:
    expected = "refined-clustered: 2 of 3 inputs have fewer than exact_below=25 tokens and ran exact attention."
    assert exact_notes([FULL, refined(exact_below=25)], LENGTHS, 4) == [expected]
    assert exact_notes([refined(exact_below=25, layers={1: {"method": "full"}})], LENGTHS, 4) == [expected]
    every_layer = {index: {"exact_below": 25} for index in range(4)}
    assert exact_notes([refined(layers=every_layer)], LENGTHS, 4) == [expected]


def test_layers_that_differ_are_noted_group_by_group() -> None:
    layers = {0: {"exact_below": 25}, 1: {"exact_below": 25}, 2: {"exact_below": 0}, 3: {"exact_below": 25}}
    assert exact_notes([refined(exact_below=15, layers=layers)], LENGTHS, 5) == [
        "refined-clustered, layer 4: 1 of 3 inputs have fewer than exact_below=15 tokens and ran exact attention.",
        "refined-clustered, layers 0 to 1, 3: 2 of 3 inputs have fewer than exact_below=25 tokens and ran exact attention.",
    ]


def test_layers_that_overrule_exact_below_leave_no_note() -> None:
    layers = {0: {"exact_below": 0}, 1: {"method": "full"}}
    assert exact_notes([refined(exact_below=100, layers=layers)], LENGTHS, 2) == []
