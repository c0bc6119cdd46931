"""The assignment of all layers: proposed by the search, run on the calibration texts, confirmed on the held-out ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bert_cluster.calibration import metrics
from bert_cluster.calibration.laboratory import Laboratory, Reading
from bert_cluster.calibration.planner import Setting
from bert_cluster.calibration.search import Assignment, Verdict, search, total
from bert_cluster.config import LayerSettings

_TIGHTENINGS = 3


@dataclass(frozen=True)
class Decision:
    """What was decided, and what was run on the way.

    Attributes:
        settings: the setting of each layer.
        error: the metric on the calibration texts.
        held_out: the metric for each held-out text; None without any.
        tried: (error, seconds) of each assignment that was run on the calibration texts.
        seconds: of the attention of all layers, by the timings.
        notes: what did not go straight.
    """

    settings: tuple[Setting, ...]
    error: float
    held_out: Reading | None
    tried: tuple[tuple[float, float], ...]
    seconds: float
    notes: tuple[str, ...]

    def choice(self, layers: Sequence[int]) -> dict[int, LayerSettings]:
        """Layer index -> settings."""
        return {layer: each.settings for layer, each in zip(layers, self.settings, strict=True)}


def decide(
    laboratory: Laboratory, found: Sequence[Sequence[Setting]], target: float, seed: int, tick: Callable[[], None]
) -> Decision:
    """The fastest assignment that reaches the target on both kinds of texts; every layer full where none does.

    Args:
        laboratory: runs assignments.
        found: for each layer its options, full the first.
        target: of the laboratory's metric.
        seed: of the interval.
        tick: called after each run.
    """
    metric, layers = laboratory.metric, laboratory.session.layers
    options = [[each.option for each in own] for own in found]
    full = tuple(0 for _ in found)
    strict = target if metric == "agreement" else metrics.SAFETY * target
    tried: dict[Assignment, float] = {}
    notes: list[str] = []

    def choice(assignment: Assignment) -> Mapping[int, LayerSettings]:
        taken = zip(layers, found, assignment, strict=True)
        return {layer: own[place].settings for layer, own, place in taken}

    def judge(assignment: Assignment) -> Verdict:
        if assignment not in tried:
            tried[assignment] = laboratory.read("calibration", choice(assignment)).value
            tick()
        value = tried[assignment]
        return Verdict(metrics.reaches(metric, value, strict), metrics.overshoot(metric, value, target))

    def held_out(assignment: Assignment) -> Reading | None:
        return laboratory.read("held-out", choice(assignment)) if "held-out" in laboratory.parts else None

    limit = float("inf")
    for tightening in range(_TIGHTENINGS + 1):
        assignment = search(options, min(limit, metrics.allowance_of(metric, target)), judge, limit=limit)
        if assignment is None:
            notes.append("No settings reach the target with all layers together: every layer stays full.")
            break
        reading = held_out(assignment)
        if reading is None or not _misses(metric, reading, target, seed):
            return _decision(found, assignment, judge, tried, reading, notes)
        used = total(options, assignment).cost
        over = metrics.overshoot(metric, reading.value, target)
        limit = used / (4.0 if over is None else max(1.5, over))
        if used == 0 or tightening == _TIGHTENINGS:
            notes.append("The held-out texts miss the target whatever was tried: every layer stays full.")
            break
        notes.append(
            f"A choice missed the target on the held-out texts ({reading.value:.4g}) by more than sampling explains; "
            f"the search went on below it. The held-out texts are not unseen any more."
        )
    return _decision(found, full, judge, tried, held_out(full), notes)


def _misses(metric: str, reading: Reading, target: float, seed: int) -> bool:
    bounds = metrics.interval(metric, reading.values, seed)
    return metrics.beyond_sampling(metric, reading.value, bounds, target)


def _decision(
    found: Sequence[Sequence[Setting]],
    assignment: Assignment,
    judge: Callable[[Assignment], Verdict],
    tried: dict[Assignment, float],
    held_out: Reading | None,
    notes: Sequence[str],
) -> Decision:
    judge(assignment)
    seconds = {each: _seconds(found, each) for each in tried}
    return Decision(
        settings=tuple(own[place] for own, place in zip(found, assignment, strict=True)),
        error=tried[assignment],
        held_out=held_out,
        tried=tuple((value, seconds[each]) for each, value in tried.items()),
        seconds=seconds[assignment],
        notes=tuple(dict.fromkeys(notes)),
    )


def _seconds(found: Sequence[Sequence[Setting]], assignment: Assignment) -> float:
    return sum(own[place].option.seconds for own, place in zip(found, assignment, strict=True))
