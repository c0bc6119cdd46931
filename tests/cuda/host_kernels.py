"""The CUDA kernels compiled for the host, and called on CPU tensors: see host_cuda.h for how threads run there."""

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from build_support import compiler

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "cuda_ops" / "csrc" / "cuda" / "kernels"
# As in host_cuda.h.
ORDERS = ("forward", "backward", "shuffled", "warps_backward", "warp_ahead")
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
FLAGS = ("-std=c++20", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", f'-DCUDA_OPS_HOST_CUDA="{HERE / "host_cuda.h"}"')


class Vectors(ctypes.Structure):
    """`cuda_ops::Vectors` of kernels/vectors.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("base", "batch", "head", "token", "element")] + [
        ("type", ctypes.c_int)
    ]


class Mask(ctypes.Structure):
    """`cuda_ops::Mask` of kernels/vectors.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("base", "batch", "token")]


def compile_for_host(sources: Sequence[Path], folder: Path, flags: Sequence[str] = ()) -> Path:
    """A shared library of the kernels in these files and of host_entry.cpp."""
    command = compiler.find_compiler()
    assert command is not None
    target = folder / "kernels.so"
    files = [*map(str, sources), str(HERE / "host_entry.cpp")]
    made = subprocess.run(
        [*command, *FLAGS, *flags, "-shared", "-x", "c++", *files, "-o", str(target)], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    return target


class HostKernels:
    """Each method allocates what the kernel writes, poisoned, and runs it."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    def set_order(self, order: str, seed: int = 1) -> None:
        self.library.set_order(ORDERS.index(order), seed)

    def valid_tokens(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        positions, counts = poisoned(mask.shape, torch.int32), poisoned(mask.shape[:1], torch.int32)
        self.library.run_valid_tokens(mask_of(mask), *sizes(*mask.shape), pointer(positions), pointer(counts))
        return positions, counts

    def hash_vectors(self, x: Tensor, planes: Tensor, mask: Tensor | None) -> Tensor:
        codes = poisoned((*x.shape[:3], -(-len(planes) // 64)), torch.int64)
        self.library.run_hash_vectors(
            vectors_of(x), pointer(planes), mask_of(mask), *sizes(*x.shape, len(planes)), pointer(codes)
        )
        return codes

    def group_mean(self, x: Tensor, assignment: Tensor, clusters: int, scale: float) -> Tensor:
        means = poisoned((*x.shape[:2], clusters, x.shape[3]), torch.float32)
        self.library.run_group_mean(
            vectors_of(x), pointer(assignment), *sizes(*x.shape, clusters), ctypes.c_float(scale), pointer(means)
        )
        return means


def poisoned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory in which an element that nobody writes is seen: NaN, or the largest integer."""
    return torch.full(tuple(shape), torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max, dtype=dtype)


def pointer(x: Tensor) -> ctypes.c_void_p:
    assert x.is_contiguous()
    return ctypes.c_void_p(x.data_ptr())


def sizes(*values: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(value) for value in values]


def vectors_of(x: Tensor) -> object:
    return ctypes.byref(Vectors(x.data_ptr(), *x.stride(), TYPES[x.dtype]))


def mask_of(mask: Tensor | None) -> object:
    return ctypes.byref(Mask(0, 0, 0) if mask is None else Mask(mask.data_ptr(), *mask.stride()))


def sources() -> list[Path]:
    """Every file of kernels."""
    return sorted(KERNELS.glob("*.cu"))
