"""The same files compiled for GPUs: every architecture, no warnings, no spills. Skipped where there is no nvcc.

One intermediate code serves all architectures, or two where the sources ask which it is, to save time. Spills count where
that is what a build makes; the results file of cuda_registers.py has those of all as they are built, of these very sources.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_registers import command, known_architectures, readable, sources, usages
from host_library import HERE, kernel_sources

SHARED_LIMIT = 48 * 1024
OUTPUT = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN40_GLOBAL__N__9a_12_group_mean_cu_c40aefca4meanI5HeadsEEvT_' for 'sm_80'
ptxas info    : Function properties for _ZN40_GLOBAL__N__9a_12_group_mean_cu_c40aefca4meanI5HeadsEEvT_
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 4608 bytes smem, 392 bytes cmem[0]
ptxas info    : Compiling entry function '_Z5clearPf' for 'sm_120'
ptxas info    : Function properties for _Z5clearPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


def test_what_the_compiler_says_is_read() -> None:
    first, second = usages(OUTPUT)
    assert first[1:] == ("80", 32, 12, 16, 4608)
    assert second == ("_Z5clearPf", "120", 8, 0, 0, 0)
    if shutil.which("c++filt"):
        assert readable([first.name, second.name]) == ["mean<Heads>", "clear"]


def groups(architectures: list[str], source: Path) -> list[list[str]]:
    """Those that one intermediate code serves."""
    asked = {one for text in sources(source).values() for one in re.findall(r"__CUDA_ARCH__(?!\)) (.*)", text)}
    if not asked:  # nvcc then writes the same for 8.0 and 9.0
        return [architectures]
    assert asked <= {"< 900", "!= 900"}, "the code for an older architecture and that for 9.0 have every branch"
    split = ([one for one in architectures if (int(one) < 90) is before] for before in (True, False))
    return [group for group in split if group]


@pytest.mark.parametrize(
    "source", [*kernel_sources(), HERE / "matrix_products.cu"], ids=lambda source: str(source.stem)
)
def test_every_architecture_compiles_without_spills(tmp_path: Path, source: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    found = known_architectures(nvcc)
    assert found, "the toolkit knows none of the architectures that are built for"
    compiled = command(nvcc, groups(found, source), source, tmp_path / "kernels.fatbin")
    made = subprocess.run(compiled, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "warning" not in made.stderr, made.stderr
    kernels = usages(made.stderr)
    assert len(kernels) == made.stderr.count("Compiling entry function")
    assert bool(kernels) == ("CUDA_OPS_KERNEL" in source.read_text(encoding="utf-8"))
    for one in kernels:
        assert one.shared_bytes <= SHARED_LIMIT, one
        assert one.spill_bytes == 0 or one.architecture not in ("80", "90"), one
