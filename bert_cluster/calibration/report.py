"""Puts a decision into the words and numbers of a `Calibration`."""

from collections.abc import Mapping, Sequence

from bert_cluster.calibration import metrics
from bert_cluster.calibration.candidates import config_of
from bert_cluster.calibration.decision import Decision
from bert_cluster.calibration.planner import Setting
from bert_cluster.calibration.result import Calibration, HeldOut, LayerChoice, Point
from bert_cluster.calibration.search import front
from bert_cluster.calibration.session import Session
from bert_cluster.calibration.texts import Part
from bert_cluster.calibration.timing import Timings

_DISTURBED = 1.5
_FEW = 12  # texts from which intervals say something


def result_of(
    session: Session,
    metric: str,
    target: float,
    decision: Decision,
    parts: Mapping[str, Part],
    timings: Timings,
    seconds: tuple[float, float],
    seed: int,
    notes: Sequence[str],
    found: Sequence[Sequence[Setting]],
) -> Calibration:
    """The result; the arguments are what `api.run` has at its end, `found` the options of each layer, full the first."""
    full_seconds = [own[0].option.seconds for own in found]
    rows = [
        _row(None if session.shared else layer, setting, full)
        for layer, setting, full in zip(session.layers, decision.settings, full_seconds, strict=True)
    ]
    choice = decision.choice(session.layers)
    reached = any(each.method != "full" for each in choice.values())
    lengths = [length for part in parts.values() for length in part.lengths]
    counts = {
        "calibration": len(parts["calibration"].lengths),
        "held_out": len(lengths) - len(parts["calibration"].lengths),
    }
    everything = sum(full_seconds)
    curve = [
        Point(error, time / everything if everything else 1.0, (error, time) == (decision.error, decision.seconds))
        for error, time in decision.tried
    ]
    return Calibration(
        config=config_of(choice, shared=session.shared),
        metric=metric,
        target=float(target),
        reached=reached,
        error=decision.error,
        held_out=_held_out(metric, decision, seed),
        layers=tuple(rows),
        curve=tuple(curve),
        predicted=_predicted(metric, found, everything),
        timings=timings,
        model_seconds={"full": seconds[0], "chosen": seconds[1]},
        texts={**counts, "shortest": min(lengths), "longest": max(lengths)},
        notes=(
            *_held_out_notes(metric, target, decision),
            *_notes(decision, reached, lengths),
            *_timing_notes(timings),
            *notes,
        ),
    )


def _predicted(metric: str, found: Sequence[Sequence[Setting]], full_seconds: float) -> tuple[Point, ...]:
    points = []
    for each in front([[setting.option for setting in own] for own in found]):
        error = metrics.error_of_cost(metric, each.cost)
        if error is not None and full_seconds:
            points.append(Point(error, each.seconds / full_seconds, False))
    return tuple(points)


def _row(layer: int | None, setting: Setting, full_seconds: float) -> LayerChoice:
    settings = setting.settings
    return LayerChoice(
        layer=layer,
        method=settings.method,
        budgets=settings.budgets(),
        exact_below=settings.exact_below,
        error=setting.error,
        seconds=setting.option.seconds,
        full_seconds=full_seconds,
        reason=setting.reason,
    )


def _held_out(metric: str, decision: Decision, seed: int) -> HeldOut | None:
    if decision.held_out is None:
        return None
    values = decision.held_out.values
    low, high = metrics.interval(metric, values, seed) or (None, None)
    return HeldOut(decision.held_out.value, low, high, len(values))


def _held_out_notes(metric: str, target: float, decision: Decision) -> list[str]:
    if decision.held_out is None or metrics.reaches(metric, decision.held_out.value, target):
        return []
    return ["The held-out texts miss the target by what the draw of so few texts explains. More texts tell it better."]


def _notes(decision: Decision, reached: bool, lengths: Sequence[int]) -> list[str]:
    notes = list(decision.notes)
    reasons = {each.reason for each in decision.settings}
    if not reached:
        help_ = "Longer texts leave more to gain" + (
            "."
            if reasons == {"no budget is faster for these texts on this machine"}
            else ", a wider target allows more."
        )
        notes.append(f"Every layer stays full: there is nothing to patch. {help_}")
    elif decision.settings and all(each.error is None for each in decision.settings):
        notes.append(
            f"No text is clustered: up to {max(lengths)} tokens exact attention by the operators is the fastest choice within "
            f"the target. Longer texts leave more to gain."
        )
    if len(lengths) < _FEW:
        notes.append(f"{len(lengths)} texts say little about others. Give 32 or more.")
    if reached:
        notes.append(f"The promise is for texts like these: {min(lengths)} to {max(lengths)} tokens.")
    return notes


def _timing_notes(timings: Timings) -> list[str]:
    spread = timings.machine.get("spread", 1.0)
    return [
        f"The timings were disturbed (median {spread:.1f} times the least). Calibrate on a machine that does nothing else."
    ] * (spread > _DISTURBED)
