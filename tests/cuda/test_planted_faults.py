"""The host stands for the device well enough to notice what goes wrong there: kernels with planted faults fail."""

import subprocess
from pathlib import Path

import pytest
from host_kernels import FLAGS, HERE, sources

from build_support import compiler

BARRIER = "device::barrier();"


COMPILE = [*(flag for flag in FLAGS if flag not in ("-O2", "-Werror")), "-O1", "-c", "-x", "c++"]


@pytest.fixture(scope="module")
def command() -> list[str]:
    found = compiler.find_compiler()
    if found is None:
        pytest.skip("there is no C++ compiler")
    return [*found]


@pytest.fixture(scope="module")
def objects(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program and the kernels as they are, by the names of their files."""
    folder = tmp_path_factory.mktemp("objects")
    return {source.stem: compiled(command, source, folder) for source in [*sources(), HERE / "planted_main.cpp"]}


def compiled(command: list[str], source: Path, folder: Path) -> Path:
    target = folder / f"{source.stem}.o"
    made = subprocess.run([*command, *COMPILE, str(source), "-o", str(target)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return target


def planted(folder: Path, name: str, old: str, new: str, occurrence: int) -> Path:
    """A file of kernels with a fault in it."""
    (source,) = [source for source in sources() if source.stem == name]
    parts = source.read_text(encoding="utf-8").replace('#include "', f'#include "{source.parent}/').split(old)
    assert len(parts) > occurrence + 1, f"{name} has no {old!r} number {occurrence}"
    text = old.join(parts[: occurrence + 1]) + new + old.join(parts[occurrence + 1 :])
    (folder / source.name).write_text(text, encoding="utf-8")
    return folder / source.name


def run(command: list[str], objects: dict[str, Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """The kernels in every order of threads, compared with plain loops: see planted_main.cpp."""
    program = folder / "program"
    subprocess.run([*command, *map(str, objects.values()), "-o", str(program)], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "old", "new", "occurrence", "message"),
    [
        ("group_mean", BARRIER, "", 0, ""),  # totals are read before they are written
        ("group_mean", BARRIER, "", 1, ""),  # members are read before they are written
        ("group_mean", BARRIER, "", 2, ""),  # the parts' sums are read before they are written
        ("hash_vectors", BARRIER, "", 0, ""),
        ("hash_vectors", BARRIER, "", 1, ""),
        ("valid_tokens", BARRIER, "", 0, ""),
        ("valid_tokens", BARRIER, "", 1, ""),
        ("group_mean", BARRIER, "if (t >= 200) return; device::barrier();", 0, "a thread left before a "),
        (
            "group_mean",
            BARRIER,
            "if (t < 128) device::barrier(); else\n device::barrier();",
            0,
            "threads of a block are at different barriers",
        ),
        ("group_mean", "sums[t] = sum;", "sums[t + 1] = sum;", 0, "a thread wrote behind a shared array"),
        (
            "hash_vectors",
            "COLUMNS * PLANE_STRIDE);",
            "COLUMNS * PLANE_STRIDE * 4);",
            0,
            "more than 48 KB of shared memory",
        ),
        ("valid_tokens", "1024, stream", "2048, stream", 0, "a block has 1 to 1024 threads"),
        (
            "valid_tokens",
            "const uint32_t votes = device::ballot(here);",
            "uint32_t votes = 0; if (t % 2) votes = device::ballot(here);",
            0,
            "threads wait for each other for ever",
        ),
    ],
)
def test_a_planted_fault_is_found(
    command: list[str],
    objects: dict[str, Path],
    tmp_path: Path,
    name: str,
    old: str,
    new: str,
    occurrence: int,
    message: str,
) -> None:
    """By a wrong result in one of the orders, or by the host's own checks, which name it."""
    faulty = compiled(command, planted(tmp_path, name, old, new, occurrence), tmp_path)
    result = run(command, {**objects, name: faulty}, tmp_path)
    assert result.returncode != 0
    assert message in result.stderr


def test_without_a_fault_nothing_is_found(command: list[str], objects: dict[str, Path], tmp_path: Path) -> None:
    result = run(command, objects, tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
