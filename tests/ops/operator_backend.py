"""The operator tests on the CUDA operators: CUDA_OPS_TEST_BACKEND says which ones stand for `torch.ops.cuda_ops` on CPU tensors.

- `host-cuda`: the CUDA operators compiled for the host (tests/cuda/host_library.py). An operator without such a kernel
  keeps its CPU kernel; tests/cuda/test_operator_suite.py fails as long as there is one.
- `cuda`: those on the GPU. The tests' tensors stay on the CPU; each call takes copies of the same strides to the GPU and
  brings its results back.

Wrappers, checks, fake kernels and gradients stay as they are, and so do the tests. CUDA_OPS_TEST_SAMPLE=n runs at most n
parameter sets of each test, always the same ones, of whatever operators: a kernel on the host is some hundred times slower
than it should be.
"""

import os
import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from cuda_ops.schemas import SCHEMAS

VARIABLE = "CUDA_OPS_TEST_BACKEND"
BACKENDS = ("host-cuda", "cuda")
SAMPLE = "CUDA_OPS_TEST_SAMPLE"


def wanted() -> str | None:
    """The backend that the environment asks for; None for the operators as they are."""
    backend = os.environ.get(VARIABLE)
    if backend and backend not in BACKENDS:
        raise pytest.UsageError(f"{VARIABLE} must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    return backend or None


def copied(x: Tensor, device: str) -> Tensor:
    """x on a device, with the strides that it has, in memory of its own."""
    elements = x.untyped_storage().nbytes() // x.element_size()
    memory = x.as_strided((elements,), (1,), 0).to(device, copy=True)
    return memory.as_strided(x.shape, x.stride(), x.storage_offset())


def run_elsewhere(operator: Callable[..., Any], device: str) -> Callable[..., Any]:
    """The operator with its arguments copied to a device and its results copied back."""

    def run(*arguments: Any) -> Any:
        there = _pytree.tree_map_only(Tensor, lambda x: copied(x, device), arguments)
        return _pytree.tree_map_only(Tensor, lambda x: copied(x, "cpu"), operator(*there))

    return run


def all_names() -> list[str]:
    """The operators, by their schemas."""
    return [schema.partition("(")[0] for schema in SCHEMAS]


def has_kernel(namespace: str, name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{name}", key)


def substitute(namespace: str, key: str, device: str, names: Iterable[str]) -> torch.library.Library:
    """Lets the operators of a namespace, as far as they have a kernel for `key`, stand for ours; until the result is destroyed."""
    overrides = torch.library.Library("cuda_ops", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)
        for name in names:
            if has_kernel(namespace, name, key):
                operator = getattr(getattr(torch.ops, namespace), name).default
                overrides.impl(name, run_elsewhere(operator, device), "CPU", allow_override=True)
    return overrides


def leaves_out(item: pytest.Item, backend: str) -> bool:
    """Whether a test says nothing about the CUDA operators.

    Those on the reference, and those about the CPU operators alone. float64 runs on the reference: on the host that is
    the one already tested, and it does not promise the bits that tests of compiled operators ask for.
    """
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    double = any(x is torch.float64 or (isinstance(x, tuple) and torch.float64 in x) for x in parameters.values())
    return (
        item.get_closest_marker("cpu") is not None
        or parameters.get("backend") == "reference"
        or (double and (backend == "host-cuda" or "compiled" in item.fixturenames))
        or (item.name.startswith("test_gradcheck") and backend == "host-cuda")  # in float64 without a parameter for it
    )


def sample(items: Sequence[pytest.Item], most: int) -> set[pytest.Item]:
    """Of each test function at most so many parameter sets, drawn with a fixed seed."""
    functions: dict[str, list[pytest.Item]] = {}
    for item in items:
        functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return {
        item
        for name, group in functions.items()
        for item in (random.Random(name).sample(group, most) if len(group) > most else group)
    }
