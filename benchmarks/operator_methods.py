"""The methods that benchmarks/operators.py times, and the check that each is exact attention where it must be."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from timed_cases import Case, Inputs
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bert_cluster import ClusterConfig
from bert_cluster.attention import run_layer
from bert_cluster.planes import random_planes

SDPA, IDIAP = "sdpa", "idiap"
IDIAP_PACKAGE = "pytorch-fast-transformers"
DEFAULT = ClusterConfig()
# The paper's budgets, the default, which grows with the text, what it takes for short texts, and smaller ones at any length.
CONFIGS: dict[str, ClusterConfig] = {
    "improved-clustered": ClusterConfig(method="improved-clustered"),
    "refined-clustered": DEFAULT,
    "refined-clustered, short texts' budgets": ClusterConfig(**DEFAULT.for_layer(0).budgets_at(0)),  # type: ignore[arg-type]
    "refined-clustered, C=25 K=64 M=32": ClusterConfig(
        clusters=25, topk=64, key_clusters=32, band=4, rounds=3, sample=256
    ),
}
IDIAP_BUDGETS = {"clusters": 25, "topk": 32, "bits": 63, "iterations": 10}
TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
CHECKED = (331, 1609)  # tokens, on either side of where the default's budgets grow

Run = Callable[[], Tensor]
Method = Callable[[Inputs, int | None], Run]


def sdpa(inputs: Inputs, exact: int | None) -> Run:
    """PyTorch's exact attention; the mask is broadcast over heads and queries."""
    mask = None if inputs.mask is None else inputs.mask[:, None, None, :]
    return lambda: scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, attn_mask=mask)


def layer(config: ClusterConfig, inputs: Inputs, exact: int | None) -> Run:
    """One attention layer of ours; with so many exact keys instead of its own number, if given."""
    settings = (config if exact is None else dataclasses.replace(config, topk=exact)).for_layer(0)
    planes = None
    if settings.hashes:
        planes = random_planes(settings.bits, inputs.q.shape[-1], settings.seed).to(inputs.q.device)
    return lambda: run_layer(*inputs, settings, planes, None)


def idiap(inputs: Inputs, exact: int | None) -> Run:
    """The improved clustered attention of idiap/fast-transformers; masks are made beforehand, as its models do."""
    from fast_transformers.attention import ImprovedClusteredAttention
    from fast_transformers.masking import FullMask, LengthMask

    batch, _, tokens, _ = inputs.q.shape
    topk = IDIAP_BUDGETS["topk"] if exact is None else exact
    clusters = min(IDIAP_BUDGETS["clusters"], tokens)  # it refuses more
    settings = {**IDIAP_BUDGETS, "topk": topk, "clusters": clusters}
    attention = ImprovedClusteredAttention(**settings, attention_dropout=0.0).eval()
    lengths = torch.full((batch,), tokens) if inputs.mask is None else inputs.mask.sum(dim=1)
    every, valid = FullMask(tokens), LengthMask(lengths, max_len=tokens)
    q, k, v = (one.transpose(1, 2) for one in inputs[:3])
    return lambda: attention(q, k, v, every, valid, valid).transpose(1, 2)


METHODS: dict[str, Method] = {
    SDPA: sdpa,
    **{name: functools.partial(layer, config) for name, config in CONFIGS.items()},
    IDIAP: idiap,
}


@functools.cache
def idiap_missing() -> str | None:
    """Why idiap's package cannot be imported; None if it can."""
    try:
        import fast_transformers.attention  # noqa: F401
    except (ImportError, OSError) as error:
        return str(error)
    return None


def idiap_version() -> str:
    """Of the installed package; it may also be used from a folder where it was built, which has no version."""
    try:
        return version(IDIAP_PACKAGE)
    except PackageNotFoundError:
        return "built from source"


def methods_for(case: Case) -> dict[str, Method]:
    """What can run a case: idiap's operators are there if its package is, and take float32 only; they are timed on the CPU."""
    without = set() if idiap_missing() is None and (case.dtype, case.device) == ("float32", "cpu") else {IDIAP}
    return {name: method for name, method in METHODS.items() if name not in without}


def budgets(device: str = "cpu") -> dict[str, dict[str, Any]]:
    """The budgets of every method that has some, by name."""
    ours: dict[str, dict[str, Any]] = {name: dict(config.for_layer(0).budgets()) for name, config in CONFIGS.items()}
    return ours if idiap_missing() or device != "cpu" else {**ours, IDIAP: IDIAP_BUDGETS}


def check(case: Case, lengths: Sequence[int] = CHECKED) -> None:
    """With every valid key exact, each method must be exact attention to rounding, and zero on padding.

    Raises:
        SystemExit: one is not; it says which, where and by how much.
    """
    for tokens in lengths:
        inputs = case.inputs(tokens)
        exact = sdpa(Inputs(*(one.double() for one in inputs[:3]), inputs.mask), None)()
        for name, method in methods_for(case).items():
            found = method(inputs, case.valid(tokens))().double()
            _refuse(found, exact, case, name, tokens)
            if name != SDPA and found[:, :, case.valid(tokens) :].any():
                sys.exit(
                    f"{name} is not 0 on padding in the case {case.name!r} at {tokens} tokens: nothing is timed. {_REMEDY}"
                )


_REMEDY = "Build the operators again (python setup.py build_ext --inplace), and report it if that does not help."


def _refuse(found: Tensor, exact: Tensor, case: Case, name: str, tokens: int) -> None:
    valid, most = case.valid(tokens), TOLERANCES[case.dtype]
    error = (found - exact)[:, :, :valid].abs().max().item()
    if not error <= most:
        sys.exit(
            f"{name} is off by {error:.1e} in the case {case.name!r} at {tokens} tokens, where every key is exact and at most "
            f"{most:.0e} is rounding: nothing is timed. {_REMEDY}"
        )
