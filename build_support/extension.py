"""The setuptools side: whether the operators are compiled, the command that does it, and the record it leaves behind."""

import json
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, SetupError

from . import compiler, cuda, sources, torch_install

PROJECT = Path(__file__).resolve().parent.parent
BUILD_INFO = Path("cuda_ops") / "_build_info.json"
# Not setuptools' own folder of objects: an editable install gets a new one each time and would compile everything again.
OBJECTS = PROJECT / "build" / "objects"

NO_TORCH = """\
cuda_ops is compiled against torch, and the build sees none that is new enough (torch >= 2.11).
Install it first and build in the same environment:
    python -m pip install "torch>=2.11" "setuptools>=77"
    python -m pip install --no-build-isolation .
or install without compiled operators (slow: everything runs on the PyTorch reference):
    CUDA_OPS_BUILD=0 python -m pip install .
"""

GO_ON = """\
cuda_ops could not be compiled: {error}
Repair it, or name another compiler (CXX=...), or install without compiled operators (slow: everything runs on the
PyTorch reference):
    CUDA_OPS_BUILD=0 python -m pip install .
"""

GO_ON_WITHOUT_CUDA = """\
or, where nvcc is what fails, without operators for GPUs (there everything runs on the PyTorch reference):
    CUDA_OPS_WITH_CUDA=0 python -m pip install .
"""

REINSTALL = "then install again: pip install --force-reinstall --no-deps followed by the path of this project"


@dataclass(frozen=True)
class Decision:
    """Whether the operators are compiled; if not, why, and what would change it."""

    compile: bool
    reason: str | None = None
    remedy: str | None = None


def decide() -> Decision:
    """Compile unless `CUDA_OPS_BUILD=0` or there is no compiler; with `CUDA_OPS_BUILD=1` or `CUDA_OPS_WITH_CUDA=1` that is an error."""
    wish = os.environ.get("CUDA_OPS_BUILD", "")
    if wish not in ("", "0", "1"):
        raise SetupError(f"CUDA_OPS_BUILD must be 0 or 1, got {wish!r}. Unset it to compile where there is a compiler.")
    with_cuda = cuda.wish() == "1"
    if wish == "0" and with_cuda:
        raise SetupError(
            "CUDA_OPS_WITH_CUDA=1 asks for CUDA operators and CUDA_OPS_BUILD=0 for none. Unset one of them."
        )
    if wish == "0":
        return Decision(False, "it was installed with CUDA_OPS_BUILD=0", f"unset CUDA_OPS_BUILD, {REINSTALL}")
    if compiler.find_compiler():
        return Decision(True)
    named = os.environ.get("CXX")
    reason = f"CXX={named} names no program" if named else "there was no C++ compiler (c++, g++ or clang++) on the PATH"
    remedy = f"install a C++ compiler (Debian, Ubuntu: apt install g++), {REINSTALL}"
    if wish == "1" or with_cuda:
        name = "CUDA_OPS_BUILD" if wish == "1" else "CUDA_OPS_WITH_CUDA"
        raise SetupError(f"{name}=1 asks for compiled operators, but {reason}. Install one, or unset {name}.")
    return Decision(False, reason, remedy)


def extensions() -> list[Extension]:
    """The one extension, or none where nothing is compiled: the wheel then is a pure one."""
    if not decide().compile:
        return []
    return [Extension("cuda_ops._C", sources=["cuda_ops/csrc/module.cpp"], py_limited_api=True)]


class BuildPackages(build_py):
    """Copies the packages into an empty folder: setuptools would pack whatever an earlier build had left there."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        decision = decide()
        if not decision.compile:
            folder = PROJECT if self.editable_mode else Path(self.build_lib)
            write_build_info(folder, compiled=False, reason=decision.reason, remedy=decision.remedy)


class BuildOperators(build_ext):
    """Compiles the operators with our own flags per file, which setuptools' extensions do not know."""

    def run(self) -> None:
        super().run()
        decision = decide()
        if not decision.compile and self.inplace:
            write_build_info(PROJECT, compiled=False, reason=decision.reason, remedy=decision.remedy)

    def build_extension(self, ext: Extension) -> None:
        torch = torch_install.find_torch()
        if torch is None:
            raise SetupError(NO_TORCH)
        command = compiler.find_compiler()
        assert command, "extensions() lists nothing without a compiler"
        with_cuda = cuda.decide(torch)
        library = Path(self.get_ext_fullpath(ext.name))
        try:
            build_library(command, torch, with_cuda, library)
        except compiler.CompilerError as error:
            advice = GO_ON + (GO_ON_WITHOUT_CUDA if with_cuda.toolkit else "")
            raise CompileError(advice.format(error=error)) from error
        information = {
            "torch": torch.version,
            "compiler": compiler.describe(command),
            "instruction_sets": list(sources.family().instruction_sets),
            "cuda_architectures": with_cuda.architectures,
            "cuda": with_cuda.toolkit.version if with_cuda.toolkit else None,
            "cuda_reason": with_cuda.reason,
            "cuda_remedy": with_cuda.remedy and f"{with_cuda.remedy}, {REINSTALL}",
        }
        write_build_info(library.parent.parent, compiled=True, **information)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        for ext in self.extensions:
            folder = Path(self.get_ext_fullpath(ext.name)).parent.parent
            self.copy_file(str(Path(self.build_lib) / BUILD_INFO), str(folder / BUILD_INFO))


def build_library(
    command: list[str], torch: torch_install.TorchInstall, with_cuda: cuda.Decision, library: Path
) -> None:
    """Compiles what changed, for the CPU and for GPUs where that was decided, and links it."""
    include = [torch.include, Path(sysconfig.get_path("include"))]
    flags, toolkit = sources.flags_by_source(PROJECT, include), with_cuda.toolkit
    if toolkit is None:
        print(f"cuda_ops: no CUDA operators are built: {with_cuda.reason}. To change that, {with_cuda.remedy}.")
        compiler.link(command, compiler.compile_objects(command, flags, OBJECTS), library, torch.lib)
        return
    print(f"cuda_ops: CUDA operators are built by {toolkit.nvcc} for {', '.join(with_cuda.architectures)}.")
    flags |= sources.cuda_glue_flags(PROJECT, include)
    kernels = cuda.kernel_commands(PROJECT, toolkit, with_cuda.architectures)
    objects = compiler.compile_objects(command, flags, OBJECTS, kernels)
    compiler.link(command, objects, library, torch.lib, cuda.link_flags(toolkit))


def write_build_info(folder: Path, **information: Any) -> None:
    """Leaves beside the package what was built; `cuda_ops` reads it at run time."""
    target = folder / BUILD_INFO
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(information, indent=2) + "\n")
