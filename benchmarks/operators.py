"""The operators against PyTorch's exact attention on this machine: correct first, then timed.

    python benchmarks/operators.py [--tokens 512 2048 8192] [--threads 2] [--output benchmarks/results/operators-cpu.json]

One layer, float32, B = 1, H = 12, D = 64, all tokens valid, standard normal inputs. Each operator is first compared with exact attention
where it must equal it (all keys exact); a wrong result is not timed. Then the operators take turns, and medians, extremes and ratios to
`torch.nn.functional.scaled_dot_product_attention` are written down with the machine, the versions and the command.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import command, environment, summary, take_turns
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bert_cluster import ClusterConfig
from bert_cluster.attention import run_layer
from bert_cluster.planes import random_planes

HEADS, HEAD_SIZE = 12, 64
SHORT: dict[str, Any] = {**ClusterConfig().for_layer(0).budgets_at(0)}  # what the default takes for short texts
# What is timed: the paper's budgets, the default, which grows with the text, and the default for short texts at any length.
CONFIGS = {
    "improved-clustered": ClusterConfig(method="improved-clustered"),
    "refined-clustered": ClusterConfig(),
    "refined-clustered, short texts' budgets": ClusterConfig(**SHORT),
}


def inputs(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as transformers hands them over: (B, H, N, D) views of (B, N, H, D)."""
    generator = torch.Generator().manual_seed(tokens)
    shape = (1, tokens, HEADS, HEAD_SIZE)
    q, k, v = (torch.randn(shape, generator=generator).transpose(1, 2) for _ in range(3))
    return q, k, v


def layer(config: ClusterConfig) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """One attention layer."""
    settings = config.for_layer(0)
    planes = random_planes(settings.bits, HEAD_SIZE, settings.seed) if settings.bits else None
    return lambda q, k, v: run_layer(q, k, v, None, settings, planes, None)


def check(config: ClusterConfig) -> None:
    """With every key exact the method must equal exact attention to rounding."""
    q, k, v = inputs(331)
    exact = layer(dataclasses.replace(config, topk=331))
    error = (exact(q, k, v) - scaled_dot_product_attention(q, k, v)).abs().max().item()
    if not error < 1e-5:
        sys.exit(f"{config.method} is off by {error:.1e} where it must be exact: not timed.")


def measure(tokens: int, seconds: float) -> dict[str, Any]:
    """Times of all operators, in turns, for about so many seconds: at least three turns."""
    q, k, v = inputs(tokens)
    runs: dict[str, Callable[[], Tensor]] = {"sdpa": partial(scaled_dot_product_attention, q, k, v)}
    runs |= {name: partial(layer(config), q, k, v) for name, config in CONFIGS.items()}
    return summary(take_turns(runs, seconds), "sdpa")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=4.0, help="for each length, at least three turns")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "command": command(),
        "date": date.today().isoformat(),
        **environment(),
        "shape": {"B": 1, "H": HEADS, "D": HEAD_SIZE, "dtype": "float32"},
        "budgets": {name: config.for_layer(0).budgets() for name, config in CONFIGS.items()},
        "tokens": {},
    }
    with torch.inference_mode():
        for config in CONFIGS.values():
            check(config)
        print(
            f"{'tokens':>7}  {'SDPA ms':>9}" + "".join(f"  {name[:26] + ' ms':>29}  {'× SDPA':>7}" for name in CONFIGS)
        )
        for tokens in options.tokens:
            row = results["tokens"][str(tokens)] = measure(tokens, options.seconds)
            columns = "".join(f"  {row[name]['median_ms']:>29.2f}  {row[name]['times_sdpa']:>7.2f}" for name in CONFIGS)
            print(f"{tokens:>7}  {row['sdpa']['median_ms']:>9.2f}{columns}", flush=True)
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
