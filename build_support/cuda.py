"""Whether CUDA operators are built, by which nvcc, and for which architectures of GPUs. torch's own build helpers refuse a torch without CUDA."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from setuptools.errors import SetupError

from .sources import SOURCE_FOLDER, cuda_kernel_sources
from .torch_install import TorchInstall

USUAL_ROOT = Path("/usr/local/cuda")
OLDEST_CUDA = (12, 0)  # the first whose nvcc knows C++20

# What is built where no GPU is seen. The last one also as PTX, which the driver compiles for GPUs that come after.
DEFAULT_ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
PTX = "+PTX"

NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    # A product and a sum are fused where the source says device::fma and nowhere else: the same bits from every compiler.
    "-fmad=false",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
    # Architectures compiled side by side, in each of as many nvccs as there are processors.
    "--threads=2",
]

# The runtime is linked in, so that the library also loads beside a torch without CUDA; hidden, so that it is not mixed with torch's own.
RUNTIME = ["-lcudart_static", "-Wl,--exclude-libs,libcudart_static.a", "-lrt", "-lpthread", "-ldl"]


class NoToolkit(Exception):
    """There is no nvcc that can be used; the text says why."""


@dataclass(frozen=True)
class Toolkit:
    """An installed CUDA toolkit.

    Attributes:
        nvcc: its compiler.
        version: such as "13.0".
        known: the architectures that it compiles for, such as "8.0", in ascending order.
        lib: the folder of its static libraries, or None where the linker finds them by itself.
    """

    nvcc: Path
    version: str
    known: tuple[str, ...]
    lib: Path | None


@dataclass(frozen=True)
class Decision:
    """What CUDA code is built: by which toolkit and for which architectures ("9.0+PTX": also as PTX); or why none, and what would change it."""

    toolkit: Toolkit | None = None
    architectures: tuple[str, ...] = ()
    reason: str | None = None
    remedy: str | None = None


def wish() -> str:
    """`CUDA_OPS_WITH_CUDA`: "0", "1" or "auto"."""
    value = os.environ.get("CUDA_OPS_WITH_CUDA") or "auto"
    if value not in ("0", "1", "auto"):
        raise SetupError(
            f"CUDA_OPS_WITH_CUDA must be 0, 1 or auto, got {value!r}. "
            "Unset it to build CUDA operators where there are nvcc and a torch for CUDA."
        )
    return value


def decide(torch: TorchInstall) -> Decision:
    """Builds CUDA operators where there are nvcc and a torch for CUDA; `CUDA_OPS_WITH_CUDA=1` against any torch, or it is an error."""
    wished = wish()
    if wished == "0":
        return Decision(reason="it was installed with CUDA_OPS_WITH_CUDA=0", remedy="unset CUDA_OPS_WITH_CUDA")
    if wished == "auto" and torch.cuda is None:
        return Decision(
            reason=f"torch {torch.version}, which they were built against, has no CUDA",
            remedy="install a torch for CUDA, or set CUDA_OPS_WITH_CUDA=1 where there is nvcc",
        )
    try:
        toolkit = find_toolkit()
        return Decision(toolkit, architectures(toolkit))
    except NoToolkit as error:
        reason = str(error)
    remedy = f"install the CUDA toolkit {_dotted(OLDEST_CUDA)} or newer (CUDA_HOME names its folder)"
    if wished == "1":
        raise SetupError(
            f"CUDA_OPS_WITH_CUDA=1 asks for CUDA operators, but {reason}. Please {remedy}, or unset CUDA_OPS_WITH_CUDA."
        )
    return Decision(reason=reason, remedy=remedy)


def find_toolkit() -> Toolkit:
    """The toolkit of `CUDA_HOME` or `CUDA_PATH`, else of the nvcc on the path, else the one in /usr/local/cuda."""
    nvcc = _find_nvcc()
    version = re.search(r"release (\d+)\.(\d+)", _ask(nvcc, "--version"))
    if not version:
        raise NoToolkit(f"{nvcc} --version names no release")
    release = int(version[1]), int(version[2])
    if release < OLDEST_CUDA:
        raise NoToolkit(f"{nvcc} is of CUDA {_dotted(release)}, and C++20 needs {_dotted(OLDEST_CUDA)} or newer")
    listed = re.findall(r"^compute_(\d+)(\d)$", _ask(nvcc, "--list-gpu-arch"), re.MULTILINE)
    known = sorted({(int(major), int(minor)) for major, minor in listed})
    lib = next((folder for folder in _library_folders(nvcc) if (folder / "libcudart_static.a").is_file()), None)
    return Toolkit(nvcc, _dotted(release), tuple(map(_dotted, known)), lib)


def architectures(toolkit: Toolkit) -> tuple[str, ...]:
    """`CUDA_OPS_ARCHS`, else those of the GPUs that are seen, else the usual ones, as far as the toolkit knows them."""
    named = os.environ.get("CUDA_OPS_ARCHS", "").strip(" ,;")
    if named:
        return _named_architectures(named, toolkit)
    seen = visible_gpus()
    if not seen:
        found = [name for name in DEFAULT_ARCHITECTURES if name in toolkit.known]
        return _in_order([*found, *(name + PTX for name in found[-1:])]) or _none_of(DEFAULT_ARCHITECTURES, toolkit)
    lost = [name for name in seen if not _for_gpu(name, toolkit)]
    if len(lost) < len(seen) and lost:
        print(
            f"cuda_ops: nvcc {toolkit.version} compiles for no GPU as old as {', '.join(lost)}; those run the reference."
        )
    return _in_order([name for gpu in seen for name in _for_gpu(gpu, toolkit)]) or _none_of(seen, toolkit)


def visible_gpus() -> list[str]:
    """The architectures of the GPUs of this machine; none where nvidia-smi is not there or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted(set(re.findall(r"^\s*(\d+\.\d)\s*$", answer.stdout, re.MULTILINE)), key=_number)


