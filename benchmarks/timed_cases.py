"""What benchmarks/operators.py times: cases of shape, type, padding, device, threads and instruction set, and their inputs."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
GPU_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class Inputs(NamedTuple):
    """One layer's tensors.

    Attributes:
        q, k, v: (B, H, N, D).
        mask: (B, N) bool, true where a token is valid; None: all are.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Case:
    """One table of times.

    Args:
        name: as the results call it.
        threads: that PyTorch and the operators use.
        tokens: lengths N.
        batch, heads, head_size: B, H, D.
        dtype: a float type of torch, by name.
        padding: fraction of the tokens of each row that are padding, at its end.
        instruction_set: that the operators are held to; None: the processor's best.
        device: "cpu" or "cuda".
    """

    name: str
    threads: int
    tokens: tuple[int, ...] = LENGTHS
    batch: int = 1
    heads: int = 12
    head_size: int = 64
    dtype: str = "float32"
    padding: float = 0.0
    instruction_set: str | None = None
    device: str = "cpu"

    def valid(self, tokens: int) -> int:
        """Valid tokens of each row, at least one."""
        return max(1, round(tokens * (1 - self.padding)))

    def inputs(self, tokens: int) -> Inputs:
        """Standard normal q, k, v as transformers hands them over: (B, H, N, D) views of (B, N, H, D)."""
        generator = torch.Generator().manual_seed(tokens)
        shape = (self.batch, tokens, self.heads, self.head_size)
        dtype = getattr(torch, self.dtype)
        q, k, v = (torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for _ in range(3))
        mask = (torch.arange(tokens) < self.valid(tokens)).repeat(self.batch, 1) if self.padding else None
        return Inputs(*(None if one is None else one.to(self.device) for one in (q, k, v, mask)))

    def described(self) -> dict[str, Any]:
        """Shape, padding and threads, for the results file."""
        shape = {"B": self.batch, "H": self.heads, "D": self.head_size, "dtype": self.dtype}
        return {"shape": shape, "padding": self.padding, "threads": self.threads}


def suite(base: Case) -> list[Case]:
    """The cases beside the base case: each changes one thing of it, at two lengths.

    The default shape of the base case is what the names speak of; its threads and type are kept where a case does not
    name its own.
    """
    few, long = (512, 2048), (2048, 8192)
    cases = [
        replace(base, name="half the tokens padded", batch=8, padding=0.5, tokens=few),
        replace(base, name="heads of 32", head_size=32, tokens=few),
        replace(base, name="heads of 128", head_size=128, tokens=few),
        replace(base, name="bfloat16", dtype="bfloat16", tokens=few),
        replace(base, name="float16", dtype="float16", tokens=few),
        replace(base, name="one head, one thread", heads=1, threads=1, tokens=long),
    ]
    if base.threads > 1:
        cases.append(replace(base, name="one head, all threads", heads=1, tokens=long))
    return [*cases, replace(base, name="AVX2", instruction_set="avx2", tokens=few)]


def gpu_suite(base: Case) -> list[Case]:
    """The cases beside the base case on a GPU: 16,384 tokens in flight whatever their length, padding, other heads and types."""
    few = (2048, 8192)
    return [
        replace(base, name="16 rows", batch=16, tokens=(1024,)),
        replace(base, name="4 rows", batch=4, tokens=(4096,)),
        replace(base, name="2 rows", batch=2, tokens=(8192,)),
        replace(base, name="half the tokens padded", batch=8, padding=0.5, tokens=few),
        replace(base, name="heads of 32", head_size=32, tokens=few),
        replace(base, name="heads of 128", head_size=128, tokens=few),
        replace(base, name="float16", dtype="float16", tokens=few),
        replace(base, name="float32", dtype="float32", tokens=few),
    ]
