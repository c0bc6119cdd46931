"""The library's objects, compiled as the build compiles them (and only if the build has not left them already)."""

import sysconfig
from pathlib import Path

import pytest

from build_support import compiler, extension, sources, torch_install


def compile_all() -> dict[Path, Path]:
    """Source -> its object, for every source of the library."""
    command, torch = compiler.find_compiler(), torch_install.find_torch()
    if command is None or torch is None:
        pytest.skip("no C++ compiler on this machine" if command is None else "no torch that can be compiled against")
    include = [torch.include, Path(sysconfig.get_path("include"))]
    flags = sources.flags_by_source(extension.PROJECT, include)
    return dict(zip(flags, compiler.compile_objects(command, flags, extension.OBJECTS), strict=True))


def kernel_objects(objects: dict[Path, Path]) -> dict[str, Path]:
    """Instruction set -> the object compiled for it."""
    return {
        name: objects[source] for name, source in sources.kernel_sources(extension.PROJECT, sources.family()).items()
    }
