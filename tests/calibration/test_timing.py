"""Looking up times, and the crossover."""

import pytest

from bert_cluster.calibration import Timings
from bert_cluster.calibration.candidates import FULL, config_of, name_of, settings_of
from bert_cluster.calibration.planner import worthwhile
from bert_cluster.config import LayerSettings

(SETTINGS,) = settings_of([{"method": "clustered"}])


def timings(ours: list[float], exact: list[float]) -> Timings:
    lengths = (100, 200, 400)
    seconds = {"full": [2.0, 8.0, 32.0], "exact": exact, name_of(SETTINGS): ours}
    return Timings({name: dict(zip(lengths, own, strict=True)) for name, own in seconds.items()}, {})


def test_between_lengths_times_are_powers() -> None:
    found = timings([1, 2, 4], [1, 4, 16])
    assert found.at("full", 100) == pytest.approx(2.0) and found.at("full", 300) == pytest.approx(18.0)
    assert found.at("full", 10) == pytest.approx(2.0) and found.at("full", 800) == pytest.approx(64.0)


@pytest.mark.parametrize(
    ("ours", "exact", "crossover"),
    [
        ([1, 2, 4], [1.1, 4, 16], 0),
        ([2, 4, 8], [1, 4, 16], 201),
        ([2, 4, 8], [0.5, 2, 8.1], 396),
        ([3, 6, 12], [1, 4, 16], 300),
        ([9, 18, 36], [1, 4, 16], None),
        ([0.5, 9, 8], [1, 4, 16], 291),
    ],
)
def test_the_crossover_is_where_clustering_starts_to_pay(
    ours: list[float], exact: list[float], crossover: int | None
) -> None:
    assert timings(ours, exact).crossover(SETTINGS) == crossover


def test_texts_below_the_crossover_take_the_exact_path() -> None:
    found = timings([3, 6, 12], [1, 4, 16])
    settings = LayerSettings("clustered", clusters=25, bits=63, iterations=10, exact_below=300)
    assert found.of_layer(settings, [100, 400]) == pytest.approx(1 + 12)
    assert found.of_layer(FULL, [100, 400]) == pytest.approx(2 + 32)


def test_candidates_that_no_text_gains_from_are_not_run() -> None:
    useful, useless = worthwhile(timings([3, 6, 12], [1, 4, 16]), [SETTINGS], [100, 250])
    assert not useful and [each.exact_below for each in useless] == [300]
    useful, useless = worthwhile(timings([3, 6, 12], [1, 4, 16]), [SETTINGS], [100, 350])
    assert [each.exact_below for each in useful] == [300] and not useless
    assert worthwhile(timings([30, 60, 120], [100, 100, 200]), [SETTINGS], [100, 350])[0] == []


def test_the_most_common_settings_are_the_base() -> None:
    few, many = settings_of([{"method": "refined-clustered", "topk": 8}, {"method": "refined-clustered", "topk": 99}])
    config = config_of({0: few, 1: many, 2: FULL, 4: many, 5: SETTINGS}, shared=False)
    assert config.method == "refined-clustered" and config.topk == 99
    assert config.layers[0] == {"topk": 8} and config.layers[2] == {"method": "full"}
    assert {index: config.for_layer(index) for index in (0, 1, 4, 5)} == {0: few, 1: many, 4: many, 5: SETTINGS}
    assert config_of({0: FULL, 1: FULL}, shared=False).method == "full"
