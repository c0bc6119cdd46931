"""planted_main.cpp with all kernels as a program of its own: plain, and with each of the compiler's sanitizers."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from host_library import BUILD, CUDA, FLAGS, HERE, ORDERS

from build_support import compiler

KERNELS = BUILD / "program"
"""The kernels, with CHANGES."""
SANITIZERS = {
    "plain": (),
    "address": ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "--coverage"),
    "thread": ("-g1", "-fsanitize=thread"),
}
OPTIMIZED = {"plain": "-O1", "address": "-O0", "thread": "-O1"}
"""What takes least time to compile and run together."""
EVERY_ORDER = range(len(ORDERS))
CHANGES = {
    # a type that the program does not use: a third less to compile
    "vectors.h": [("  if (type == Type::float16) run(float16());\n", "")],
    # the address of a kernel, which ptx_launch.h takes, is looked for nearby only, where its launcher has the same name
    "refined_queries_backward.cu": [("CUDA_OPS_LAUNCH(query_gradients<T>", "CUDA_OPS_LAUNCH(::query_gradients<T>")],
}


def command() -> list[str]:
    found = compiler.find_compiler()
    if found is None:
        pytest.skip("there is no C++ compiler")
    return [*found]


def sources() -> list[Path]:
    """The program and the files of kernels, up to date in KERNELS."""
    KERNELS.mkdir(parents=True, exist_ok=True)
    originals = [HERE / "planted_main.cpp", *(CUDA / "kernels").iterdir()]
    for old in {path.name for path in KERNELS.iterdir()} - {path.name for path in originals}:
        (KERNELS / old).unlink()
    for path in originals:
        text, target = path.read_text(encoding="utf-8"), KERNELS / path.name
        for old_text, new_text in CHANGES.get(path.name, []):
            assert old_text in text, f"{path.name} has no {old_text!r}: what is changed in it must be written anew"
            text = text.replace(old_text, new_text)
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
    return [KERNELS / path.name for path in originals if path.suffix in (".cu", ".cpp")]


def flags(kind: str) -> list[str]:
    """The plain program can run nvcc's code as well, where it is linked with it."""
    kept = [flag for flag in FLAGS if flag not in ("-O2", "-g1", "-Werror", "-fPIC")]
    if kind == "plain":
        kept = [*(flag.replace("host_cuda.h", "ptx_launch.h") for flag in kept), f"-I{HERE}"]
    return [*kept, OPTIMIZED[kind], *SANITIZERS[kind], "-x", "c++"]


def objects(kind: str) -> dict[str, Path]:
    """By the names of their files."""
    every = sources()
    made = compiler.compile_objects(command(), {path: flags(kind) for path in every}, BUILD / kind)
    return {path.stem: one for path, one in zip(every, made, strict=True)}


def link(kind: str, parts: Sequence[Path], program: Path) -> Path:
    subprocess.run([*command(), *SANITIZERS[kind], *map(str, parts), "-o", str(program)], check=True)
    return program


def plant(folder: Path, file: str, changes: Sequence[tuple[str, str, str, int]]) -> Path:
    """A copy of a file of kernels, beside copies of others that are changed: name of the file, old text, new text, which of the old."""
    for name in {file} | {name for name, *_ in changes}:
        (folder / name).write_text((KERNELS / name).read_text(encoding="utf-8"), encoding="utf-8")
    for name, old, new, occurrence in changes:
        parts = (folder / name).read_text(encoding="utf-8").split(old)
        assert len(parts) > occurrence + 1, f"{name} has no {old!r} number {occurrence}"
        text = old.join(parts[: occurrence + 1]) + new + old.join(parts[occurrence + 1 :])
        (folder / name).write_text(text, encoding="utf-8")
    return folder / file


def with_fault(kind: str, folder: Path, file: str, changes: Sequence[tuple[str, str, str, int]]) -> Path:
    """The program with one file of kernels compiled anew, after changes as in `plant`."""
    source, target = plant(folder, file, changes), folder / "faulty.o"
    made = subprocess.run(
        [*command(), *flags(kind), f"-I{KERNELS}", "-c", str(source), "-o", str(target)],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    every = {**objects(kind), Path(file).stem: target}
    return link(kind, list(every.values()), folder / "program")


def run(program: Path, order: int, *expected: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """With a file of what is `expected` the program ends, with 1, as soon as it prints something else."""
    command = [str(program), str(order), *map(str, expected)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment or None)
