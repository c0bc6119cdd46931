"""Inputs of refined_clustered, and what holds for any of them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import oracle
import oracle_refined
import torch
from operator_cases import Case, accumulation, numpy
from tolerance import assert_close
from torch import Tensor

import cuda_ops

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
NAMES = ("out", "log mass", "query clusters", "key clusters", "top keys")


@dataclass
class Refined:
    """The arguments of refined_clustered."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    clusters: int
    topk: int
    key_clusters: int
    band: int
    rounds: int
    sample: int
    scale: float
    exact_below: int = 0
    longer: tuple[int, ...] = ()

    def run(self) -> Results:
        # by hand: the dynamo of torch 2.11 cannot trace vars()
        budgets = (self.clusters, self.topk, self.key_clusters, self.band, self.rounds, self.sample)
        limits = (self.scale, self.exact_below, self.longer)
        return cuda_ops.refined_clustered(self.q, self.k, self.v, self.mask, *budgets, *limits)

    def changed(self, **values: Any) -> "Refined":
        return replace(self, **values)

    def numpy(self) -> tuple[Any, ...]:
        """q, k, v and mask for the oracle."""
        return numpy(self.q), numpy(self.k), numpy(self.v), numpy(self.mask)

    def short(self) -> Tensor:
        """(B,) bool: the batch rows with fewer than exact_below valid tokens."""
        batch, _, tokens, _ = self.q.shape
        count = torch.full((batch,), tokens) if self.mask is None else self.mask.sum(1)
        return count < self.exact_below


def refined(
    dtype: torch.dtype = torch.float32, seed: int = 0, M: int = 4, W: int = 2, S: int = 256, **shape: Any
) -> Refined:
    """A shape as `Case` takes it, M key clusters, W neighbours, rounds on samples of S."""
    case = Case(**shape)
    inputs = case.inputs(dtype, seed)
    return Refined(
        q=inputs.q,
        k=inputs.k,
        v=inputs.v,
        mask=inputs.mask,
        clusters=case.C,
        topk=case.K,
        key_clusters=M,
        band=W,
        rounds=case.iterations,
        sample=S,
        scale=inputs.scale,
        exact_below=case.exact_below,
    )


def oracle_given(inputs: Refined, results: Results, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """The oracle's output and log mass, given the decisions."""
    decisions = (x.numpy() for x in results[2:])
    return oracle_refined.refined_clustered(
        *inputs.numpy(), *decisions, inputs.band, inputs.scale, inputs.exact_below, **settings
    )


def check_decisions(inputs: Refined, results: Results) -> None:
    """Clusters are nearest and top keys best, to a tolerance; -1 in exact rows."""
    _, _, queries, keys, top = results
    short = inputs.short().numpy()
    q, k, _, mask = inputs.numpy()
    assert all(x.dtype == torch.int32 and (x.numpy()[short] == -1).all() for x in results[2:])
    rows, valid = ~short, None if mask is None else mask[~short]
    slack = 8 * torch.finfo(accumulation(inputs.q.dtype)).eps * q.shape[3]
    for x, assignment, count in ((q, queries, inputs.clusters), (k, keys, inputs.key_clusters)):
        oracle_refined.check_clusters(
            assignment.numpy()[rows], x[rows], valid, count, inputs.rounds, inputs.sample, slack
        )
    centroids = oracle.group_mean(q, queries.numpy(), inputs.clusters, inputs.scale)
    norms = [np.linalg.norm(x, axis=-1).max(initial=0) for x in (centroids, k)]
    tolerance = 8 * torch.finfo(accumulation(inputs.q.dtype)).eps * norms[0] * norms[1]
    scores = oracle.centroid_scores(centroids[rows], k[rows], valid)
    oracle.check_top_keys(top.numpy()[rows], scores, valid, inputs.topk, tolerance)


def check(inputs: Refined) -> Results:
    """Decisions are optimal, and values right given the decisions."""
    out, log_mass, *_ = results = inputs.run()
    check_decisions(inputs, results)
    assert out.dtype == inputs.q.dtype and out.shape == inputs.q.shape
    assert log_mass.dtype == accumulation(inputs.q.dtype)
    assert out.transpose(1, 2).is_contiguous(), f"the output is not laid out (B, N, H, D): strides {out.stride()}"
    expected = oracle_given(inputs, results)
    assert_close("out", out, expected[0])
    finite = np.abs(expected[1][np.isfinite(expected[1])]).max(initial=0)
    assert_close("log mass", log_mass, expected[1], scale=max(1.0, finite))
    return results
