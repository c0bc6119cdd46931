"""What an error is: of the hidden states, or of the decisions and distributions of a head."""

import math
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bert_cluster.errors import CalibrationError

METRICS = ("hidden", "agreement", "kl")
DESCRIPTIONS = {
    "hidden": "relative error of the final hidden states",
    "agreement": "share of texts with the decision of full attention",
    "kl": "KL divergence of the head's outputs from those with full attention, in nats",
}
SAFETY = 0.9  # share of the target that the calibration texts may use, so that other texts stay under it


def check_target(metric: str, target: float) -> None:
    """
    Raises:
        CalibrationError: an unknown metric, or a target that no settings or all settings reach.
    """
    if metric not in METRICS:
        raise CalibrationError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}.")
    number = isinstance(target, int | float) and not isinstance(target, bool) and math.isfinite(target)
    if metric == "agreement":
        if not number or not 0 < target <= 1:
            raise CalibrationError(
                f"target of metric 'agreement' is the least share of equal decisions, above 0 and at most 1, such as 0.99; "
                f"got {target!r}."
            )
    elif not number or target <= 0:
        raise CalibrationError(
            f"target of metric {metric!r} is the greatest {DESCRIPTIONS[metric]}, a finite number above 0, such as 0.05; "
            f"got {target!r}. Exact outputs are what a model gives unpatched."
        )


