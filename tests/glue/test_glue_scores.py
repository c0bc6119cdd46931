"""The metrics of GLUE against scikit-learn and SciPy, and cases computed by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from glue_eval.scores import METRICS, accuracy, f1, matthews_correlation, pearson, ranks, spearmanr, task_scores
from glue_eval.tasks import TASKS

SEEDS = range(20)


def labellings(seed: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Two random labellings, one a noisy copy of the other, of 1 to 60 rows."""
    random = np.random.RandomState(seed)
    references = random.randint(labels, size=random.randint(1, 60))
    noise = random.rand(len(references)) < random.rand()
    return np.where(noise, random.randint(labels, size=len(references)), references), references


@pytest.mark.parametrize("labels", [2, 3, 7])
@pytest.mark.parametrize("seed", SEEDS)
def test_accuracy_and_matthews_are_those_of_scikit_learn(seed: int, labels: int) -> None:
    predictions, references = labellings(seed, labels)
    assert accuracy(predictions, references) == pytest.approx(sklearn.metrics.accuracy_score(references, predictions))
    expected = sklearn.metrics.matthews_corrcoef(references, predictions)
    assert matthews_correlation(predictions, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_f1_is_that_of_scikit_learn(seed: int) -> None:
    predictions, references = labellings(seed, 2)
    expected = sklearn.metrics.f1_score(references, predictions, zero_division=0)
    assert f1(predictions, references) == pytest.approx(expected)


@pytest.mark.parametrize("levels", [3, 10, 1000])
@pytest.mark.parametrize("seed", SEEDS)
def test_correlations_are_those_of_scipy_with_and_without_ties(seed: int, levels: int) -> None:
    random = np.random.RandomState(seed)
    rows = random.randint(5, 80)
    references = np.concatenate([[0.0, 5.0], random.randint(levels, size=rows) * 5 / levels])
    predictions = np.round(references + random.randn(rows + 2), 1)
    assert pearson(predictions, references) == pytest.approx(scipy.stats.pearsonr(predictions, references).statistic)
    assert spearmanr(predictions, references) == pytest.approx(scipy.stats.spearmanr(predictions, references).statistic)


@pytest.mark.parametrize("seed", SEEDS)
def test_ranks_share_their_mean_as_in_scipy(seed: int) -> None:
    values = np.random.RandomState(seed).randint(6, size=25).astype(float)
    assert ranks(values).tolist() == scipy.stats.rankdata(values).tolist()


def test_known_answers() -> None:
    predictions, references = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]
    assert accuracy(predictions, references) == 3 / 5
    assert f1(predictions, references) == 2 / 3
    # TP 2, FP 1, FN 1, TN 1: (2·1 - 1·1) / √(3·3·2·2)
    assert matthews_correlation(predictions, references) == pytest.approx(1 / 6)
    assert ranks(np.array([10.0, 20.0, 10.0, 5.0])).tolist() == [2.5, 4.0, 2.5, 1.0]
    assert spearmanr([1.0, 2.0, 3.0], [1.0, 10.0, 100.0]) == pytest.approx(1.0)
    assert pearson([1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]) == pytest.approx(-1.0)


def test_f1_counts_label_one_only() -> None:
    assert f1([1, 0, 2], [1, 2, 2]) == 1.0
    assert f1([0, 0], [0, 0]) == 0.0


def test_one_label_on_a_side_has_no_matthews_correlation() -> None:
    assert matthews_correlation([1, 1, 1], [0, 1, 1]) == 0.0
    assert matthews_correlation([0, 1, 1], [1, 1, 1]) == 0.0


def test_matthews_does_not_overflow_on_many_rows() -> None:
    references = np.tile(np.array([0, 1], dtype=np.int32), 200_000)
    assert matthews_correlation(references, references) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", [pearson, spearmanr])
def test_a_constant_or_bad_side_has_no_correlation(metric: Callable[..., float]) -> None:
    assert math.isnan(metric([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]))
    assert math.isnan(metric([1.0], [2.0]))
    assert math.isnan(metric([1.0, math.nan, 2.0], [1.0, 2.0, 3.0]))


def test_correlation_of_scores_far_from_zero_keeps_its_digits() -> None:
    values = np.arange(10.0)
    assert pearson(values + 1e9, values) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_sides_of_different_length_are_an_error(metric: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match=r"of one length, got shapes \(2,\) and \(3,\)"):
        metric([1, 0], [1, 0, 1])


def test_a_task_with_two_metrics_has_their_mean() -> None:
    scores = task_scores(TASKS["mrpc"], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0])
    assert scores == {"accuracy": 0.6, "f1": 2 / 3, "combined_score": pytest.approx((0.6 + 2 / 3) / 2)}
    assert list(task_scores(TASKS["rte"], [1], [1])) == ["accuracy"]
