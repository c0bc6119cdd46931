"""What is compiled, and with which flags: one list, read by the build and by the tests of the objects."""

import platform
from pathlib import Path

SOURCE_FOLDER = Path("cuda_ops") / "csrc"

# One translation unit per instruction set, the only ones that may contain its instructions. Slowest first: the order in
# which `python -m cuda_ops` names them.
INSTRUCTION_SET_FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mpopcnt"],
    "avx512": [
        "-mavx512f",
        "-mavx512dq",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512vpopcntdq",
        "-mavx512vbmi",
        "-mavx2",
        "-mfma",
        "-mf16c",
        "-mbmi2",
        "-mpopcnt",
    ],
}

COMMON_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    # A product and a sum are fused where the source says so and nowhere else: the same bits from every compiler.
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]

# Only what torch 2.11 and Python 3.11 have: one binary serves every torch and every Python from there on.
STABLE_INTERFACES = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DPy_LIMITED_API=0x030b0000"]


def is_x86_64() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def instruction_sets() -> list[str]:
    """The instruction sets that this processor family has code for."""
    return list(INSTRUCTION_SET_FLAGS) if is_x86_64() else ["portable"]


def kernel_sources(root: Path) -> dict[str, Path]:
    """Instruction set -> the translation unit compiled for it."""
    folder = root / SOURCE_FOLDER / "cpu" / "kernels"
    return {name: folder / f"{name}.cpp" for name in instruction_sets()}


def glue_sources(root: Path) -> list[Path]:
    """The sources that see torch and run on every processor of the family."""
    folder = root / SOURCE_FOLDER
    return [folder / "module.cpp", *sorted((folder / "cpu").glob("*.cpp"))]


def cuda_kernel_sources(root: Path) -> list[Path]:
    """The files of CUDA kernels, which nvcc compiles and which see no torch."""
    return sorted((root / SOURCE_FOLDER / "cuda" / "kernels").glob("*.cu"))


def cuda_glue_sources(root: Path) -> list[Path]:
    """The sources of the CUDA operators that see torch, and of CUDA nothing."""
    return sorted((root / SOURCE_FOLDER / "cuda").glob("*.cpp"))


def flags_by_source(root: Path, include: list[Path]) -> dict[Path, list[str]]:
    """Every source of the library for the CPU with its compiler flags.

    `include` are the folders of headers that are not ours (torch, Python): as system headers they cause no warnings.
    """
    common = _common_flags(root)
    flags = {source: [*common, *STABLE_INTERFACES, *_system(include)] for source in glue_sources(root)}
    for name, source in kernel_sources(root).items():
        flags[source] = [*common, *INSTRUCTION_SET_FLAGS[name]]
    return flags


def cuda_glue_flags(root: Path, include: list[Path]) -> dict[Path, list[str]]:
    """The same for the CUDA operators' sources that the C++ compiler takes."""
    flags = [*_common_flags(root), *STABLE_INTERFACES, *_system(include)]
    return dict.fromkeys(cuda_glue_sources(root), flags)


def _common_flags(root: Path) -> list[str]:
    return [*COMMON_FLAGS, f"-I{root / SOURCE_FOLDER}", *(["-DCUDA_OPS_X86"] if is_x86_64() else [])]


def _system(include: list[Path]) -> list[str]:
    return [flag for folder in include for flag in ("-isystem", str(folder))]
