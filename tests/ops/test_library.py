"""What `cuda_ops` says about itself: what runs a call, and that the reference never runs silently."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from operator_cases import DTYPES

import cuda_ops
from cuda_ops import _library

pytestmark = pytest.mark.cpu


def test_status_is_consistent() -> None:
    status = _library.status()
    if status.compiled:
        assert status.reason is None and status.remedy is None
        assert Path(status.library).is_file()
        assert "portable" in status.instruction_sets and status.active_instruction_set in status.instruction_sets
        assert status.built_against
    else:
        assert status.reason and status.remedy and status.library is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_has_compiled_operators(dtype: torch.dtype, compiled: None) -> None:
    assert _library.backend_for("cpu", dtype) == f"cpu-{_library.status().active_instruction_set}"


def test_other_devices_and_dtypes_run_on_the_reference() -> None:
    assert _library.backend_for("mps", torch.float32) == "reference"
    assert _library.backend_for("cpu", torch.int32) == "reference"


def test_the_reference_warns_once() -> None:
    _library._warn_once.cache_clear()
    with pytest.warns(
        _library.ReferenceBackendWarning, match="runs on its PyTorch reference, which is slow: .* To change that, "
    ):
        _library.warn_if_reference("mps", torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _library.warn_if_reference("mps", torch.float32)


def test_meta_tensors_do_not_warn() -> None:
    """Shapes only: nothing runs on the reference."""
    _library._warn_once.cache_clear()
    x = torch.empty(1, 2, 5, 4, device="meta")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cuda_ops.full_attention(x, x, x)[0].shape == x.shape


def test_the_module_reports() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cuda_ops"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    status = _library.status()
    assert result.returncode == (0 if status.compiled else 1), result.stderr
    assert f"torch {torch.__version__}" in result.stdout.replace("torch:         ", "torch ")
    assert (f"in use: {status.active_instruction_set}" if status.compiled else status.remedy) in result.stdout
