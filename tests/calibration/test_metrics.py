"""Errors, intervals and targets, on numbers worked out by hand."""

import math

import pytest
import torch
from transformers import ElectraConfig, ElectraForPreTraining

from bert_cluster import CalibrationError
from bert_cluster.calibration.metrics import beyond_sampling, check_target, compare, decides_by_token, interval, read


def test_hidden_error_is_relative() -> None:
    full = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert compare("hidden", full, full + torch.tensor([[0.0, 0.3], [0.4, 0.0]]), by_token=False) == pytest.approx(
        (0.1, 0.01)
    )
    assert compare("hidden", full * 0, full * 0, by_token=False) == (0.0, 0.0)
    assert compare("hidden", full, full * math.nan, by_token=False) == (math.inf, math.inf)


def test_divergence_and_agreement() -> None:
    full, ours = torch.tensor([0.75, 0.25]).log(), torch.tensor([0.5, 0.5]).log()
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert compare("kl", full, ours, by_token=False) == pytest.approx((expected, expected))
    assert compare("agreement", full, ours, by_token=False) == pytest.approx((1.0, expected))
    assert compare("agreement", full, full.flip(0), by_token=False)[0] == 0.0
    both = torch.stack([full, full]), torch.stack([full, full.flip(0)])
    assert compare("agreement", *both, by_token=False)[0] == 0.0  # start and end of an answer count together
    assert compare("agreement", *both, by_token=True)[0] == 0.5
    impossible = torch.tensor([1.0, 0.0]).log()
    assert compare("kl", impossible, full, by_token=False)[0] == pytest.approx(-math.log(0.75))
    assert compare("kl", full, impossible, by_token=False)[0] == math.inf


def test_padding_is_no_answer(tiny) -> None:
    model = tiny("qa")
    inputs = {
        "input_ids": torch.tensor([[2, 7, 8, 3], [2, 9, 3, 1]]),
        "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
    }
    assert [tuple(row.shape) for row in read("kl", model, inputs)] == [(2, 4), (2, 3)]
    assert all(row.exp().sum(-1).allclose(torch.ones(2)) for row in read("kl", model, inputs))
    assert [tuple(row.shape) for row in read("hidden", model, inputs)] == [(4, 32), (3, 32)]


def test_intervals() -> None:
    # Clopper and Pearson for 9 of 10 and 10 of 10, as tables have them
    assert interval("agreement", [1.0] * 9 + [0.0], 0) == pytest.approx((0.5550, 0.9975), abs=1e-4)
    assert interval("agreement", [1.0] * 10, 0) == pytest.approx((0.6915, 1.0), abs=1e-4)
    assert interval("agreement", [0.0] * 10, 0) == pytest.approx((0.0, 0.3085), abs=1e-4)
    assert interval("hidden", [0.2], 0) is None
    low, high = interval("hidden", [0.1, 0.2, 0.3, 0.2], 0) or (0.0, 0.0)
    assert 0.1 < low < 0.2 < high < 0.3


def test_an_interval_of_many_texts() -> None:
    low, high = interval("agreement", [1.0] * 1980 + [0.0] * 220, 0) or (0.0, 0.0)
    assert (low, high) == pytest.approx(
        (0.8867, 0.9122), abs=1e-4
    )  # 0.9 -+ 1.96 * 0.0064, and a little for the exact tails


def test_yes_or_no_for_each_token() -> None:
    torch.manual_seed(7)
    sizes = {"vocab_size": 60, "hidden_size": 32, "embedding_size": 32, "intermediate_size": 48}
    model = ElectraForPreTraining(ElectraConfig(**sizes, num_hidden_layers=1, num_attention_heads=4)).eval()
    mask = torch.tensor([[1] * 4, [1, 1, 1, 0]])
    inputs = {"input_ids": torch.tensor([[2, 7, 8, 3], [2, 9, 3, 1]]), "attention_mask": mask}
    rows = read("agreement", model, inputs)
    assert [tuple(row.shape) for row in rows] == [(4, 2), (3, 2)]
    torch.testing.assert_close(rows[1][:, 0].exp(), model(**inputs).logits[1, :3].sigmoid())
    assert all(row.exp().sum(-1).allclose(torch.ones(1)) for row in rows)
    assert decides_by_token(model)


def test_what_sampling_explains() -> None:
    assert not beyond_sampling("hidden", 0.04, (0.03, 0.06), 0.05)
    assert not beyond_sampling("hidden", 0.06, (0.04, 0.07), 0.05)
    assert beyond_sampling("hidden", 0.06, (0.055, 0.07), 0.05)
    assert beyond_sampling("hidden", 0.06, None, 0.05)
    assert not beyond_sampling("agreement", 0.9, (0.555, 0.9975), 0.99)
    assert beyond_sampling("agreement", 0.5, (0.2, 0.8), 0.99)


@pytest.mark.parametrize("target", [0, -0.1, math.nan, math.inf, True, "0.1", None])
@pytest.mark.parametrize("metric", ["hidden", "kl"])
def test_impossible_bounds(metric: str, target: object) -> None:
    with pytest.raises(
        CalibrationError, match=f"target of metric '{metric}' is the greatest .* a finite number above 0, such as"
    ):
        check_target(metric, target)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [0, -0.1, 1.01, math.nan])
def test_impossible_shares(target: float) -> None:
    with pytest.raises(
        CalibrationError, match="least share of equal decisions, above 0 and at most 1, such as 0.99; got"
    ):
        check_target("agreement", target)


def test_unknown_metrics() -> None:
    with pytest.raises(CalibrationError, match="metric must be one of hidden, agreement, kl, got 'f1'"):
        check_target("f1", 0.1)
