"""The operators against PyTorch's exact attention on this machine: correct first, then timed.

    python benchmarks/operators.py [--tokens 512 2048 8192] [--threads 2] [--output benchmarks/results/operators-cpu.json]

One layer, float32, B = 1, H = 12, D = 64, all tokens valid, standard normal inputs. Each operator is first compared with exact attention
where it must equal it (all keys exact); a wrong result is not timed. Then the operators take turns, and medians, extremes and ratios to
`torch.nn.functional.scaled_dot_product_attention` are written down with the machine, the versions and the command.
"""

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import bert_cluster
import cuda_ops
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
    runs: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"sdpa": scaled_dot_product_attention}
    runs |= {method: layer(method) for method in METHODS}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(q, k, v)
    end = time.perf_counter() + seconds
    while len(times["sdpa"]) < 3 or (time.perf_counter() < end and len(times["sdpa"]) < 101):
        for name, run in runs.items():
            start = time.perf_counter()
            run(q, k, v)
            times[name].append(1000 * (time.perf_counter() - start))
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        name: {
            "median_ms": round(median[name], 3),
            "least_ms": round(min(values), 3),
            "most_ms": round(max(values), 3),
            "turns": len(values),
            "times_sdpa": round(median["sdpa"] / median[name], 2),
        }
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=4.0, help="for each length, at least three turns")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "machine": processor(),
        "threads": options.threads,
        "backend": cuda_ops.backend_for("cpu", torch.float32),
        "versions": {
            "torch": torch.__version__,
            "bert-cluster": bert_cluster.__version__,
            "python": platform.python_version(),
        },
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


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
