"""planted_main.cpp with nvcc's own code of the kernels, translated by `ptx_translation`, against the same program with the kernels compiled as C++.

    make cuda-ptx                           # every kernel, as nvcc compiles it for 9.0
    make cuda-ptx ARCHS="8.0 12.0"

It shows what nvcc made of the kernels, before ptxas makes machine code of it, which it cannot show.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "benchmarks", ROOT / "tests" / "cuda"):
    sys.path.insert(0, str(folder))

import host_program  # noqa: E402
import ptx_translation  # noqa: E402
from cuda_registers import FLAGS, readable  # noqa: E402
from host_library import BUILD, HERE, ORDERS  # noqa: E402

from build_support import compiler  # noqa: E402

FOLDER = BUILD / "ptx"
SHUFFLED = ORDERS.index("shuffled")
"""The only order in which a thread that waits for another block in a loop, as nvcc writes it, lets that block go on."""
LIMITS = {"f": 2e-6, "b": 2.0**-8}
"""Of what float32 and bfloat16 may differ by, as a part of the largest number of an array. nvcc's exponentials and logarithms and the host's are each
right to two or so units of 2^-24, and sums of their products keep that; a number between two of bfloat16 may then become either."""
NUMBERS = {"f": np.float32, "b": np.uint16, "i": np.int32, "u": np.uint64}


class Written(NamedTuple):
    """An array that the program wrote."""

    stage: str
    kind: str
    numbers: np.ndarray


def values_of(data: bytes) -> Iterator[Written]:
    start = 0
    while start < len(data):
        end = data.index(b"\n", start)
        stage, kind, count = data[start:end].decode().split()
        numbers = np.frombuffer(data, NUMBERS[kind], int(count), end + 1)
        start = end + 1 + numbers.nbytes
        if kind == "b":
            numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
        yield Written(stage, kind, numbers)


def difference(found: Written, expected: Written) -> float:
    """Of two arrays of floats, as a part of the largest finite number; infinite where one is no number, or infinite, and the other is not."""
    a, b = (one.numbers.astype(np.float64) for one in (found, expected))
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return np.inf
    largest = np.abs(b[finite]).max(initial=0)
    return float(np.abs(a[finite] - b[finite]).max(initial=0) / largest) if largest else float(a[finite].any())


def differences(found: Iterable[Written], expected: Iterable[Written]) -> list[str]:
    """A line for each array that differs by more than it may; decisions, which are integers, may not."""
    lines = []
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a[:2] == b[:2] and a.numbers.size == b.numbers.size
        if b.kind not in LIMITS:
            if count := np.count_nonzero(a.numbers != b.numbers):
                lines.append(f"{a.stage} (array {number}): {count} of {b.numbers.size} decisions differ")
        elif (worst := difference(a, b)) > LIMITS[b.kind]:
            lines.append(f"{a.stage} (array {number}): differs by {worst:.2g} of its largest number")
    return lines


def compile_ptx(source: Path, architecture: str, folder: Path) -> str:
    """nvcc's code of a file of kernels; `architecture` is a compute capability, such as 9.0."""
    target = folder / f"{source.stem}.ptx"
    architecture = f"-arch=compute_{architecture.replace('.', '')}"
    flags = [flag for flag in FLAGS if "ptxas" not in flag]
    command = ["nvcc", *flags, architecture, f"-I{host_program.KERNELS}", "-ptx", str(source), "-o", str(target)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return target.read_text(encoding="utf-8")


def objects(ptx: dict[str, str], folder: Path, chosen: str = "") -> list[Path]:
    """The C++ of nvcc's code by the name of its file, compiled, what changed of it; only kernels whose names match `chosen`."""
    flags = [*host_program.flags("plain"), "-O0", "-w", f"-I{host_program.KERNELS}", f"-I{HERE}"]
    sources = {}
    for name, code in ptx.items():
        text, source = ptx_translation.translate(code, f"{name}.ptx", chosen), folder / f"{name}.ptx.cpp"
        if not source.is_file() or source.read_text(encoding="utf-8") != text:
            source.write_text(text, encoding="utf-8")
        sources[source] = flags
    return compiler.compile_objects(host_program.command(), sources, folder)


def link(translated: Sequence[Path], program: Path) -> Path:
    """The plain program with nvcc's code, and beside it the list of the host's kernels that ptx_launch.h reads."""
    parts = [*host_program.objects("plain").values(), *translated]
    # no-pie: functions lie where the list says
    subprocess.run([*host_program.command(), *map(str, parts), "-no-pie", "-o", str(program)], check=True)
    symbols = subprocess.run(["nm", str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
    functions = [line.split() for line in symbols if " t " in line]
    names = readable([name for *_, name in functions])
    lines = [f"{address} {name}\n" for (address, *_), name in zip(functions, names, strict=True)]
    program.with_suffix(".kernels").write_text("".join(lines), encoding="utf-8")
    return program


def run(program: Path) -> list[Written]:
    """What it writes."""
    values = program.with_suffix(".values")
    command = [str(program), str(SHUFFLED), "", str(values)]
    environment = {"PTX_KERNELS": str(program.with_suffix(".kernels"))}
    made = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert made.returncode == 0, made.stderr
    return list(values_of(values.read_bytes()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", default=["9.0"], help="compute capabilities")
    wanted = parser.parse_args().architectures
    if shutil.which("nvcc") is None:
        sys.exit("There is no nvcc. It comes with the CUDA toolkit: install it.")
    host_program.sources()
    FOLDER.mkdir(parents=True, exist_ok=True)
    expected = run(link([], FOLDER / "host"))
    wrong = []
    for architecture in wanted:
        folder = FOLDER / architecture
        folder.mkdir(exist_ok=True)
        ptx = {
            path.stem: compile_ptx(path, architecture, folder)
            for path in host_program.sources()
            if path.suffix == ".cu"
        }
        found = run(link(objects(ptx, folder), folder / "program"))
        lines = differences(found, expected)
        print(f"{architecture}: {len(expected)} arrays, of which {len(lines)} differ by more than they may")
        wrong += [f"{architecture}: {line}" for line in lines]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
