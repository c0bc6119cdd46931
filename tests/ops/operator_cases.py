"""Inputs of the operator tests, and the fused operators written as their stages.

Shapes are primes, so that a transposed axis cannot pass.
"""

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import cuda_ops

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
MASKS = ["holes", "left", "right", "all", "one", "none"]
"""What a batch row's mask can look like: ``one`` valid token, or ``none``. ``mixed`` gives row b the b-th of them."""


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def numpy(x: Tensor | None) -> np.ndarray | None:
    """As the oracle takes it: floating point as float64, everything else as it is."""
    if x is None:
        return None
    return (x.detach().double() if x.is_floating_point() else x).numpy()


def make_mask(kind: str | None, batch: int, tokens: int, seed: int = 0) -> Tensor | None:
    """(B, N) bool, or None for ``kind`` None."""
    if kind is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    for b in range(batch):
        row = MASKS[b % len(MASKS)] if kind == "mixed" else kind
        pad = tokens // 3
        if row == "left":
            mask[b, :pad] = False
        elif row == "right":
            mask[b, tokens - pad :] = False
        elif row == "holes":
            mask[b] = torch.rand(tokens, generator=generator) < 0.7
        elif row in ("one", "none"):
            mask[b] = False
            if row == "one" and tokens:
                mask[b, tokens // 2] = True
    return mask


@dataclass
class Inputs:
    """The arguments of the fused operators. ``arguments`` hands them over by name."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    planes: Tensor
    clusters: int
    topk: int
    iterations: int
    scale: float
    exact_below: int = 0

    def improved(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return cuda_ops.improved_clustered(**self.arguments())

    def clustered(self) -> tuple[Tensor, Tensor, Tensor]:
        return cuda_ops.clustered(**{name: value for name, value in self.arguments().items() if name != "topk"})

    def full(self) -> tuple[Tensor, Tensor]:
        return cuda_ops.full_attention(self.q, self.k, self.v, mask=self.mask, scale=self.scale)

    def arguments(self) -> dict[str, Any]:
        # by hand: the dynamo of torch 2.11 cannot trace vars()
        return {
            "q": self.q,
            "k": self.k,
            "v": self.v,
            "mask": self.mask,
            "planes": self.planes,
            "clusters": self.clusters,
            "topk": self.topk,
            "iterations": self.iterations,
            "scale": self.scale,
            "exact_below": self.exact_below,
        }

    def changed(self, **values: Any) -> "Inputs":
        return replace(self, **values)

    def numpy(self) -> tuple[Any, ...]:
        """q, k, v and mask for the oracle."""
        return numpy(self.q), numpy(self.k), numpy(self.v), numpy(self.mask)


@dataclass(frozen=True)
class Case:
    """A shape; ``inputs`` draws the tensors."""

    B: int = 2
    H: int = 3
    N: int = 13
    D: int = 7
    C: int = 5
    K: int = 3
    P: int = 11
    H_kv: int = 0  # 0: as many as H
    iterations: int = 2
    mask: str | None = "mixed"
    exact_below: int = 0

    def __str__(self) -> str:
        default = Case()
        return (
            "-".join(f"{name}{value}" for name, value in vars(self).items() if value != getattr(default, name))
            or "default"
        )

    def inputs(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        q = normal(self.B, self.H, self.N, self.D).to(dtype)
        k, v = (normal(self.B, self.H_kv or self.H, self.N, self.D).to(dtype) for _ in range(2))
        return Inputs(
            q=q,
            k=k,
            v=v,
            mask=make_mask(self.mask, self.B, self.N, seed),
            planes=normal(self.P, self.D).float(),
            clusters=self.C,
            topk=self.K,
            iterations=self.iterations,
            scale=1.3 * self.D**-0.5,
            exact_below=self.exact_below,
        )


def pad_with(x: Tensor, mask: Tensor, value: float) -> Tensor:
    """x (B, H, N, ...) with ``value`` wherever the token is padded."""
    keep = mask[:, None, :].reshape(mask.shape[0], 1, mask.shape[1], *[1] * (x.dim() - 3))
    return torch.where(keep, x, torch.full_like(x, value))


def spread(x: Tensor, mask: Tensor, garbage: float = float("nan")) -> Tensor:
    """One row's n tokens x (1, H, n, D) -> (1, H, N, D) at the valid places of the mask (N,), ``garbage`` elsewhere."""
    out = torch.full((*x.shape[:2], len(mask), *x.shape[3:]), garbage, dtype=x.dtype)
    out[:, :, mask] = x
    return out


def stage_codes(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Assignment and top keys as the stage operators decide them."""
    codes = cuda_ops.hash_vectors(inputs.q, inputs.planes, mask=inputs.mask)
    bits = inputs.planes.shape[0]
    assignment, _ = cuda_ops.cluster_codes(
        codes, mask=inputs.mask, bits=bits, clusters=inputs.clusters, iterations=inputs.iterations
    )
    centroids = cuda_ops.group_mean(inputs.q, assignment, clusters=inputs.clusters, scale=inputs.scale)
    scores = cuda_ops.centroid_scores(centroids, inputs.k, mask=inputs.mask)
    return assignment, cuda_ops.top_keys(scores, mask=inputs.mask, topk=inputs.topk)


def compose(operators: ModuleType | Any, inputs: Inputs, assignment: Tensor, top_keys: Tensor) -> tuple[Tensor, Tensor]:
    """The fused forward as its stages, given the decisions: output (B, H, N, D) and log mass (B, H, N).

    ``operators`` are ours or the reference's.
    """
    q, k, v, mask, scale = inputs.q, inputs.k, inputs.v, inputs.mask, inputs.scale
    centroids = operators.group_mean(q, assignment, inputs.clusters, scale)
    scores = operators.centroid_scores(centroids, k, mask)
    rest, top_mass, log_mass = operators.centroid_attention(scores, v, mask, top_keys)
    exact = operators.exact_attention(q, k, v, assignment, top_keys, top_mass, scale)
    out = exact + operators.group_scatter(rest, assignment)
    by_token = operators.group_scatter(log_mass.unsqueeze(3), assignment).squeeze(3)
    return out.to(q.dtype), torch.where(assignment >= 0, by_token, -torch.inf)
