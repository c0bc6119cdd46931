"""What is compiled, and with which flags: one list, read by the build and by the tests of the objects."""

import platform
from dataclasses import dataclass
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
    "neon": [],
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


@dataclass(frozen=True)
class Family:
    """Processors that one build serves: the macros that tell the sources, and the instruction sets that there is code for."""

    macros: tuple[str, ...] = ()
    instruction_sets: tuple[str, ...] = ("portable",)


X86_64 = Family(("-DCUDA_OPS_X86",), ("portable", "avx2", "avx512"))
ARM64 = Family(("-DCUDA_OPS_ARM64",), ("portable", "neon"))
_FAMILIES = {"x86_64": X86_64, "amd64": X86_64, "aarch64": ARM64, "arm64": ARM64}


def family() -> Family:
    """That of this machine; only the portable code for one that is not known."""
    return _FAMILIES.get(platform.machine().lower(), Family())


def kernel_sources(root: Path, family: Family) -> dict[str, Path]:
    """Instruction set -> the translation unit compiled for it."""
    folder = root / SOURCE_FOLDER / "cpu" / "kernels"
    return {name: folder / f"{name}.cpp" for name in family.instruction_sets}


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
    common = common_flags(root, family())
    flags = {source: [*common, *STABLE_INTERFACES, *_system(include)] for source in glue_sources(root)}
    for name, source in kernel_sources(root, family()).items():
        flags[source] = [*common, *INSTRUCTION_SET_FLAGS[name]]
    return flags


def cuda_glue_flags(root: Path, include: list[Path]) -> dict[Path, list[str]]:
    """The same for the CUDA operators' sources that the C++ compiler takes."""
    flags = [*common_flags(root, family()), *STABLE_INTERFACES, *_system(include)]
    return dict.fromkeys(cuda_glue_sources(root), flags)


def common_flags(root: Path, family: Family) -> list[str]:
    """What every source is compiled with."""
    return [*COMMON_FLAGS, f"-I{root / SOURCE_FOLDER}", *family.macros]


def _system(include: list[Path]) -> list[str]:
    return [flag for folder in include for flag in ("-isystem", str(folder))]
