"""What one case of benchmarks/model.py measures: whole passes in turns, the attention in them, and the ceiling by Amdahl.

With T the time of a pass, A the time of the attention of those layers that patching makes clustered (L of them, seen from outside: the
functions that transformers calls for it and, once a pass, for its mask, which SDPA has as N × N booleans where anything is padded), E the same
of layers with a sliding window, which stay exact (0 where there are none), and a the time of the operator alone on q, k, v of clustered
layers, the mean over as many of them as fit into `SAMPLE_BYTES` (one after the other: the same data again and again would be learnt by the
processor, and be faster than any layer of a model):

    rest     R = T_full − A_full − E_full
    share    A_full / T_full
    ceiling  T_full / (R + E + L a)        what the method could reach if nothing but its operator stood in for attention; E is the method's
    speed-up T_full / T
    reached  speed-up / ceiling = (R + E + L a) / T

All of one case in one process, medians of turns. What patching makes of the windows (windows.py) is in the speed-up and in the ceiling.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

from machine import take_turns
from model_shapes import FULL, METHODS
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, bidirectional_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bert_cluster import ClusterConfig
from bert_cluster.attention import run_layer
from bert_cluster.dispatch import NAME
from bert_cluster.families import attention_modules
from bert_cluster.planes import random_planes

SAMPLE_BYTES = 2**30
LEAST_TURNS = 3  # a pass over a long text takes minutes


def replaced_layers(encoder: PreTrainedModel) -> list[nn.Module]:
    """The attention modules that patching makes clustered, patched or not."""
    return [each.module for each in attention_modules(encoder) if each.exempt is None]


def sampled_layers(layers: int, layer_bytes: int) -> set[int]:
    """Places of the layers whose q, k, v are kept: all, or as many as `SAMPLE_BYTES` holds, evenly spread; one at least."""
    count = max(1, min(layers, SAMPLE_BYTES // layer_bytes))
    return {(2 * number + 1) * layers // (2 * count) for number in range(count)}


class Meter:
    """Seconds of the attention and mask functions since the last `reset`, and q, k, v of layers that patching replaces.

    Attributes:
        replaced: seconds in layers that patching replaces, and for their mask.
        others: seconds in layers that stay exact, and for theirs.
        sample: place of a layer -> its (B, H, N, D) each, as the first pass handed them over.
    """

    def __init__(self, encoders: Mapping[str, PreTrainedModel]):
        layers = [replaced_layers(encoder) for encoder in encoders.values()]
        self._layers = len(layers[0])
        self._place = {module: place for one in layers for place, module in enumerate(one)}
        self.sample: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.reset()

    def reset(self) -> None:
        self.replaced = self.others = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same attention function, its time counted."""

        def timed(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
            place = self._place.get(module)
            if place is not None and place in sampled_layers(self._layers, 3 * query.nbytes):
                self.sample.setdefault(place, (query, key, value))
            start = time.perf_counter()
            found = function(module, query, key, value, *rest, **named)
            seconds = time.perf_counter() - start
            if place is not None:
                self.replaced += seconds
            else:
                self.others += seconds
            return found

        return timed

    def around_mask(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same mask function, its time counted: masks of padding alone are those of the layers that patching replaces."""

        def timed(*rest: Any, mask_function: Any = bidirectional_mask_function, **named: Any) -> Any:
            start = time.perf_counter()
            found = function(*rest, mask_function=mask_function, **named)
            seconds = time.perf_counter() - start
            if mask_function is bidirectional_mask_function:
                self.replaced += seconds
            else:
                self.others += seconds
            return found

        return timed


@contextmanager
def metered(meter: Meter) -> Iterator[None]:
    """Attention and mask functions, transformers' for SDPA and ours, go through the meter meanwhile."""
    originals = {name: (ALL_ATTENTION_FUNCTIONS[name], ALL_MASK_ATTENTION_FUNCTIONS[name]) for name in ("sdpa", NAME)}
    for name, (attention, mask) in originals.items():
        AttentionInterface.register(name, meter.around(attention))
        AttentionMaskInterface.register(name, meter.around_mask(mask))
    try:
        yield
    finally:
        for name, (attention, mask) in originals.items():
            AttentionInterface.register(name, attention)
            AttentionMaskInterface.register(name, mask)


class Pass:
    """A forward pass that writes down the attention's seconds of each of its runs."""

    def __init__(self, encoder: PreTrainedModel, inputs: Mapping[str, Tensor], meter: Meter):
        self.encoder, self.inputs, self.meter = encoder, inputs, meter
        self.replaced: list[float] = []
        self.others: list[float] = []

    def __call__(self) -> None:
        self.meter.reset()
        self.encoder(**self.inputs)
        self.replaced.append(self.meter.replaced)
        self.others.append(self.meter.others)


def ceiling(full: float, rest: float, windows: float, layers: int, operator: float) -> float:
    """Amdahl's: how many times faster than full a pass can get whose attention is `layers` runs of the operator, and its windows."""
    return full / (rest + windows + layers * operator)


def measure_case(
    encoders: Mapping[str, PreTrainedModel], inputs: Mapping[str, Tensor], seconds: float
) -> dict[str, Any]:
    """One case: all encoders in turns for about so many seconds, then their operators alone for as long; three turns at least.

    Args:
        encoders: name of the method -> its encoder, all on the same weights; "full" may be missing.
        inputs: with the mask, whose ones are the tokens that count.

    Returns:
        `valid_tokens`, `replaced_layers`, `attention_share`, `windows_share` and `rest_s` (None without full), and `methods`: by name
        what `method_row` gives. Seconds are medians.
    """
    meter = Meter(encoders)
    passes = {name: Pass(encoder, inputs, meter) for name, encoder in encoders.items()}
    with metered(meter):
        times = {
            name: [value / 1000 for value in values]
            for name, values in take_turns(passes, seconds, LEAST_TURNS).items()
        }
    counted = {name: one.replaced[1:] for name, one in passes.items()}
    others = {name: one.others[1:] for name, one in passes.items()}
    operators = operator_seconds(encoders, meter, inputs["attention_mask"].bool(), seconds)
    layers = len(replaced_layers(next(iter(encoders.values()))))
    tokens = int(inputs["attention_mask"].sum())
    full = share = windows_share = rest = None
    if FULL in times:
        full = median(times[FULL])
        turns = list(zip(counted[FULL], others[FULL], times[FULL], strict=True))
        share = median(part / whole for part, _, whole in turns)
        windows_share = median(windows / whole for _, windows, whole in turns)
        rest = median(whole - part - windows for part, windows, whole in turns)
    return {
        "valid_tokens": tokens,
        "replaced_layers": layers,
        "attention_share": share,
        "windows_share": windows_share,
        "rest_s": rest,
        "methods": {
            name: method_row(times[name], counted[name], others[name], operators.get(name), tokens, layers, full, rest)
            for name in encoders
        },
    }


def method_row(
    times: list[float],
    replaced: list[float],
    others: list[float],
    operator: float | None,
    tokens: int,
    layers: int,
    full: float | None,
    rest: float | None,
) -> dict[str, Any]:
    """One method's numbers: seconds of a pass and of the attention in it, tokens/s, and the ratios where full was measured."""
    typical = median(times)
    row: dict[str, Any] = {
        "median_s": typical,
        "least_s": min(times),
        "most_s": max(times),
        "turns": len(times),
        "tokens_per_s": tokens / typical,
        "attention_s": median(replaced),
        "exact_layers_s": median(others),
        "operator_s": operator,
        "times_full": None if full is None else full / typical,
        "ceiling": None,
        "reached": None,
    }
    if full is not None and rest is not None and operator is not None:
        row["ceiling"] = ceiling(full, rest, row["exact_layers_s"], layers, operator)
        row["reached"] = row["times_full"] / row["ceiling"]
    return row


def operator_seconds(
    encoders: Mapping[str, PreTrainedModel], meter: Meter, mask: Tensor, seconds: float
) -> dict[str, float]:
    """Method -> median seconds of its operator alone for one layer, the mean of those that the meter kept; all methods in turns."""
    configs = {name: METHODS[name] for name in encoders if name != FULL}
    runs = {
        name: in_sequence([operator(config, *layer, mask) for layer in meter.sample.values()])
        for name, config in configs.items()
        if config is not None
    }
    return {
        name: median(values) / 1000 / len(meter.sample)
        for name, values in take_turns(runs, seconds, LEAST_TURNS).items()
    }


def in_sequence(runs: list[Callable[[], Tensor]]) -> Callable[[], None]:
    """One run of all."""

    def run() -> None:
        for each in runs:
            each()

    return run


def operator(config: ClusterConfig, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Callable[[], Tensor]:
    """One attention layer on these tensors."""
    settings = config.for_layer(0)
    planes = random_planes(settings.bits, q.shape[-1], settings.seed) if settings.hashes else None
    return partial(run_layer, q, k, v, mask, settings, planes, None)


def expected_seconds(row: Mapping[str, Any], method: str, tokens: float, batch: float) -> float:
    """How long a pass would take, from a measured one: the attention of full grows with N² B, everything else with N B.

    From a text too short for blocks the windows of a patched model are taken for a third quicker than they are.

    Args:
        row: what `method_row` gave.
        tokens: how many times the measured tokens, N.
        batch: how many times the measured batch, B.
    """
    exact = row["exact_layers_s"] + row["attention_s"] if method == FULL else 0
    return (row["median_s"] - exact) * tokens * batch + exact * tokens**2 * batch


def expected_growth(row: Mapping[str, Any], method: str, tokens: float, batch: float) -> float | None:
    """The same for the peak memory; all of full's is taken to grow with N² B, as a mask of N × N does."""
    growth = row["peak_growth_bytes"]
    if growth is None:
        return None
    return growth * tokens * batch * (tokens if method == FULL else 1)
