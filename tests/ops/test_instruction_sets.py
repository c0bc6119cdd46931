"""Every instruction set that this machine has passes the tests marked ``instruction_path``, each in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cuda_ops import _library

pytestmark = pytest.mark.cpu
FOLDER = Path(__file__).parent
INSTRUCTION_SETS = ["portable", "avx2", "avx512", "neon"]


def run_in_process(instruction_set: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CUDA_OPS_INSTRUCTION_SET": instruction_set}
    return subprocess.run(
        [sys.executable, *command],
        check=False,
        cwd=FOLDER.parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_the_operators_pass_on(instruction_set: str) -> None:
    status = _library.status()
    if instruction_set == status.active_instruction_set:
        pytest.skip(f"{instruction_set} is what this process runs")
    if instruction_set not in status.instruction_sets:
        pytest.skip(f"the library has no {instruction_set} code")
    probe = run_in_process(instruction_set, "-m", "cuda_ops")
    if "cannot be had" in probe.stderr:
        pytest.skip(f"this processor has no {instruction_set}")
    assert f"in use: {instruction_set}" in probe.stdout, probe.stdout + probe.stderr
    pytest_options = ["-q", "--no-header", "-p", "no:cacheprovider", "-m", "instruction_path", "-k", "not reference"]
    result = run_in_process(instruction_set, "-m", "pytest", *pytest_options, str(FOLDER))
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-6000:] + result.stderr[-2000:]


def test_an_unknown_name_is_an_error() -> None:
    result = run_in_process("sse9", "-m", "cuda_ops")
    assert result.returncode != 0
    assert "CUDA_OPS_INSTRUCTION_SET must be one of portable, avx2, avx512, neon, got 'sse9'" in result.stderr
