"""What every CUDA kernel takes of a GPU, as the compiler says: registers, spilled bytes, shared memory.

python benchmarks/cuda_registers.py    # brings benchmarks/results/cuda-registers.json up to date; needs nvcc, no GPU
"""

import argparse
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "cuda_ops" / "csrc" / "cuda" / "kernels"
RESULTS = ROOT / "benchmarks" / "results" / "cuda-registers.json"
WANTED = ("80", "86", "89", "90", "100", "120")
"""The default list of architectures."""
FLAGS = ("-std=c++20", "-O3", "-fmad=false", "-Xptxas=-v", "-Xcompiler=-Wall,-Wextra")
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


class Usage(NamedTuple):
    """Of one kernel on one architecture."""

    name: str
    architecture: str
    registers: int
    spill_bytes: int
    stack_bytes: int  # of the kernel and what it calls
    shared_bytes: int


def known_architectures(nvcc: str) -> list[str]:
    """Those of WANTED that the toolkit knows."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    return [one for one in WANTED if f"compute_{one}" in listed]


def command(nvcc: str, groups: Sequence[Sequence[str]], source: Path, target: Path, *others: str) -> list[str]:
    """Flags of the build, but without the host's part; each group of architectures has one intermediate code, of its first."""
    codes = [f"-gencode=arch=compute_{group[0]},code=[{','.join(f'sm_{one}' for one in group)}]" for group in groups]
    return [nvcc, *FLAGS, *codes, *others, "-fatbin", str(source), "-o", str(target)]


def build_command(nvcc: str, architectures: Sequence[str], source: Path, target: Path) -> list[str]:
    """As a build does it, each architecture with an intermediate code of its own; two at a time."""
    return command(nvcc, [[one] for one in architectures], source, target, "--threads=2")


def usages(output: str) -> list[Usage]:
    """What ptxas says about every kernel; of a file without kernels nothing."""
    found = []
    for one in KERNEL.finditer(output):
        shared = re.search(r"(\d+) bytes smem", one["rest"])
        stack = re.search(r"(\d+) bytes cumulative stack size", one["rest"])
        usage = Usage(
            one["name"],
            one["architecture"],
            registers=int(one["registers"]),
            spill_bytes=int(one["stores"]) + int(one["loads"]),
            stack_bytes=int(stack[1] if stack else one["stack"]),
            shared_bytes=int(shared[1]) if shared else 0,
        )
        found.append(usage)
    return found


def readable(names: Sequence[str]) -> list[str]:
    """Names of kernels with their template arguments, without namespaces and parameters."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None or not names:
        return list(names)
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    text = re.sub(r"_GLOBAL__N__\w+::|\(anonymous namespace\)::|_INTERNAL_\w+::", "", text)
    return [re.sub(r"^void ", "", line.partition("(")[0]) for line in re.sub(r"\(int\)", "", text).splitlines()]


def dotted(architecture: str) -> str:
    return f"{architecture[:-1]}.{architecture[-1]}"


def sources(source: Path) -> dict[Path, str]:
    """A file and all that it includes from beside it, without comments: what its kernels are made from."""
    texts: dict[Path, str] = {}
    waiting = [source.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in texts:
            texts[path] = re.sub(r"\n{2,}", "\n", re.sub(r"\s*//.*", "", path.read_text(encoding="utf-8")))
            waiting += [(path.parent / name).resolve() for name in re.findall(r'#include "(.+)"', texts[path])]
    return texts


def sources_hash(source: Path) -> str:
    texts = sources(source)
    return hashlib.sha256("\0".join(texts[path] for path in sorted(texts)).encode()).hexdigest()


def measure(nvcc: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """The report. Files that have not changed since `before`, a report of the same compiler, are not compiled again."""
    architectures = known_architectures(nvcc)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release [\d.]+, (V[\d.]+)", version)
    report: dict[str, Any] = {
        "command": shlex.join(build_command("nvcc", architectures, Path("FILE.cu"), Path("FILE.fatbin"))),
        "nvcc": match[1] if match else version.strip(),
        "architectures": [dotted(one) for one in architectures],
        "sources": {},
        "files": {},
    }
    same = all(before.get(name) == report[name] for name in ("command", "nvcc", "architectures"))
    for source in sorted(KERNELS.glob("*.cu")):
        name, now = source.name, sources_hash(source)
        if same and before["sources"].get(name) == now:
            kernels = before["files"].get(name, {})
        else:
            print(name, flush=True)
            kernels = measure_file(nvcc, architectures, source)
        report["sources"][name] = now
        if kernels:
            report["files"][name] = kernels
    return report


def measure_file(nvcc: str, architectures: Sequence[str], source: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Kernel -> architecture -> what it takes."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = build_command(nvcc, architectures, source, Path(folder, "kernels.fatbin"))
        made = subprocess.run(compiled, capture_output=True, text=True)
    if made.returncode:
        sys.exit(made.stderr)
    found = usages(made.stderr)
    kernels: dict[str, dict[str, dict[str, int]]] = {}
    for one, name in zip(found, readable([one.name for one in found]), strict=True):
        kernels.setdefault(name, {})[dotted(one.architecture)] = dict(zip(Usage._fields[2:], one[2:], strict=True))
    return {name: {one: kernels[name][one] for one in map(dotted, architectures)} for name in sorted(kernels)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        sys.exit("There is no nvcc.")
    before = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.is_file() else {}
    arguments.output.write_text(json.dumps(measure(nvcc, before), indent=2) + "\n", encoding="utf-8")
    print(f"{arguments.output} is written")


if __name__ == "__main__":
    main()
