"""The search on tables: against trying everything, and its loop against made-up models."""

import itertools
import math

import numpy
import pytest

from bert_cluster.calibration import search as module
from bert_cluster.calibration.search import Assignment, Option, Verdict, cheapest, front, search, total

Table = list[list[Option]]


def table(layers: int, options: int, seed: int) -> Table:
    """Random costs and seconds, with full (cost 0, dearest) first; coarse, so that there are ties."""
    random = numpy.random.RandomState(seed)
    rows = []
    for _ in range(layers):
        costs, seconds = random.randint(1, 20, options) / 8, random.randint(1, 12, options) / 4
        pairs = zip(costs, seconds, strict=True)
        rows.append([Option(0.0, 3.5), *(Option(float(cost), float(time)) for cost, time in pairs)])
    return rows


def by_trying(options: Table, allowance: float) -> Option:
    """Least seconds within the allowance, and the least cost at those seconds."""
    everything = itertools.product(*(range(len(own)) for own in options))
    fitting = [each for places in everything if (each := total(options, places)).cost <= allowance]
    return min(fitting, key=lambda each: (each.seconds, each.cost))


@pytest.mark.parametrize("seed", range(12))
def test_cheapest_is_what_trying_everything_finds(seed: int) -> None:
    options = table(layers=2 + seed % 4, options=3 + seed % 3, seed=seed)
    for allowance in (0.0, 0.2, 1.0, 2.5, 5.0, math.inf):
        assert total(options, cheapest(options, allowance)) == by_trying(options, allowance)


def test_a_thinned_frontier_stays_within_the_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    options = table(layers=9, options=6, seed=3)
    exact = total(options, cheapest(options, 4.0))
    monkeypatch.setattr(module, "FRONTIER", 8)
    thinned = total(options, cheapest(options, 4.0))
    assert thinned.cost <= 4.0
    assert exact.seconds <= thinned.seconds < total(options, (0,) * 9).seconds


def test_ties_go_to_the_earlier_option() -> None:
    options = [[Option(0.0, 2.0), Option(1.0, 1.0), Option(1.0, 1.0)]] * 2
    assert cheapest(options, 1.0) in ((0, 1), (1, 0))
    assert cheapest(options, 2.0) == (1, 1)
    assert {cheapest(options, 1.0) for _ in range(5)} == {cheapest(options, 1.0)}


def test_the_front_goes_from_no_cost_to_the_fastest() -> None:
    options = table(layers=5, options=6, seed=4)
    points = front(options)
    assert points[0].cost == 0 and points[-1].seconds == by_trying(options, math.inf).seconds
    assert all(a.cost < b.cost and a.seconds > b.seconds for a, b in itertools.pairwise(points))


def judge_by(options: Table, factor: float, target: float, asked: list[Assignment]):
    """A model in which errors add up to `factor` times what the table says."""

    def judge(assignment: Assignment) -> Verdict:
        asked.append(assignment)
        measured = factor * total(options, assignment).cost
        return Verdict(measured <= target, measured / target)

    return judge


@pytest.mark.parametrize("factor", [0.05, 0.3, 1.0, 3.0, 40.0])
def test_the_allowance_is_corrected_by_what_is_measured(factor: float) -> None:
    options = table(layers=5, options=6, seed=5)
    asked: list[Assignment] = []
    found = search(options, 3.0, judge_by(options, factor, 3.0, asked), steps=16)
    assert found is not None
    assert factor * total(options, found).cost <= 3.0
    assert total(options, found).seconds <= 1.1 * by_trying(options, 3.0 / factor).seconds
    assert len(asked) == len(set(asked)) <= 17


@pytest.mark.parametrize("seed", range(5))
def test_a_metric_without_a_ratio_is_bracketed(seed: int) -> None:
    options = table(layers=4, options=9, seed=seed)
    found = search(options, math.inf, lambda a: Verdict(total(options, a).cost <= 1.5, None), steps=16)
    assert found is not None
    assert total(options, found).cost <= 1.5
    assert total(options, found).seconds <= 1.05 * by_trying(options, 1.5).seconds


def test_the_limit_holds_whatever_the_judge_says() -> None:
    options = table(layers=5, options=6, seed=2)
    found = search(options, math.inf, lambda _: Verdict(True, 0.0), limit=1.25)
    assert found is not None
    assert total(options, found).cost <= 1.25


def test_nothing_within_reach_is_full_and_full_missing_is_none() -> None:
    options = table(layers=3, options=4, seed=1)
    assert search(options, 3.0, lambda a: Verdict(total(options, a).cost == 0, 100.0)) == (0, 0, 0)
    assert search(options, 3.0, lambda _: Verdict(False, 100.0)) is None


def test_infinite_costs_are_never_taken() -> None:
    options = [[Option(0.0, 2.0), Option(math.inf, 1.0), Option(0.5, 1.5)]] * 2
    assert search(options, math.inf, lambda _: Verdict(True, 0.1)) == (2, 2)
