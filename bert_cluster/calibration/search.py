"""The search over tables of costs and seconds: pure, without a model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy

FRONTIER = 20000  # points kept of the best assignments so far; more are thinned out evenly
STEPS = 10
_SEARCHED = 1.05  # a bracket narrower than this factor is not halved again


@dataclass(frozen=True)
class Option:
    """What one choice for one layer costs in error and in seconds; `cost` is 0 for full."""

    cost: float
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """What running an assignment told: whether it reaches the target, and measured cost over allowed cost if known."""

    reached: bool
    overshoot: float | None


Assignment = tuple[int, ...]  # for each layer, the position of its option


def cheapest(options: Sequence[Sequence[Option]], allowance: float) -> Assignment:
    """The assignment of least seconds whose costs sum to at most the allowance.

    By dynamic programming over the assignments that no other beats in both cost and seconds; exact while there are at most
    FRONTIER of them after each layer, and never above the allowance. Ties go to the lower cost, then to the earlier option.

    Args:
        options: for each layer its options; at least one of them with cost 0.
        allowance: at least 0; infinity for none.
    """
    costs, seconds = numpy.zeros(1), numpy.zeros(1)
    steps: list[tuple[numpy.ndarray, numpy.ndarray]] = []
    for own in options:
        added = numpy.array([option.cost for option in own])
        all_costs = (costs[:, None] + added).ravel()
        all_seconds = (seconds[:, None] + numpy.array([option.seconds for option in own])).ravel()
        kept = numpy.flatnonzero(all_costs <= allowance * (1 + 1e-12))
        kept = kept[numpy.lexsort((kept, all_costs[kept], all_seconds[kept]))]
        least = numpy.minimum.accumulate(all_costs[kept])
        better = numpy.r_[True, all_costs[kept][1:] < least[:-1]]
        kept = kept[better]
        if len(kept) > FRONTIER:
            kept = kept[numpy.unique(numpy.linspace(0, len(kept) - 1, FRONTIER).astype(int))]
        steps.append((kept // len(own), kept % len(own)))
        costs, seconds = all_costs[kept], all_seconds[kept]
    place, chosen = 0, []  # sorted by seconds: the first is the fastest
    for origins, picks in reversed(steps):
        chosen.append(int(picks[place]))
        place = int(origins[place])
    return tuple(reversed(chosen))


def total(options: Sequence[Sequence[Option]], assignment: Assignment) -> Option:
    """Cost and seconds of an assignment."""
    taken = [own[place] for own, place in zip(options, assignment, strict=True)]
    return Option(sum(option.cost for option in taken), sum(option.seconds for option in taken))


def front(options: Sequence[Sequence[Option]], points: int = 24) -> list[Option]:
    """What the fastest assignments cost and take, from no cost to the fastest of all, at evenly spaced roots of the cost."""
    highest = _highest(options)
    allowances = [highest * (point / (points - 1)) ** 2 for point in range(points)]
    return list(dict.fromkeys(total(options, cheapest(options, allowance)) for allowance in allowances))


def search(
    options: Sequence[Sequence[Option]],
    allowance: float,
    judge: Callable[[Assignment], Verdict],
    steps: int = STEPS,
    limit: float = math.inf,
) -> Assignment | None:
    """The fastest assignment found that reaches the target when all layers run together.

    The model that costs add up proposes; `judge` decides. The allowance is corrected by what was measured, then its bracket
    (reached below, missed above) is halved.

    Args:
        options: for each layer its options.
        allowance: where to start.
        judge: runs an assignment; called at most `steps` + 1 times, never twice for the same.
        steps: bound on the proposals.
        limit: cost that no assignment may exceed, whatever `judge` says.

    Returns:
        None where even the assignment without any cost misses the target.
    """
    highest = min(_highest(options), limit)
    allowance = min(allowance, highest)
    low, high = 0.0, math.inf
    best: Assignment | None = None
    judged: dict[Assignment, Verdict] = {}
    for _ in range(steps):
        assignment = cheapest(options, allowance)
        cost = total(options, assignment).cost
        if cost == 0:
            break
        if assignment not in judged:
            judged[assignment] = judge(assignment)
            if judged[assignment].reached and (best is None or _faster(options, assignment, best)):
                best = assignment
        verdict = judged[assignment]
        if verdict.reached:
            low = max(low, allowance)
        else:
            high = min(high, cost)
        if low >= highest or (low > 0 and high < low * _SEARCHED):
            break
        allowance = min(highest, _next(low, high, allowance if verdict.reached else cost, verdict))
    if best is None:
        nothing = cheapest(options, 0.0)
        return nothing if judge(nothing).reached else None
    return best


def _highest(options: Sequence[Sequence[Option]]) -> float:
    return sum(max((option.cost for option in own if math.isfinite(option.cost)), default=0.0) for own in options)


def _next(low: float, high: float, tried: float, verdict: Verdict) -> float:
    if low > 0 and math.isfinite(high):
        return math.sqrt(low * high)
    ratio = verdict.overshoot
    if verdict.reached:
        return tried * (4.0 if not ratio else min(16.0, max(1.1, 1 / ratio)))
    return tried / (4.0 if ratio is None or not math.isfinite(ratio) else min(100.0, max(1.2, ratio)))


def _faster(options: Sequence[Sequence[Option]], one: Assignment, other: Assignment) -> bool:
    return total(options, one).seconds < total(options, other).seconds
