"""The one closeness rule: the error of an operator is measured against float64, and PyTorch's own error sets the bound.

    error <= factor * (error of the PyTorch reference in the same dtype) + units * eps(dtype) * scale

``factor`` is 2 for values and 3 for gradients, ``eps`` the machine epsilon of the dtype of the result, ``scale`` the
largest expected magnitude (or what the caller says, where terms larger than the result cancel). The second term is the
floor: a reference may be exact by luck. Where the PyTorch reference is itself under test there is nothing to compare
with, and the floor alone is the bound, with more units.

On a GPU, 16-bit inputs meet 16-bit weights on the way (the tensor cores multiply nothing else), so that a result in
float32 is as exact as 16 bits allow: ``eps`` is then that of the inputs, see ``rounded_to``.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

FLOOR_UNITS = 4
"""Units of the floor beside the reference's own error."""
REFERENCE_UNITS = 32
"""Units of the floor where the reference itself is tested."""

_coarsest: list[torch.dtype] = []


@contextmanager
def rounded_to(dtype: torch.dtype) -> Iterator[None]:
    """Within it, what is computed from tensors of this dtype is no more exact than they are."""
    _coarsest.append(dtype)
    yield
    _coarsest.pop()


def as_float64(x: torch.Tensor | np.ndarray) -> np.ndarray:
    return x.detach().to(torch.float64).numpy() if isinstance(x, torch.Tensor) else np.asarray(x, dtype=np.float64)


def largest_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """max |actual - expected| over the finite places; NaN where ``actual`` is not finite there."""
    finite = np.isfinite(expected)
    return float(np.abs(actual[finite] - expected[finite]).max(initial=0.0))


def assert_close(
    name: str,
    actual: torch.Tensor,
    expected: torch.Tensor | np.ndarray,
    reference: torch.Tensor | None = None,
    *,
    gradient: bool = False,
    scale: float | None = None,
    units: float | None = None,
) -> None:
    """Fail unless ``actual`` is as close to ``expected`` as the rule above asks; infinities must agree exactly."""
    got, want = as_float64(actual), as_float64(expected)
    assert got.shape == want.shape, f"{name}: shape {got.shape}, expected {want.shape}"
    assert not np.isnan(want).any(), f"{name}: the expected values hold NaN, so nothing would be tested"
    infinite = np.isinf(want)
    assert (got[infinite] == want[infinite]).all(), f"{name}: infinities differ"
    if units is None:
        units = REFERENCE_UNITS if reference is None else FLOOR_UNITS
    if scale is None:
        scale = float(np.abs(want[~infinite]).max(initial=0.0))
    allowed = units * max(torch.finfo(dtype).eps for dtype in (actual.dtype, *_coarsest)) * scale
    if reference is not None:
        allowed += (3 if gradient else 2) * largest_error(as_float64(reference), want)
    error = largest_error(got, want)
    assert error <= allowed, f"{name}: error {error:.3g} > {allowed:.3g} ({actual.dtype}, largest value {scale:.3g})"


def assert_same_bits(name: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Fail unless both tensors hold the same bits, NaN payloads and signs of zero included."""
    assert actual.dtype == expected.dtype, f"{name}: dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    different = (_bits(actual) != _bits(expected)).nonzero()
    assert not len(different), (
        f"{name}: {len(different)} of {actual.numel()} values differ in their bits, first at {different[0].tolist()}: "
        f"{actual[tuple(different[0])].item()!r}, expected {expected[tuple(different[0])].item()!r}"
    )


def _bits(x: torch.Tensor) -> torch.Tensor:
    if not x.is_floating_point():
        return x
    return x.detach().contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
