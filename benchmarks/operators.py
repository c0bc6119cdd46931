"""The operators against PyTorch's exact attention on this machine: correct first, then timed.

    python benchmarks/operators.py [--tokens 512 2048 8192] [--threads 2] [--output benchmarks/results/operators-cpu.json]

One layer, float32, B = 1, H = 12, D = 64, all tokens valid, standard normal inputs. Each operator is first compared with exact attention
where it must equal it (all keys exact); a wrong result is not timed. Then the operators take turns, and medians, extremes and ratios to
`torch.nn.functional.scaled_dot_product_attention` are written down with the machine, the versions and the command.
"""

import argparse
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
METHODS = ("improved-clustered", "refined-clustered")


def inputs(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as transformers hands them over: (B, H, N, D) views of (B, N, H, D)."""
    generator = torch.Generator().manual_seed(tokens)
    shape = (1, tokens, HEADS, HEAD_SIZE)
    q, k, v = (torch.randn(shape, generator=generator).transpose(1, 2) for _ in range(3))
    return q, k, v


def layer(method: str, **budgets: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """One attention layer with the method's default budgets, or others."""
    settings = ClusterConfig(method=method, **budgets).for_layer(0)  # type: ignore[arg-type]
    planes = random_planes(settings.bits, HEAD_SIZE, settings.seed) if settings.bits else None
    return lambda q, k, v: run_layer(q, k, v, None, settings, planes, None)


def check(method: str) -> None:
    """With every key exact the method must equal exact attention to rounding."""
    q, k, v = inputs(331)
    error = (layer(method, topk=331)(q, k, v) - scaled_dot_product_attention(q, k, v)).abs().max().item()
    if not error < 1e-5:
        sys.exit(f"{method} is off by {error:.1e} where it must be exact: not timed.")


def measure(tokens: int, seconds: float) -> dict[str, Any]:
    """Times of all operators, in turns, for about so many seconds: at least three turns."""
    q, k, v = inputs(tokens)
    runs: dict[str, Callable[[], Tensor]] = {"sdpa": partial(scaled_dot_product_attention, q, k, v)}
    runs |= {method: partial(layer(method), q, k, v) for method in METHODS}
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
        "budgets": {method: ClusterConfig(method=method).for_layer(0).budgets() for method in METHODS},
        "tokens": {},
    }
    with torch.inference_mode():
        for method in METHODS:
            check(method)
        print(
            f"{'tokens':>7}  {'SDPA ms':>9}" + "".join(f"  {method + ' ms':>22}  {'× SDPA':>7}" for method in METHODS)
        )
        for tokens in options.tokens:
            row = results["tokens"][str(tokens)] = measure(tokens, options.seconds)
            columns = "".join(
                f"  {row[method]['median_ms']:>22.2f}  {row[method]['times_sdpa']:>7.2f}" for method in METHODS
            )
            print(f"{tokens:>7}  {row['sdpa']['median_ms']:>9.2f}{columns}", flush=True)
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
