"""What every benchmark writes down of the machine, and how it takes times: all operators in turns."""

import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import bert_cluster
import cuda_ops
from bert_cluster.processor import processor_name


def environment() -> dict[str, Any]:
    """Machine, threads, operators and versions: what times of one table must have in common."""
    return {
        "machine": processor_name(),
        "threads": torch.get_num_threads(),
        "backend": cuda_ops.backend_for("cpu", torch.float32),
        "versions": {
            "torch": torch.__version__,
            "bert-cluster": bert_cluster.__version__,
            "python": platform.python_version(),
        },
    }


def command() -> str:
    """The command that runs, with absolute paths cut to their last part."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def wall_clock(run: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def take_turns(
    runs: Mapping[str, Callable[[], Any]],
    seconds: float,
    least: int = 5,
    clock: Callable[[Callable[[], Any]], float] = wall_clock,
) -> dict[str, list[float]]:
    """Milliseconds of every run, in turns, for about so many seconds: at least `least` turns after one that is not counted.

    Each turn has another order, the same in every measurement: what one run leaves behind in caches and free memory must
    not always meet the same other.
    """
    orders = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + seconds
    turns = 0
    while turns < least or (time.perf_counter() < end and turns < 101):
        for name in orders.sample(list(runs), len(runs)):
            times[name].append(clock(runs[name]))
        turns += 1
    return times


def summary(times: Mapping[str, list[float]], baseline: str, digits: int = 3) -> dict[str, dict[str, float]]:
    """Median, quartiles, extremes, number of turns and the ratio to the baseline's median of each run."""
    quartiles = {name: statistics.quantiles(values, n=4, method="inclusive") for name, values in times.items()}
    median = {name: middle for name, (_, middle, _) in quartiles.items()}
    return {
        name: {
            "median_ms": round(median[name], digits),
            "lower_quartile_ms": round(quartiles[name][0], digits),
            "upper_quartile_ms": round(quartiles[name][2], digits),
            "least_ms": round(min(values), digits),
            "most_ms": round(max(values), digits),
            "turns": len(values),
            f"times_{baseline}": round(median[baseline] / median[name], 2),
        }
        for name, values in times.items()
    }
