"""Seconds of one attention layer on this machine, by length and settings: measured once, then looked up."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
import transformers
from torch import Tensor

import cuda_ops
from bert_cluster.attention import run_layer
from bert_cluster.calibration.candidates import FULL, name_of
from bert_cluster.calibration.session import Session
from bert_cluster.config import LayerSettings
from bert_cluster.patching import head_size
from bert_cluster.planes import random_planes
from bert_cluster.processor import processor_name

OWN_EXACT = "exact"  # the operators' exact path, which rows below exact_below take
SHORTEST = 32
_BEYOND = 2  # doublings beyond the longest text in which a crossover is looked for
_TOKENS = 1024  # of the batch that is timed
_SECONDS, _LEAST, _MOST = 0.1, 3, 15  # per entry and length; how often at least and at most


@dataclass(frozen=True)
class Timings:
    """Seconds of one layer for one text.

    Attributes:
        seconds: "full" (SDPA), "exact" (the operators' exact path) and each candidate by `name_of` -> tokens -> seconds.
        machine: where they were measured: shapes, dtype, device, threads, versions; `spread` is the median over the least
            of repeated runs, near 1 on a machine that does nothing else.
    """

    seconds: Mapping[str, Mapping[int, float]]
    machine: Mapping[str, Any]

    def at(self, name: str, length: int) -> float:
        """Seconds for a text of so many tokens: between measured lengths as a power of the length, in proportion beyond."""
        points = sorted(self.seconds[name].items())
        lengths, values = [point[0] for point in points], [point[1] for point in points]
        if length > lengths[-1]:
            return values[-1] * length / lengths[-1]
        return float(numpy.exp(numpy.interp(math.log(length), numpy.log(lengths), numpy.log(values))))

    def crossover(self, settings: LayerSettings) -> int | None:
        """The length from which on these settings are faster than the operators' exact path.

        Returns:
            0 where they are at every measured length, None where they are not at the longest.
        """
        exact, ours = self.seconds[OWN_EXACT], self.seconds[name_of(settings)]
        lengths = sorted(set(exact) & set(ours))
        slower = [length for length in lengths if ours[length] >= exact[length]]
        if not slower:
            return 0
        if slower[-1] == lengths[-1]:
            return None
        below, above = slower[-1], lengths[lengths.index(slower[-1]) + 1]
        behind, ahead = math.log(ours[below] / exact[below]), math.log(exact[above] / ours[above])
        share = behind / (behind + ahead)
        return min(above, max(below + 1, math.ceil(round(below * (above / below) ** share, 6))))

    def of_layer(self, settings: LayerSettings, lengths: Sequence[int]) -> float:
        """Seconds of one layer for texts of these lengths, those below exact_below on the exact path."""
        if settings.method == "full":
            return sum(self.at("full", length) for length in lengths)
        name = name_of(replace(settings, exact_below=0))
        return sum(self.at(OWN_EXACT if length < settings.exact_below else name, length) for length in lengths)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        seconds = {name: {str(length): value for length, value in own.items()} for name, own in self.seconds.items()}
        return {"seconds": seconds, "machine": dict(self.machine)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Timings":
        """The inverse of `to_dict`."""
        seconds = {
            name: {int(length): float(value) for length, value in own.items()} for name, own in data["seconds"].items()
        }
        return cls(seconds, data["machine"])


def machine_of(session: Session) -> dict[str, Any]:
    """What timings depend on besides length and settings."""
    encoder = session.encoder
    config: Any = encoder.config
    heads = int(config.num_attention_heads)
    parameter = next(encoder.parameters())
    device = parameter.device
    return {
        "heads": heads,
        "key_heads": int(getattr(config, "num_key_value_heads", None) or heads),
        "head_size": head_size(session.modules[session.layers[0]]),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "backend": cuda_ops.backend_for(device.type, parameter.dtype),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def measure(
    session: Session,
    candidates: Sequence[LayerSettings],
    longest: int,
    tick: Callable[[], None] = lambda: None,
) -> Timings:
    """Time full attention, the exact path and the candidates at powers of two up to `longest`, and at `longest`.

    Where a candidate is still slower than the exact path at the longest text, both are timed at up to two doublings more, so
    that exact_below can be told. The least of several runs counts: what else the machine does only adds.

    Args:
        session: tells shapes, dtype and device.
        candidates: settings with exact_below 0.
        longest: tokens of the longest text.
        tick: called after each length.
    """
    machine = machine_of(session)
    device = next(session.encoder.parameters()).device
    dtype = getattr(torch, machine["dtype"])
    entries = {"full": FULL, OWN_EXACT: None, **{name_of(each): each for each in candidates}}
    seconds: dict[str, dict[int, float]] = {name: {} for name in entries}
    disturbances: list[float] = []

    def time_at(length: int, names: Sequence[str]) -> None:
        rows = max(1, _TOKENS // length)
        random = torch.Generator().manual_seed(length)
        heads = (machine["heads"], machine["key_heads"], machine["key_heads"])
        shapes = [(rows, length, each, machine["head_size"]) for each in heads]
        made = (torch.randn(shape, generator=random).to(device, dtype) for shape in shapes)
        q, k, v = (each.transpose(1, 2) for each in made)  # (B, H, N, D) with the strides that models give
        runs = {name: _call(entries[name], q, k, v) for name in names}
        least, spread = _least_seconds(runs, device)
        disturbances.append(spread)
        for name, value in least.items():
            seconds[name][length] = value / rows
        tick()

    powers = [2**power for power in range(5, 31) if 2**power < longest]
    for length in [*powers, longest]:
        time_at(length, list(entries))
    length, timings = longest, Timings(seconds, machine)
    for _ in range(_BEYOND):
        slow = [name_of(each) for each in candidates if timings.crossover(each) is None]
        if not slow or machine["backend"] == "reference":
            break
        length = 2 * max(length, SHORTEST)
        time_at(length, [OWN_EXACT, *slow])
    return Timings(seconds, {**machine, "spread": round(sorted(disturbances)[len(disturbances) // 2], 3)})


def _call(settings: LayerSettings | None, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Any]:
    mask = torch.ones(q.shape[0], q.shape[2], dtype=torch.bool, device=q.device)
    if settings is None:
        return lambda: cuda_ops.full_attention(q, k, v, mask)
    planes = random_planes(settings.bits, q.shape[-1], settings.seed).to(q.device) if settings.hashes else None
    return lambda: run_layer(q, k, v, None if settings.method == "full" else mask, settings, planes, None)


@torch.inference_mode()
def _least_seconds(runs: Mapping[str, Callable[[], Any]], device: torch.device) -> tuple[dict[str, float], float]:
    """Least seconds of each, taken in turns so that a disturbance meets all; and the typical median over the least."""
    slowest = max(_seconds(run, device) for run in runs.values())  # also the warm-up
    rounds = min(_MOST, max(_LEAST, int(_SECONDS / max(slowest, 1e-9))))
    taken = [{name: _seconds(run, device) for name, run in runs.items()} for _ in range(rounds)]
    sorted_ = {name: sorted(each[name] for each in taken) for name in runs}
    spread = sum(own[rounds // 2] / own[0] for own in sorted_.values()) / len(runs)
    return {name: own[0] for name, own in sorted_.items()}, spread


def synchronize(device: torch.device) -> None:
    """Wait for what was launched on a device other than the CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start
