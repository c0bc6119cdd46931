"""The CUDA operators compiled for the host: the very same files, with `host_cuda.h` in the place of the device.

`torch.ops.cuda_ops_host` has them for CPU tensors, so that they can be compared with the CPU operators in one process.
"""

import ctypes
import fcntl
import functools
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch

from build_support import compiler, sources, torch_install
from cuda_ops.schemas import SCHEMAS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CUDA = ROOT / "cuda_ops" / "csrc" / "cuda"
BUILD = ROOT / "build" / "host-cuda"
NAMESPACE = "cuda_ops_host"
ORDERS = ("forward", "backward", "shuffled", "warps_backward", "warp_ahead")
"""Of threads, as in host_cuda.h."""
FLAGS = (
    "-std=c++20",
    "-O2",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    f'-DCUDA_OPS_HOST_CUDA="{HERE / "host_cuda.h"}"',
)


def kernel_sources() -> list[Path]:
    """Every file of kernels."""
    return sorted((CUDA / "kernels").glob("*.cu"))


def flags_by_source(key: str, namespace: str, extra: Sequence[str] = ()) -> dict[Path, list[str]]:
    """Every source of the library with its flags; the operators are registered in `namespace` for `key`."""
    found = torch_install.find_torch()
    assert found is not None
    system = ["-isystem", str(found.include), "-isystem", sysconfig.get_path("include")]
    names = [f"-DCUDA_OPS_NAMESPACE={namespace}", f"-DCUDA_OPS_KEY={key}"]
    flags = {path: [*FLAGS, *extra, "-x", "c++"] for path in [*kernel_sources(), HERE / "host_entry.cpp"]}
    for path in sorted(CUDA.glob("*.cpp")):
        flags[path] = [*FLAGS, *extra, *names, *sources.STABLE_INTERFACES, *system]
    return flags


def build(key: str = "CPU", namespace: str = NAMESPACE, extra: Sequence[str] = (), folder: Path = BUILD) -> Path:
    """Compiles what changed and links it; several processes may ask at once."""
    command, found = compiler.find_compiler(), torch_install.find_torch()
    assert command is not None and found is not None
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        objects = compiler.compile_objects(command, flags_by_source(key, namespace, extra), folder / namespace)
        library = folder / f"{namespace}.so"
        if not library.is_file() or any(made.stat().st_mtime_ns > library.stat().st_mtime_ns for made in objects):
            compiler.link([*command, *extra], objects, library, found.lib)
    return library


@functools.cache
def load() -> ctypes.CDLL:
    """Defines and registers `torch.ops.cuda_ops_host`; the library itself for what is no operator."""
    path = build()
    definitions = torch.library.Library(NAMESPACE, "DEF")
    for schema in SCHEMAS:
        definitions.define(schema)
    torch.ops.load_library(str(path))
    library = ctypes.CDLL(str(path))
    library.definitions = definitions  # they live as long as the library
    return library


def set_order(order: str, seed: int = 1) -> None:
    load().set_order(ORDERS.index(order), seed)


def set_blocks_at_once(blocks: int) -> None:
    """How many blocks the device runs at once, where blocks meet."""
    load().set_blocks_at_once(ctypes.c_int64(blocks))
