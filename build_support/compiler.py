"""Runs the C++ compiler: which one, one object per source, the link."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class CompilerError(Exception):
    """A compiler or linker call that failed."""


def find_compiler() -> list[str] | None:
    """The C++ compiler as a command: `CXX`, else the first of the usual names on the path; None if there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        return named if shutil.which(named[0]) else None
    usual = (shlex.split(sysconfig.get_config_var("CXX") or "")[:1], ["c++"], ["g++"], ["clang++"])
    return next((command for command in usual if command and shutil.which(command[0])), None)


def describe(compiler: Sequence[str]) -> str:
    """The compiler's own first line about itself."""
    answer = subprocess.run([*compiler, "--version"], capture_output=True, text=True)
    return answer.stdout.partition("\n")[0].strip() or " ".join(compiler)


def compile_objects(
    compiler: Sequence[str],
    flags_by_source: Mapping[Path, Sequence[str]],
    folder: Path,
    other_commands: Mapping[Path, Sequence[str]] | None = None,
) -> list[Path]:
    """Compiles every source that changed since its object was made, several at a time; returns all objects in order.

    Args:
        compiler: the C++ compiler.
        flags_by_source: its flags for each source.
        folder: where the objects are kept.
        other_commands: sources that another compiler compiles, each with its command; they come first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    commands = dict(other_commands or {})
    commands |= {source: [*compiler, *_user_flags("CXXFLAGS"), *flags] for source, flags in flags_by_source.items()}

    def compile_one(source: Path) -> Path:
        target = folder / ("-".join(source.parts[-3:]) + ".o")
        command = [*commands[source], "-c", str(source), "-o", str(target)]
        if not _is_current(target, command):
            # First, so that an object which a cut-off compile left half written is not taken for current.
            target.with_suffix(".command").unlink(missing_ok=True)
            _run([*command, "-MD", "-MF", str(target.with_suffix(".d"))])
            target.with_suffix(".command").write_text(shlex.join(command))
        return target

    with ThreadPoolExecutor(jobs) as pool:
        objects = [pool.submit(compile_one, source) for source in commands]
        try:
            return [made.result() for made in objects]
        except CompilerError:
            pool.shutdown(cancel_futures=True)
            raise


def link(
    compiler: Sequence[str], objects: Sequence[Path], target: Path, library_folder: Path, others: Sequence[str] = ()
) -> None:
    """Links the objects with torch's CPU library, which is found at run time because torch was imported before, and with `others`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    kind = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    # Torch catches what the operators throw, which needs torch's own libgcc: a compiler that links a second one into each
    # library (-static-libgcc) would make every error of an operator a segmentation fault.
    unwinder = ["-lgcc_s"] if sys.platform == "linux" else []
    files = [*map(str, objects), f"-L{library_folder}", "-ltorch_cpu", *others, *unwinder]
    _run([*compiler, *kind, *files, *_user_flags("LDFLAGS"), "-o", str(target)])


def _user_flags(name: str) -> list[str]:
    return shlex.split(os.environ.get(name, ""))


def _is_current(target: Path, command: list[str]) -> bool:
    """Whether the object was made by this very command from sources and headers that have not changed since."""
    depends, made_by = target.with_suffix(".d"), target.with_suffix(".command")
    if not (target.is_file() and depends.is_file() and made_by.is_file()):
        return False
    if made_by.read_text() != shlex.join(command):
        return False
    names = shlex.split(depends.read_text().replace("\\\n", " ").partition(":")[2])
    made = target.stat().st_mtime_ns
    return all(Path(name).is_file() and Path(name).stat().st_mtime_ns < made for name in names)


def _run(command: list[str]) -> None:
    print(shlex.join(command), flush=True)
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if answer.returncode:
        raise CompilerError(
            f"this command failed with exit status {answer.returncode}:\n{shlex.join(command)}\n{answer.stdout}"
        )
    if answer.stdout:
        print(answer.stdout, flush=True)