@torch.inference_mode()
def read(metric: str, encoder: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What the metric compares, for each text of a batch, in float32 on the CPU.

    Returns:
        For "hidden" the last hidden states of the valid tokens (n, width), else log probabilities (..., choices).

    Raises:
        CalibrationError: the model has no such outputs.
    """
    valid = inputs["attention_mask"].bool().cpu()
    if metric == "hidden":
        states: Tensor = encoder.base_model(**inputs).last_hidden_state
        return [row[own] for row, own in zip(states.float().cpu(), valid, strict=True)]
    kind = type(encoder).__name__
    if chooses_among_texts(encoder):
        raise CalibrationError(
            f"metric {metric!r} compares what a head makes of each text, and the head of {kind} chooses among several. "
            f"Use metric='hidden'."
        )
    outputs: Any = encoder(**inputs)
    if getattr(outputs, "start_logits", None) is not None:
        both = torch.stack([outputs.start_logits, outputs.end_logits], dim=1).float().cpu()  # (B, 2, N)
        return [row[:, own].log_softmax(-1) for row, own in zip(both, valid, strict=True)]
    logits: Tensor | None = getattr(outputs, "logits", None)
    if logits is None:
        raise CalibrationError(
            f"metric {metric!r} compares the outputs of a head, and {kind} has none. Use metric='hidden', or a model with a head."
        )
    if logits.shape[-1] == 1:
        raise CalibrationError(
            f"metric {metric!r} compares decisions among labels, and the head of {kind} gives one number. Use metric='hidden'."
        )
    logits = logits.float().cpu()
    if kind == "ElectraForPreTraining":  # yes or no for each token, (B, N)
        return [_yes_or_no(row[own]) for row, own in zip(logits, valid, strict=True)]
    if getattr(encoder.config, "problem_type", None) == "multi_label_classification":
        return list(_yes_or_no(logits))
    logs = logits.log_softmax(-1)
    return [row[own] for row, own in zip(logs, valid, strict=True)] if logs.dim() == 3 else list(logs)


def _yes_or_no(logits: Tensor) -> Tensor:
    """Log probabilities (..., 2) of independent decisions."""
    return torch.stack([logits.sigmoid().log(), (-logits).sigmoid().log()], dim=-1)


def compare(metric: str, full: Tensor, ours: Tensor, *, by_token: bool) -> tuple[float, float]:
    """Value of the metric for one text, and its cost: a number that about adds up over layers.

    Small errors of different layers are about independent, so their squares add up; a KL divergence is a square already.
    Agreement jumps, so its cost is the divergence.

    Args:
        metric: one of `METRICS`.
        full: what `read` gave for full attention.
        ours: the same for other settings.
        by_token: the head decides for each token, so that agreement is a share of tokens.
    """
    if metric == "hidden":
        norm, difference = float(full.double().norm()), float((ours.double() - full.double()).norm())
        error = difference / norm if norm else (0.0 if difference == 0 else math.inf)
        error = error if math.isfinite(error) else math.inf
        return error, error**2
    products = full.exp() * (full - ours)
    divergence = max(0.0, float(torch.where(full.isinf(), 0.0, products).sum(-1).mean()))
    divergence = divergence if math.isfinite(divergence) else math.inf
    if metric == "kl":
        return divergence, divergence
    same = full.argmax(-1) == ours.argmax(-1)
    return float(same.float().mean()) if by_token else float(same.all()), divergence


def decides_by_token(encoder: PreTrainedModel) -> bool:
    """Whether the head has an answer for each token, as token classification and masked language models do."""
    return type(encoder).__name__.endswith(("ForTokenClassification", "ForMaskedLM", "ForPreTraining"))


def chooses_among_texts(encoder: PreTrainedModel) -> bool:
    """Whether the head reads several texts, (B, choices, N), and chooses one of them."""
    return type(encoder).__name__.endswith("ForMultipleChoice")


def reaches(metric: str, value: float, target: float) -> bool:
    """Whether a mean is on the right side of the target."""
    return value >= target if metric == "agreement" else value <= target


def allowance_of(metric: str, target: float) -> float:
    """The cost that all layers together may have, by the model of `compare`; unlimited where the metric jumps."""
    return {"hidden": (SAFETY * target) ** 2, "kl": SAFETY * target, "agreement": math.inf}[metric]


def error_of_cost(metric: str, cost: float) -> float | None:
    """The metric that a total cost stands for, by the model of `compare`; None where it jumps."""
    return {"hidden": math.sqrt(cost), "kl": cost}.get(metric)


def overshoot(metric: str, value: float, target: float) -> float | None:
    """Measured cost over allowed cost; None where the metric does not tell."""
    if metric == "agreement":
        return None
    ratio = value / (SAFETY * target)
    return ratio**2 if metric == "hidden" else ratio


def interval(metric: str, values: Sequence[float], seed: int, level: float = 0.95) -> tuple[float, float] | None:
    """Confidence interval of the mean over texts; None for a single text.

    Shares of decisions: Clopper and Pearson 1934, exact. Others: percentiles of 2000 bootstrap resamples.
    """
    count, tail = len(values), (1 - level) / 2
    if count < 2:
        return None
    if metric == "agreement" and all(value in (0.0, 1.0) for value in values):
        return _clopper_pearson(round(sum(values)), count, tail)
    drawn = numpy.random.RandomState(seed).randint(0, count, (2000, count))
    low, high = numpy.percentile(numpy.asarray(values)[drawn].mean(axis=1), [100 * tail, 100 * (1 - tail)])
    return float(low), float(high)


def beyond_sampling(metric: str, value: float, bounds: tuple[float, float] | None, target: float) -> bool:
    """Whether the target is missed by more than the draw of the texts explains."""
    if reaches(metric, value, target):
        return False
    return bounds is None or not reaches(metric, bounds[1] if metric == "agreement" else bounds[0], target)


def _clopper_pearson(successes: int, count: int, tail: float) -> tuple[float, float]:
    def exactly(k: int, share: float) -> float:
        # by logarithms: from some 1,000 on the number of ways alone is too large for a float
        ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        return math.exp(ways + k * math.log(share) + (count - k) * math.log1p(-share))

    def at_least(share: float) -> float:
        return sum(exactly(k, share) for k in range(successes, count + 1))

    def more(share: float) -> float:
        return sum(exactly(k, share) for k in range(successes + 1, count + 1))

    low = 0.0 if successes == 0 else _where(lambda share: at_least(share) >= tail)
    high = 1.0 if successes == count else _where(lambda share: more(share) >= 1 - tail)
    return low, high


def _where(reached: Any) -> float:
    """The least share from which a growing condition holds, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
