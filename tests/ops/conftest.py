"""What every operator test gets besides: poisoned memory, and no warning about the reference."""

import warnings

import pytest
import torch

from cuda_ops import _library


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
