"""The fused operators equal the composition of their stages bit for bit: the compiled ones, which share kernels."""

import pytest
import torch
from operator_cases import DTYPES, Case, compose, stage_codes
from tolerance import assert_same_bits

import cuda_ops

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.instruction_path]

CASES = [
    Case(B=6, N=29),
    Case(B=6, H=4, H_kv=2, N=61, D=13, C=7, K=17, P=67, iterations=5),
    Case(B=2, N=31, D=64, C=25, K=32, P=63, iterations=10),
    Case(B=2, N=131, D=65, C=11, K=32, P=128),
    Case(B=2, N=17, D=1, C=29, K=19, P=3),
    Case(B=1, N=23, D=256, C=3, K=0, mask=None),
    Case(B=1, H=2, N=523, D=32, C=25, K=64, P=63, mask="holes"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_improved_clustered(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    assignment, top = stage_codes(inputs)
    out, log_mass = compose(cuda_ops, inputs, assignment, top)
    for name, fused, staged in zip(
        ("out", "log mass", "assignment", "top keys"), inputs.improved(), (out, log_mass, assignment, top), strict=True
    ):
        assert_same_bits(name, fused, staged)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_clustered(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype).changed(topk=0)
    assignment, top = stage_codes(inputs)
    out, log_mass = compose(cuda_ops, inputs, assignment, top)
    for name, fused, staged in zip(
        ("out", "log mass", "assignment"), inputs.clustered(), (out, log_mass, assignment), strict=True
    ):
        assert_same_bits(name, fused, staged)


@pytest.mark.parametrize("N", range(1, 71))
def test_every_number_of_tokens(N: int) -> None:
    inputs = Case(B=1, H=2, N=N, D=19, C=5, K=7, mask=None).inputs()
    assignment, top = stage_codes(inputs)
    out, log_mass = compose(cuda_ops, inputs, assignment, top)
    assert_same_bits("out", inputs.improved()[0], out)
    assert_same_bits("log mass", inputs.improved()[1], log_mass)
