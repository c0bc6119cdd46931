"""What happens when the held-out texts disagree, with a made-up laboratory."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from bert_cluster.calibration.candidates import FULL
from bert_cluster.calibration.decision import Decision, decide
from bert_cluster.calibration.laboratory import Reading
from bert_cluster.calibration.planner import Setting
from bert_cluster.calibration.search import Option
from bert_cluster.config import LayerSettings

COARSE, FINE = LayerSettings("clustered", clusters=2), LayerSettings("clustered", clusters=9)
ERRORS = {FULL: 0.0, COARSE: 0.06, FINE: 0.01}
OPTIONS = [
    Setting(FULL, Option(0.0, 3.0), None, "full"),
    Setting(COARSE, Option(0.06**2, 1.0), 0.06),
    Setting(FINE, Option(0.01**2, 2.0), 0.01),
]


def decision(held_out: Callable[[float], Sequence[float]] | None, target: float = 0.1) -> Decision:
    """Two layers whose squared errors add up; `held_out` makes the held-out texts' errors of the calibration error."""

    def read(part: str, choice: Any) -> Reading:
        error = sum(ERRORS[settings] ** 2 for settings in choice.values()) ** 0.5
        values = tuple(held_out(error)) if part == "held-out" and held_out else (error,) * 4
        return Reading(values, tuple(value**2 for value in values))

    parts = {"calibration": None, **({} if held_out is None else {"held-out": None})}
    laboratory: Any = SimpleNamespace(metric="hidden", session=SimpleNamespace(layers=(0, 1)), parts=parts, read=read)
    return decide(laboratory, [OPTIONS, OPTIONS], target, 0, lambda: None)


def methods(found: Decision) -> set[int]:
    return {setting.settings.clusters for setting in found.settings}


def test_held_out_texts_that_agree_change_nothing() -> None:
    for held_out in (None, lambda error: (error,) * 4, lambda error: (0.5 * error, 1.9 * error, 1.4 * error)):
        found = decision(held_out)
        assert methods(found) == {COARSE.clusters} and not found.notes
        assert found.error == pytest.approx(0.0849, abs=1e-4) and found.seconds == 2.0


def test_held_out_texts_that_miss_the_target_tighten_the_search() -> None:
    found = decision(lambda error: (1.3 * error, 1.35 * error, 1.4 * error))
    assert found.held_out is not None and found.held_out.value <= 0.1
    assert sorted(setting.settings.clusters for setting in found.settings) == [COARSE.clusters, FINE.clusters]
    (note,) = found.notes
    assert "missed the target on the held-out texts (0.1146)" in note and "not unseen any more" in note


def test_held_out_texts_that_always_miss_leave_every_layer_full() -> None:
    found = decision(lambda error: (0.11, 0.11, 0.11) if error else (0.0,) * 3)
    assert methods(found) == {0} and found.error == 0 and found.seconds == 6.0
    assert found.notes[-1] == "The held-out texts miss the target whatever was tried: every layer stays full."


def test_calibration_texts_keep_a_distance_to_the_target() -> None:
    assert methods(decision(None, target=0.0849 / 0.91)) != {COARSE.clusters}
    assert methods(decision(None, target=0.0849 / 0.89)) == {COARSE.clusters}
