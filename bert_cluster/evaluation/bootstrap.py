"""Paired bootstrap intervals: how much of a difference between two methods is chance of the examples drawn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Difference:
    """score(method) - score(full) with its percentile interval; the bounds are None where no resample has a score."""

    value: float
    low: float | None
    high: float | None


def paired_differences(
    method: Callable[[np.ndarray], Scores],
    full: Callable[[np.ndarray], Scores],
    examples: int,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Bootstrap the difference of every score between two methods over the same examples.

    Each resample draws `examples` indices with replacement and scores both methods on the same draw, so the spread that
    both share cancels (Efron and Tibshirani 1993, chapter 13: percentile interval).

    Args:
        method, full: scores of the examples with these indices (n,) int64; both return the same names.
        examples: number of examples.
        samples: number of resamples.
        level: coverage of the interval.
        seed: seed of numpy.random.RandomState, so that the same results give the same interval.
    """
    everything = np.arange(examples)
    own, base = method(everything), full(everything)
    random = np.random.RandomState(seed)
    drawn: dict[str, list[float]] = {name: [] for name in own}
    for _ in range(samples):
        indices = random.randint(0, examples, examples)
        first, second = method(indices), full(indices)
        for name, differences in drawn.items():
            differences.append(first[name] - second[name])
    return {name: _difference(own[name] - base[name], drawn[name], level) for name in own}


def _difference(value: float, drawn: list[float], level: float) -> Difference:
    finite = np.array([number for number in drawn if np.isfinite(number)])
    if not finite.size:
        return Difference(value, None, None)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(finite, [tail, 100 - tail])
    return Difference(value, float(low), float(high))
