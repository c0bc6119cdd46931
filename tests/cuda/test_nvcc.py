"""The same files compiled for GPUs: every architecture, no warnings, no spills. Skipped where there is no nvcc."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from host_kernels import sources

# The default list of architectures, as far as the toolkit knows them.
WANTED = ("80", "86", "89", "90", "100", "120")
SHARED_LIMIT = 48 * 1024


def known_architectures(nvcc: str) -> list[str]:
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    return [one for one in WANTED if f"compute_{one}" in listed.split()]


@pytest.mark.parametrize("source", sources(), ids=lambda source: str(source.stem))
def test_every_architecture_compiles_without_spills(tmp_path: Path, source: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    found = known_architectures(nvcc)
    assert found, "the toolkit knows none of the architectures that are built for"
    code = [f"-gencode=arch=compute_{one},code=sm_{one}" for one in found]
    flags = ["-std=c++20", "-O3", "-Xptxas=-v", "-Xcompiler=-Wall,-Wextra", "--threads=2"]
    made = subprocess.run(
        [nvcc, *flags, *code, "-c", str(source), "-o", str(tmp_path / "object.o")], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert "warning" not in made.stderr, made.stderr
    spills = {int(number) for number in re.findall(r"(\d+) bytes spill", made.stderr)}
    assert spills == {0}, made.stderr
    shared = [int(number) for number in re.findall(r"(\d+) bytes smem", made.stderr)]
    assert shared and max(shared) <= SHARED_LIMIT
