"""What benchmarks/long_texts.py measures of a model: its hidden states, its answers and its times, against exact attention."""

import copy
import time
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from machine import summary, take_turns
from torch import Tensor
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention
from transformers import PreTrainedModel

import bert_cluster
from bert_cluster import ClusterConfig
from bert_cluster.attention import run_layer
from bert_cluster.patching import is_patched
from bert_cluster.planes import random_planes
from squad_eval.answers import choose_answers
from squad_eval.data import Example
from squad_eval.scores import squad_v1_scores
from squad_eval.windows import Window, make_windows

FULL, ROUNDED = "full", "full-bfloat16"
"""Exact attention in float32; the whole model in bfloat16, whose error is that of rounding alone."""

HEADS, HEAD_SIZE = 12, 32

Budgets = Mapping[str, ClusterConfig | None]
"""Name -> settings; None for the two that stay exact."""


class Methods:
    """One model under one method after the other; the encoder's last hidden states (1, N, hidden) of each."""

    def __init__(self, model: PreTrainedModel, budgets: Budgets) -> None:
        self.model = model
        self.budgets = {FULL: None, **budgets}
        self.rounded = copy.deepcopy(model).to(torch.bfloat16) if ROUNDED in budgets else None
        self.warm: set[str] = set()

    def states(self, name: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, float]:
        """Hidden states in float32, and seconds of the forward pass; the first pass of each method is run twice."""
        config = self.budgets[name]
        model = self.rounded if name == ROUNDED and self.rounded is not None else self.model
        if config is not None:
            bert_cluster.patch(model, config)
        elif is_patched(model):
            bert_cluster.unpatch(model)
        if name not in self.warm:
            model.base_model(**inputs)
            self.warm.add(name)
        start = time.perf_counter()
        states = model.base_model(**inputs).last_hidden_state
        return states.float(), time.perf_counter() - start


def relative_error(states: Tensor, exact: Tensor) -> float:
    """||h - h_full|| / ||h_full||, Frobenius norms over one text."""
    return ((states - exact).norm() / exact.norm()).item()


def compare_texts(model: PreTrainedModel, texts: Sequence[Tensor], budgets: Budgets) -> dict[str, dict[str, Any]]:
    """Each method's error of the last hidden states, cosine of the mean-pooled embedding, and seconds: all methods in turns.

    Args:
        texts: (1, N) token numbers each.
    """
    methods = Methods(model, budgets)
    seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods.budgets}
    for text in texts:
        exact = torch.empty(0)
        for name in methods.budgets:
            states, seconds = methods.states(name, {"input_ids": text})
            exact = states if name == FULL else exact
            cosine = cosine_similarity(states.mean(1), exact.mean(1)).item()
            seen[name].append((relative_error(states, exact), cosine, seconds))
    return {name: _text_row(rows, seen[FULL]) for name, rows in seen.items()}


def _text_row(rows: list[tuple[float, float, float]], full: list[tuple[float, float, float]]) -> dict[str, Any]:
    errors, cosines, seconds = zip(*rows, strict=True)
    typical = median(seconds)
    return {
        "error": round(fmean(errors), 5),
        "errors": [round(error, 5) for error in errors],
        "cosine": round(fmean(cosines), 6),
        "median_s": round(typical, 4),
        "times_full": round(median(row[2] for row in full) / typical, 2),
    }


def compare_answers(
    model: PreTrainedModel, tokenizer: Any, examples: Sequence[Example], budgets: Budgets, *, positions: int
) -> dict[str, Any]:
    """Each method's answers and errors on questions that fit one window: all methods in turns.

    Returns:
        stretches and mean_tokens; methods: by name same_answers (share of answers that are those of exact attention), f1 and
        exact_match (percent), error of the last hidden states.
    """
    windows = make_windows(examples, tokenizer, max_seq_length=positions, max_windows=1)
    methods = Methods(model, budgets)
    logits: dict[str, list[Tensor]] = {name: [] for name in methods.budgets}
    seen: dict[str, list[float]] = {name: [] for name in methods.budgets}
    for window in windows:
        exact = torch.empty(0)
        for name in methods.budgets:
            states, _ = methods.states(name, _inputs(window))
            exact = states if name == FULL else exact
            logits[name].append(model.qa_outputs(states)[0])
            seen[name].append(relative_error(states, exact))
    answers = {name: _answers(examples, windows, rows) for name, rows in logits.items()}
    rows = {}
    for name, texts in answers.items():
        scores = squad_v1_scores(examples, texts)
        rows[name] = {
            "same_answers": round(fmean(texts[key] == answers[FULL][key] for key in texts), 4),
            "f1": round(scores["f1"], 2),
            "exact_match": round(scores["exact_match"], 2),
            "error": round(fmean(seen[name]), 5),
        }
    return {"stretches": len(windows), "mean_tokens": round(fmean(map(len, windows)), 1), "methods": rows}


def _inputs(window: Window) -> dict[str, Tensor]:
    """Without the mask: nothing is padded."""
    return {name: torch.tensor([values]) for name, values in window.inputs.items() if name != "attention_mask"}


def _answers(examples: Sequence[Example], windows: Sequence[Window], logits: Sequence[Tensor]) -> dict[str, str]:
    starts, ends = ([row[:, side].numpy() for row in logits] for side in (0, 1))
    return choose_answers(examples, windows, starts, ends).texts


def layer_times(tokens: int, budgets: Budgets, seconds: float) -> dict[str, dict[str, float]]:
    """Times of one attention layer of the model's shape on standard normal inputs, beside PyTorch's exact attention."""
    generator = torch.Generator().manual_seed(tokens)
    shape = (1, tokens, HEADS, HEAD_SIZE)
    q, k, v = (torch.randn(shape, generator=generator).transpose(1, 2) for _ in range(3))
    runs = {FULL: partial(scaled_dot_product_attention, q, k, v)}
    for name, config in budgets.items():
        if config is not None:
            settings = config.for_layer(0)
            planes = random_planes(settings.bits, HEAD_SIZE, settings.seed) if settings.hashes else None
            runs[name] = partial(run_layer, q, k, v, None, settings, planes, None)
    rows = summary(take_turns(runs, seconds), FULL)
    for row in rows.values():
        row["us_per_token_and_head"] = round(1000 * row["median_ms"] / tokens / HEADS, 4)
    return rows
