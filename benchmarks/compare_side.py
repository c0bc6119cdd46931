"""One side of benchmarks/compare.py, which runs it with the package of that side on the path: checked, then counted or timed.

It uses nothing of this project but the operators of whole methods, so that it runs with an earlier state of it.
"""

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import cuda_ops

# Operator -> its budgets: fixed, because defaults may differ between the sides.
OPERATORS: dict[str, dict[str, int]] = {
    "full_attention": {},
    "clustered": {"clusters": 25, "iterations": 10},
    "improved_clustered": {"clusters": 25, "topk": 32, "iterations": 10},
    "refined_clustered": {
        "clusters": 25,
        "topk": 96,
        "key_clusters": 32,
        "band": 4,
        "rounds": 3,
        "sample": 256,
    },
}
HASHING = ("clustered", "improved_clustered")
HEAD_SIZE, BITS = 64, 63
WARM_UP = 32  # tokens of a call before the counted one
TOLERANCE = 1e-5


def inputs(tokens: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v: (1, H, N, D) views of (1, N, H, D), standard normal."""
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(1, tokens, heads, HEAD_SIZE, generator=generator).transpose(1, 2) for _ in range(3))
    return q, k, v


def call(operator: str, q: Tensor, k: Tensor, v: Tensor, **budgets: int) -> Tensor:
    """The output of one operator with its budgets but for the given ones."""
    planes = torch.randn(BITS, HEAD_SIZE, generator=torch.Generator().manual_seed(0))
    hashed = (planes,) if operator in HASHING else ()
    return getattr(cuda_ops, operator)(q, k, v, None, *hashed, **{**OPERATORS[operator], **budgets})[0]


def with_gradient(operator: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The gradients of q, k and v through one operator."""
    leaves = [one.detach().requires_grad_() for one in (q, k, v)]
    return torch.autograd.grad(call(operator, *leaves).sum(), leaves)


def calls(tokens: int, heads: int) -> dict[str, Callable[[], Any]]:
    """Every operator that this side has, forward alone and with its gradient, by name."""
    q, k, v = inputs(tokens, heads)
    found: dict[str, Callable[[], Any]] = {}
    for operator in OPERATORS:
        if hasattr(cuda_ops, operator):
            found[operator] = partial(call, operator, q, k, v)
            found[f"{operator}, with gradient"] = partial(with_gradient, operator, q, k, v)
    return found


def check(tokens: int = 97, heads: int = 2) -> None:
    """Exact attention where every key is exact; clustered attention is improved clustered attention without exact keys."""
    q, k, v = inputs(tokens, heads)
    exact = scaled_dot_product_attention(q, k, v)
    for operator in OPERATORS:
        if not hasattr(cuda_ops, operator):
            continue
        expected = call("improved_clustered", q, k, v, topk=0) if operator == "clustered" else exact
        budgets = {} if operator in ("clustered", "full_attention") else {"topk": tokens}
        error = (call(operator, q, k, v, **budgets) - expected).abs().max().item()
        if not error <= TOLERANCE:
            sys.exit(
                f"{operator} is off by {error:.1e} at {tokens} tokens, where at most {TOLERANCE:.0e} is rounding: "
                "nothing is compared."
            )


def require_compiled(root: Path) -> None:
    """The operators must be those of `root`, and compiled."""
    found, status = Path(cuda_ops.__file__).resolve().parent.parent, cuda_ops.status()
    if found != root.resolve():
        sys.exit(f"cuda_ops was imported from {found}, expected {root}. Is another one first on the path?")
    if not status.compiled:
        sys.exit(f"The operators of {root} are not compiled: {status.reason}. {status.remedy}.")


def count(tokens: int, heads: int, marks: Path) -> None:
    """One counted call of each operator, after a short one that is not; callgrind writes the counts."""
    library = ctypes.CDLL(str(marks))
    warm_up = calls(WARM_UP, heads)
    for name, run in calls(tokens, heads).items():
        warm_up[name]()
        library.begin_count()
        run()
        library.end_count(name.encode())


def milliseconds(tokens: int, heads: int, turns: int) -> dict[str, float]:
    """The median of so many turns of each operator, after one that is not counted."""
    times: dict[str, list[float]] = {}
    every = calls(tokens, heads)
    for turn in range(turns + 1):
        for name, run in every.items():
            start = time.perf_counter()
            run()
            if turn:
                times.setdefault(name, []).append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--marks", type=Path, help="the compiled marks; count instead of timing")
    options = parser.parse_args()
    require_compiled(options.root)
    check()
    if options.marks:
        count(options.tokens, options.heads, options.marks)
    else:
        print(json.dumps(milliseconds(options.tokens, options.heads, options.turns)))


if __name__ == "__main__":
    main()
