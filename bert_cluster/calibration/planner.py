"""From measured times and errors to the options of each layer, and from an assignment back to settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bert_cluster.calibration.candidates import FULL, name_of
from bert_cluster.calibration.laboratory import Laboratory, Reading
from bert_cluster.calibration.metrics import allowance_of, reaches
from bert_cluster.calibration.search import Option
from bert_cluster.calibration.timing import OWN_EXACT, Timings
from bert_cluster.config import ClusterConfig, LayerSettings

_ENOUGH = 20  # an error this many times smaller than a layer's share of the target needs no dearer candidate
_AGREEMENT_COST = 1e-4  # nats that change no decision


@dataclass(frozen=True)
class Setting:
    """One option of one layer, with the settings behind it."""

    settings: LayerSettings
    option: Option
    error: float | None  # of this layer alone; None: no text clusters
    reason: str | None = None


def worthwhile(
    timings: Timings, candidates: Sequence[LayerSettings], lengths: Sequence[int]
) -> tuple[list[LayerSettings], list[LayerSettings]]:
    """The candidates with their measured exact_below: those that some text gains from, fastest first, and the others."""
    full = timings.of_layer(FULL, lengths)
    useful: list[LayerSettings] = []
    useless: list[LayerSettings] = []
    for each in candidates:
        crossover = timings.crossover(each)
        bound = max(timings.seconds[name_of(each)]) + 1 if crossover is None else crossover
        settings = replace(each, exact_below=bound)
        gains = bound <= max(lengths) and timings.of_layer(settings, lengths) < full
        (useful if gains else useless).append(settings)
    return sorted(useful, key=lambda each: timings.of_layer(each, lengths)), useless


def settings_of_layer(
    laboratory: Laboratory,
    layer: int,
    useful: Sequence[LayerSettings],
    useless: Sequence[LayerSettings],
    timings: Timings,
    target: float,
    tick: Callable[[], None],
) -> list[Setting]:
    """The options of a layer: full, exact by the operators where that is faster and safe, and the candidates.

    Each candidate runs in this layer alone, the fastest first, until one is far better than needed.
    """
    lengths = laboratory.parts["calibration"].lengths
    metric, layers, repeats = laboratory.metric, len(laboratory.session.layers), laboratory.session.repeats
    enough = (_AGREEMENT_COST if metric == "agreement" else allowance_of(metric, target) / _ENOUGH) / layers
    tested: list[Setting] = []
    for number, settings in enumerate(useful):
        reading = laboratory.read("calibration", {layer: replace(settings, exact_below=0)})
        reading = _exact_for_short(reading, lengths, settings.exact_below, metric)
        cost = sum(reading.costs) / len(reading.costs)
        seconds = repeats * timings.of_layer(settings, lengths)
        tested.append(Setting(settings, Option(cost, seconds), reading.value))
        tick()
        if cost <= enough:
            for _ in useful[number + 1 :]:
                tick()
            break
    passing = [each for each in tested if each.error is not None and reaches(metric, each.error, target)]
    found = [_full(timings, lengths, repeats, bool(passing), bool(tested)), *passing]
    exact = _exact_option(timings, lengths, repeats, passing, useless)
    if exact is not None and exact.option.seconds < found[0].option.seconds:
        found.append(exact)
    return found


def _full(timings: Timings, lengths: Sequence[int], repeats: int, passing: bool, tested: bool) -> Setting:
    reason = (
        "the other layers use up the target"
        if passing
        else "no budget reaches the target"
        if tested
        else "no budget is faster for these texts on this machine"
    )
    return Setting(FULL, Option(0.0, repeats * timings.of_layer(FULL, lengths)), None, reason)


def _exact_option(
    timings: Timings,
    lengths: Sequence[int],
    repeats: int,
    passing: Sequence[Setting],
    useless: Sequence[LayerSettings],
) -> Setting | None:
    """The operators' exact path for every text seen; longer ones get budgets that are not known to miss the target."""
    default = ClusterConfig().for_layer(0)
    if passing:
        settings = min(passing, key=lambda each: each.option.cost).settings
    elif useless:
        settings = next((each for each in useless if replace(each, exact_below=0) == default), useless[0])
    else:
        return None
    settings = replace(settings, exact_below=max(settings.exact_below, max(lengths) + 1))
    seconds = repeats * sum(timings.at(OWN_EXACT, length) for length in lengths)
    reason = f"exact for all of these texts, by the operators; {'calibrated' if passing else 'not calibrated'} beyond"
    return Setting(settings, Option(0.0, seconds), None, reason)


def _exact_for_short(reading: Reading, lengths: Sequence[int], exact_below: int, metric: str) -> Reading:
    """The reading with the texts below exact_below as they come out: exact."""
    nothing = 1.0 if metric == "agreement" else 0.0
    values = [nothing if n < exact_below else value for value, n in zip(reading.values, lengths, strict=True)]
    costs = [0.0 if n < exact_below else cost for cost, n in zip(reading.costs, lengths, strict=True)]
    return Reading(tuple(values), tuple(costs))
