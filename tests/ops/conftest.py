"""What every operator test gets besides: poisoned memory, no warning about the reference, the operators asked for."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import operator_backend
import pytest
import tolerance
import torch

from cuda_ops import _library

if operator_backend.wanted() == "cuda":
    # What cuBLAS wants of deterministic programs, before it is loaded: poisoned_memory makes torch ask for it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where CUDA operators are tested, leaves out what says nothing about them; takes a sample where one is asked for."""
    backend, most = operator_backend.wanted(), int(os.environ.get(operator_backend.SAMPLE, 0))
    here = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    chosen = [item for item in here if backend is None or not operator_backend.leaves_out(item, backend)]
    if most:
        drawn = operator_backend.sample(chosen, most)
        chosen = [item for item in chosen if item in drawn]
    left_out = set(here) - set(chosen)
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]
    if backend == "cuda" and not torch.cuda.is_available():
        for item in chosen:
            item.add_marker(pytest.mark.skip(reason="there is no GPU"))


@pytest.fixture(scope="session", autouse=True)
def operators_asked_for() -> Iterator[None]:
    """Puts the operators that CUDA_OPS_TEST_BACKEND names in the place of the CPU operators."""
    backend = operator_backend.wanted()
    if backend is None:
        yield
        return
    if backend == "host-cuda":
        import host_library

        host_library.load()
        source = (host_library.NAMESPACE, "CPU", "cpu")
    else:
        assert _library.backend_for("cuda", torch.float32) == "cuda", "no CUDA operators were built: python -m cuda_ops"
        source = ("cuda_ops", "CUDA", "cuda")
    overrides = operator_backend.substitute(*source, operator_backend.all_names())
    yield
    overrides._destroy()


@pytest.fixture(autouse=True)
def as_exact_as_its_inputs(request: pytest.FixtureRequest) -> Iterator[None]:
    """On the tensor cores 16-bit inputs are multiplied with weights of 16 bits: see tolerance.py."""
    parameters = request.node.callspec.params.values() if hasattr(request.node, "callspec") else ()
    narrow = [x for x in parameters if x in (torch.bfloat16, torch.float16)]
    if operator_backend.wanted() is None or not narrow:
        yield
        return
    with tolerance.rounded_to(narrow[0]):
        yield


@pytest.fixture(autouse=True)
def poisoned(poisoned_memory: None) -> None:
    """Applies :func:`poisoned_memory` to all tests of this folder: what an operator forgets to write is NaN."""


@pytest.fixture(scope="session", autouse=True)
def warned_about_the_reference() -> None:
    """Where nothing is compiled the first call of an operator warns, once: here (test_library.py tests the warning)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _library.ReferenceBackendWarning)
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            _library.warn_if_reference("cpu", dtype)