def kernel_commands(root: Path, toolkit: Toolkit, wanted: Sequence[str]) -> dict[Path, list[str]]:
    """Every file of kernels with the command that compiles it."""
    # nvcc finds a compiler for the host's part by itself; a compiler that was named is the one to take.
    host = os.environ.get("CXX", "")
    own = [f"-ccbin={host}"] if host and shutil.which(host) else []
    flags = [*NVCC_FLAGS, *own, *generate_flags(wanted), f"-I{root / SOURCE_FOLDER}"]
    return {source: [str(toolkit.nvcc), *flags] for source in cuda_kernel_sources(root)}


def generate_flags(wanted: Sequence[str]) -> list[str]:
    """nvcc's flags for these architectures: machine code for each, and PTX where it says so."""
    flags = []
    for name in wanted:
        digits = name.removesuffix(PTX).replace(".", "")
        kinds = ("sm", "compute") if name.endswith(PTX) else ("sm",)
        flags += [f"-gencode=arch=compute_{digits},code={kind}_{digits}" for kind in kinds]
    return flags


def link_flags(toolkit: Toolkit) -> list[str]:
    return [*([f"-L{toolkit.lib}"] if toolkit.lib else []), *RUNTIME]


def _find_nvcc() -> Path:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            nvcc = Path(os.environ[name]) / "bin" / "nvcc"
            if not nvcc.is_file():
                raise NoToolkit(f"{name}={os.environ[name]} has no bin/nvcc")
            return nvcc
    found = shutil.which("nvcc") or shutil.which(USUAL_ROOT / "bin" / "nvcc")
    if found is None:
        raise NoToolkit(
            f"there was no nvcc on the PATH or in {USUAL_ROOT}, and neither CUDA_HOME nor CUDA_PATH was set"
        )
    return Path(found)


def _ask(nvcc: Path, *arguments: str) -> str:
    """What nvcc answers, on either stream."""
    try:
        answer = subprocess.run([str(nvcc), *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise NoToolkit(f"{nvcc} cannot be run: {error.strerror}") from error
    output = answer.stdout + answer.stderr
    if answer.returncode:
        first = next((line for line in output.splitlines() if line.strip()), f"exit status {answer.returncode}")
        raise NoToolkit(f"{nvcc} {arguments[0]} fails: {first}")
    return output


def _library_folders(nvcc: Path) -> list[Path]:
    """Where the toolkit may keep its libraries. nvcc itself knows its root: the one on the path may be a script that runs another."""
    answer = _ask(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull)
    told = dict(re.findall(r"^#\$ (TOP|_TARGET_DIR_)=(.+)$", answer, re.MULTILINE))
    root = Path(told.get("TOP", nvcc.parent.parent)).resolve()
    return [root / told.get("_TARGET_DIR_", "") / "lib", root / "lib64", root / "lib"]


def _named_architectures(named: str, toolkit: Toolkit) -> tuple[str, ...]:
    names = re.split(r"[\s,;]+", named)
    known = f"nvcc {toolkit.version} knows {', '.join(toolkit.known)}"
    malformed = [name for name in names if not re.fullmatch(r"\d+\.\d(\+PTX)?", name)]
    if malformed:
        raise SetupError(
            f"CUDA_OPS_ARCHS must be a list such as 8.0,9.0 or 8.0;9.0+PTX, got {', '.join(map(repr, malformed))} in "
            f"{named!r}; {known}. Correct it, or unset it to build for the GPUs of this machine."
        )
    unknown = [name for name in names if name.removesuffix(PTX) not in toolkit.known]
    if unknown:
        raise SetupError(
            f"CUDA_OPS_ARCHS={named} names {', '.join(unknown)}, which {toolkit.nvcc} cannot compile for; {known}. "
            "Correct it, or unset it to build for the GPUs of this machine."
        )
    return _in_order(names)


def _for_gpu(name: str, toolkit: Toolkit) -> list[str]:
    """What to build for a GPU: its own architecture, for one that came after the toolkit the newest before it, as PTX too."""
    if name in toolkit.known:
        return [name]
    return [older + PTX for older in toolkit.known if _number(older) < _number(name)][-1:]


def _none_of(names: Sequence[str], toolkit: Toolkit) -> tuple[str, ...]:
    raise NoToolkit(
        f"{toolkit.nvcc} of CUDA {toolkit.version} compiles for none of {', '.join(names)} (it knows {', '.join(toolkit.known)})"
    )


def _in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Ascending, each once, with PTX where it is asked for."""
    single = sorted({name.removesuffix(PTX) for name in names}, key=_number)
    return tuple(name + PTX if name + PTX in names else name for name in single)


def _number(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.removesuffix(PTX).split(".")))


def _dotted(number: tuple[int, ...]) -> str:
    return ".".join(map(str, number))
