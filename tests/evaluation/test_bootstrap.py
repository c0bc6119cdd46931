"""Paired bootstrap intervals: against the formula for means, against scipy, and where no score exists."""

import numpy as np
import pytest
from scipy import stats

from bert_cluster.evaluation.bootstrap import paired_differences


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    random = np.random.RandomState(0)
    full = random.rand(2000)
    own = full + 0.05 + 0.1 * random.standard_normal(2000)
    result = paired_differences(
        lambda indices: {"f1": float(own[indices].mean())},
        lambda indices: {"f1": float(full[indices].mean())},
        2000,
        samples=2000,
    )["f1"]
    half = 1.96 * (own - full).std() / np.sqrt(2000)
    assert result.value == pytest.approx((own - full).mean())
    assert result.low == pytest.approx(result.value - half, abs=0.1 * half)
    assert result.high == pytest.approx(result.value + half, abs=0.1 * half)


def test_pairing_counts() -> None:
    """What both methods share cancels: far narrower than the interval of two independent samples."""
    full = np.random.RandomState(0).rand(500)
    own = full.copy()
    own[:5] = 0.0
    result = paired_differences(
        lambda indices: {"f1": float(own[indices].mean())}, lambda indices: {"f1": float(full[indices].mean())}, 500
    )["f1"]
    assert result.low is not None and result.high is not None
    assert result.high - result.low < 0.3 * 2 * 1.96 * np.sqrt(2) * full.std() / np.sqrt(500)


def test_it_agrees_with_scipy_on_a_correlation() -> None:
    random = np.random.RandomState(1)
    labels = random.rand(300)
    own, full = labels + 0.3 * random.standard_normal(300), labels + 0.2 * random.standard_normal(300)

    def difference(own: np.ndarray, full: np.ndarray, labels: np.ndarray) -> float:
        return float(np.corrcoef(own, labels)[0, 1] - np.corrcoef(full, labels)[0, 1])

    result = paired_differences(
        lambda indices: {"pearson": float(np.corrcoef(own[indices], labels[indices])[0, 1])},
        lambda indices: {"pearson": float(np.corrcoef(full[indices], labels[indices])[0, 1])},
        300,
        samples=2000,
    )["pearson"]
    options = {"paired": True, "vectorized": False, "method": "percentile", "n_resamples": 2000, "rng": 2}
    expected = stats.bootstrap((own, full, labels), difference, **options).confidence_interval
    width = expected.high - expected.low
    assert result.low == pytest.approx(expected.low, abs=0.1 * width)
    assert result.high == pytest.approx(expected.high, abs=0.1 * width)


def test_the_same_results_give_the_same_interval_and_another_seed_another() -> None:
    own = np.random.RandomState(0).rand(50)

    def run(seed: int) -> float | None:
        scores = paired_differences(
            lambda indices: {"f1": float(own[indices].mean())}, lambda _: {"f1": 0.0}, 50, samples=50, seed=seed
        )
        return scores["f1"].low

    assert run(0) == run(0) != run(1)


def test_equal_methods_differ_by_nothing_and_undefined_scores_have_no_bounds() -> None:
    zero = paired_differences(lambda _: {"f1": 0.5}, lambda _: {"f1": 0.5}, 10, samples=20)["f1"]
    assert (zero.value, zero.low, zero.high) == (0.0, 0.0, 0.0)
    undefined = paired_differences(lambda _: {"pearson": float("nan")}, lambda _: {"pearson": 0.1}, 10, samples=20)
    assert undefined["pearson"].low is None and undefined["pearson"].high is None
