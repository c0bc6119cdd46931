"""Processor families that this machine is not, or not every one of: their compiler and their emulator, where there are such."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from build_support import compiler, extension, sources


@dataclass(frozen=True)
class Emulated:
    """A family whose programs run here: by the processor itself where it is of the family, and under qemu.

    Attributes:
        family: what the sources are compiled for.
        cross: the compiler for it on other machines.
        emulator: the qemu that runs a program of it.
        packages: Debian's, with both.
    """

    family: sources.Family
    cross: str
    emulator: str
    packages: str

    @property
    def is_here(self) -> bool:
        """Whether this machine is of the family."""
        return sources.family() == self.family

    def compiler(self) -> list[str]:
        """Skips the test where there is none."""
        command = compiler.find_compiler() if self.is_here else [self.cross]
        assert command is not None
        self._need(command[0])
        return command

    def command(self, program: Path, processor: str | None = None) -> list[str]:
        """What runs a program: on such a processor, or for None on any of the family, on the real one where there is one."""
        if processor is None and self.is_here:
            return [str(program)]
        return [*self.emulation(), *([] if processor is None else ["-cpu", processor]), str(program)]

    def emulation(self) -> list[str]:
        """Skips the test where there is none."""
        self._need(self.emulator)
        return [self.emulator]

    def _need(self, tool: str) -> None:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on this machine (Debian, Ubuntu: {self.packages})")

    def build(self, program: str, flags: Sequence[str], objects: Sequence[Path], target: Path) -> Path:
        """A program of this folder with these flags and objects; statically, for the family's libraries are not there for an emulator."""
        source = Path(__file__).with_name(program)
        common = sources.common_flags(extension.PROJECT, self.family)
        command = [*self.compiler(), *common, "-Werror", *flags, str(source), *map(str, objects), "-static"]
        subprocess.run([*command, "-o", str(target)], check=True)
        return target

    def kernels(self) -> dict[str, Path]:
        """Instruction set -> the object of its kernels, compiled as the build does it: on a machine of the family the build's own."""
        folder = extension.OBJECTS if self.is_here else extension.OBJECTS.with_name(f"objects-{self.emulator}")
        made = sources.kernel_sources(extension.PROJECT, self.family)
        common = sources.common_flags(extension.PROJECT, self.family)
        flags = {source: [*common, *sources.INSTRUCTION_SET_FLAGS[name]] for name, source in made.items()}
        return dict(zip(made, compiler.compile_objects(self.compiler(), flags, folder), strict=True))


X86_64 = Emulated(sources.X86_64, "x86_64-linux-gnu-g++", "qemu-x86_64", "g++-x86-64-linux-gnu qemu-user")
ARM64 = Emulated(sources.ARM64, "aarch64-linux-gnu-g++", "qemu-aarch64", "g++-aarch64-linux-gnu qemu-user")
