"""A library built here runs on any processor of the family: no object carries another's instructions into the program.

The linker keeps one copy of a function that several objects define as weak (templates, inline functions). If an object
compiled for AVX-512 had one, the baseline could end up calling it. So these objects define nothing but their own table.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from compiled_objects import compile_all, kernel_objects

from build_support import extension, sources

pytestmark = pytest.mark.install

DEFINED_ELSEWHERE = "U"
INTERNAL = "abdrtNn"


@pytest.fixture(scope="module")
def objects() -> dict[Path, Path]:
    return compile_all()


def tool(name: str, *arguments: str) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"{name} (binutils) is not on this machine")
    return subprocess.run([name, *arguments], capture_output=True, text=True, check=True).stdout


def symbols(binary: Path, *flags: str) -> list[tuple[str, str]]:
    """Type letter and readable name of every symbol."""
    lines = tool("nm", "--demangle", *flags, str(binary)).splitlines()
    return [(match[1], match[2]) for line in lines if (match := re.match(r"[0-9a-f ]*(\w) (.*)", line))]


@pytest.mark.parametrize("instruction_set", sources.family().instruction_sets)
def test_kernels_define_nothing_but_their_table(objects: dict[Path, Path], instruction_set: str) -> None:
    found = symbols(kernel_objects(objects)[instruction_set])
    visible = {name for letter, name in found if letter not in INTERNAL + DEFINED_ELSEWHERE}
    assert visible == {f"cuda_ops::cpu::{instruction_set}_kernels(cuda_ops::cpu::Dtype)"}


@pytest.mark.parametrize("instruction_set", sources.family().instruction_sets)
def test_kernels_need_nothing_that_templates_could_have_compiled(
    objects: dict[Path, Path], instruction_set: str
) -> None:
    needed = {name for letter, name in symbols(kernel_objects(objects)[instruction_set]) if letter == DEFINED_ELSEWHERE}
    assert not {name for name in needed if name.startswith(("std::", "c10::", "at::", "torch::"))}


@pytest.mark.skipif(sources.family() != sources.X86_64, reason="the instructions of x86-64")
def test_only_the_kernels_of_an_instruction_set_contain_its_instructions(objects: dict[Path, Path]) -> None:
    kernels = kernel_objects(objects)
    wide = {source: wide_registers(made) for source, made in objects.items()}
    of_set = sources.kernel_sources(extension.PROJECT, sources.family())
    assert wide.pop(of_set["avx512"]) == {"ymm", "zmm"}
    assert wide.pop(of_set["avx2"]) == {"ymm"}, kernels["avx2"]
    assert set().union(*wide.values()) == set(), {source.name: found for source, found in wide.items() if found}


def wide_registers(made: Path) -> set[str]:
    """The kinds of vector registers wider than the baseline's that the code names, and "vex" for its AVX encodings."""
    code = tool("objdump", "--disassemble", "--no-show-raw-insn", str(made))
    registers = set(re.findall(r"%(ymm|zmm)\d", code))
    return registers or ({"vex"} if re.search(r"\sv\w+\s.*%xmm", code) else set())


def test_library_exports_its_entry_points_only(objects: dict[Path, Path]) -> None:
    library = extension.PROJECT / "cuda_ops" / "_C.abi3.so"
    if not library.is_file():
        pytest.skip("the library was not built in this source tree")
    exported = {name for letter, name in symbols(library, "--dynamic", "--defined-only") if letter == "T"}
    assert {"cuda_ops_instruction_sets", "cuda_ops_active_instruction_set"} <= exported
    assert not {name for name in exported if name.startswith("cuda_ops::")}
