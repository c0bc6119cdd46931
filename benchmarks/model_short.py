"""What patching costs where it cannot help: whole passes of 16 to 128 tokens, patched with `exact_below`, against the unpatched model.

`exact_below` is the crossover: the first length at which the method's layer is faster than PyTorch's SDPA on this machine, from
standard normal q, k, v of the shape, B = 1. Below it the patched model runs exact attention by our own operator, inside the patch.

    overhead = median seconds patched / median seconds unpatched − 1

The unpatched model takes part twice: the overhead of its second copy is what the machine's noise makes of nothing.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from machine import take_turns
from model_measures import operator
from model_shapes import FULL, METHODS, inputs, with_method
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

AGAIN = "full again"
PATCHED = ("improved-clustered", "refined-clustered")
LENGTHS = (16, 32, 48, 64, 96, 128)
TURNS = 51
CROSSOVER_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def crossover(method: str, heads: int, head_size: int, seconds: float = 0.3) -> dict[str, Any]:
    """Where one layer of a method becomes faster than SDPA, each length measured for about so many seconds.

    Returns:
        `exact_below`, the first of `CROSSOVER_LENGTHS` where it is, or one more than the last; and `layer`: for each length up to
        there median seconds of `sdpa` and of the `operator`.
    """
    layer: dict[str, dict[str, float]] = {}
    config = METHODS[method]
    assert config is not None
    for tokens in CROSSOVER_LENGTHS:
        generator = torch.Generator().manual_seed(tokens)
        shape = (1, tokens, heads, head_size)
        q, k, v = (torch.randn(shape, generator=generator).transpose(1, 2) for _ in range(3))
        runs = {"sdpa": partial(scaled_dot_product_attention, q, k, v), "operator": operator(config, q, k, v, None)}
        row = {name: median(values) / 1000 for name, values in take_turns(runs, seconds).items()}
        layer[str(tokens)] = row
        if row["operator"] < row["sdpa"]:
            return {"exact_below": tokens, "layer": layer}
    return {"exact_below": CROSSOVER_LENGTHS[-1] + 1, "layer": layer}


def short_encoders(encoder: PreTrainedModel, exact_below: Mapping[str, int]) -> dict[str, PreTrainedModel]:
    """The unpatched encoder twice, and one for each method with its `exact_below`; all on the same weights."""
    encoders = {FULL: encoder, AGAIN: with_method(encoder, None)}
    for method, least in exact_below.items():
        config = METHODS[method]
        assert config is not None
        encoders[method] = with_method(encoder, dataclasses.replace(config, exact_below=least))
    return encoders


def measure_short(
    encoders: Mapping[str, PreTrainedModel], tokens: int, batch: int, padding: str, seconds: float, turns: int = TURNS
) -> dict[str, Any]:
    """Passes in turns, at least `turns` each; for all but full the overhead with the quartiles of the turns' own overheads.

    The first length tells the encoders' lazy parts apart from their work, so every run is warmed up by one pass that is not counted.
    """
    batch_of = inputs(encoders[FULL].config, tokens, batch, padding)
    times = take_turns({name: partial(encoder, **batch_of) for name, encoder in encoders.items()}, seconds, least=turns)
    full = times[FULL]
    rows: dict[str, Any] = {}
    for name, values in times.items():
        rows[name] = {"median_ms": median(values), "turns": len(values)}
        if name != FULL:
            low, _, high = quantiles([one / other - 1 for one, other in zip(values, full, strict=True)])
            rows[name] |= {"overhead": median(values) / median(full) - 1, "quartiles": [low, high]}
    return rows
