"""Runs the model with one assignment of settings after the other and compares it with full attention."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bert_cluster.calibration.candidates import name_of
from bert_cluster.calibration.metrics import chooses_among_texts, compare, decides_by_token, read
from bert_cluster.calibration.progress import Progress
from bert_cluster.calibration.session import Session
from bert_cluster.calibration.texts import Part
from bert_cluster.calibration.timing import synchronize
from bert_cluster.config import LayerSettings
from bert_cluster.errors import CalibrationError

Choice = Mapping[int, LayerSettings]  # layer -> settings; layers that are not named run exact


@dataclass(frozen=True)
class Reading:
    """The metric for each text of a part, in the order of its batches, and the additive cost of each."""

    values: tuple[float, ...]
    costs: tuple[float, ...]

    @property
    def value(self) -> float:
        """The mean over texts."""
        return sum(self.values) / len(self.values)


class Laboratory:
    """Measures choices, each once: what is stored is not run again.

    Args:
        session: the opened model.
        metric: one of `metrics.METRICS`.
        parts: calibration texts, and held-out ones if there are.
        progress: where readings are kept.
    """

    def __init__(self, session: Session, metric: str, parts: Mapping[str, Part], progress: Progress):
        self.session, self.metric, self.parts, self.progress = session, metric, parts, progress
        self._full: dict[str, list[list[Tensor]]] = {}

    def check_head(self) -> None:
        """Whether the model has what the metric compares, on one batch; raises CalibrationError before anything long runs."""
        self.session.apply({})
        read(self.metric, self.session.encoder, self.parts["calibration"].batches[-1].inputs)

    def read(self, part: str, choice: Choice) -> Reading:
        """The metric of a choice against full attention on the same batches."""
        if all(settings.method == "full" for settings in choice.values()):
            texts = len(self.parts[part].lengths)
            return Reading((1.0 if self.metric == "agreement" else 0.0,) * texts, (0.0,) * texts)
        key = f"{part} | {key_of(choice)}"
        stored = self.progress.get(key)
        if stored is None:
            stored = self._measure(part, choice)
            self.progress.put(key, stored)
        values, costs = ([float(number) for number in stored[name]] for name in ("values", "costs"))
        return Reading(tuple(values), tuple(costs))

    def seconds(self, part: str, choice: Choice, rounds: int = 2) -> tuple[float, float]:
        """Seconds of the whole model with full attention and with the choice: the least of some rounds in turns."""
        key = f"seconds | {part} | {key_of(choice)}"
        stored = self.progress.get(key)
        if stored is None:
            taken = [(self._forward_seconds(part, {}), self._forward_seconds(part, choice)) for _ in range(rounds)]
            stored = [min(pair[0] for pair in taken), min(pair[1] for pair in taken)]
            self.progress.put(key, stored)
        return float(stored[0]), float(stored[1])

    def _measure(self, part: str, choice: Choice) -> dict[str, list[str]]:
        full = self._full_outputs(part)
        self.session.apply(choice)
        by_token = decides_by_token(self.session.encoder)
        pairs = []
        for batch, expected in zip(self.parts[part].batches, full, strict=True):
            ours = read(self.metric, self.session.encoder, batch.inputs)
            pairs += [compare(self.metric, *each, by_token=by_token) for each in zip(expected, ours, strict=True)]
        self.session.check_calls()
        # as texts: JSON has no infinity
        return {"values": [repr(value) for value, _ in pairs], "costs": [repr(cost) for _, cost in pairs]}

    def _full_outputs(self, part: str) -> list[list[Tensor]]:
        if part not in self._full:
            self.session.apply({})
            outputs = [read(self.metric, self.session.encoder, batch.inputs) for batch in self.parts[part].batches]
            if any(row.isnan().any() for rows in outputs for row in rows):
                raise CalibrationError(
                    "The model gives NaN with full attention, so there is nothing to compare with. Check weights and dtype."
                )
            self._full[part] = outputs
        return self._full[part]

    @torch.inference_mode()
    def _forward_seconds(self, part: str, choice: Choice) -> float:
        self.session.apply(choice)
        encoder = self.session.encoder
        run = encoder.base_model if chooses_among_texts(encoder) else encoder  # such a head takes several texts at once
        start = time.perf_counter()
        for batch in self.parts[part].batches:
            run(**batch.inputs)
        synchronize(encoder.device)
        return time.perf_counter() - start


def key_of(choice: Choice) -> str:
    """A choice as text: full layers are left out."""
    named = [f"{index}: {name_of(each)}" for index, each in sorted(choice.items()) if each.method != "full"]
    return "; ".join(named) or "full"
