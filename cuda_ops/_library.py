"""Loads the compiled library, and knows what there is to run: what was built, against what, or why not.

Where nothing is compiled the operators run on their PyTorch reference. That is never silent: `python -m cuda_ops` and
`status()` say why and what to do, and the first use warns once.
"""

import ctypes
import functools
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).resolve().parent
_INSTRUCTION_SETS = ("portable", "avx2", "avx512", "neon")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_REINSTALL = "install the package again: pip install --force-reinstall --no-deps followed by its path or name"
_BUILD_HERE = "pip install the project, or build in its folder: python setup.py build_ext --inplace"


class ReferenceBackendWarning(UserWarning):
    """The operators run on their PyTorch reference, which is slow, because nothing compiled serves the call."""


@dataclass(frozen=True)
class Status:
    """What this installation of the operators can run on.

    Attributes:
        compiled: whether the compiled library is loaded.
        library: its file, or None.
        reason: why it is not loaded; None if it is.
        remedy: what to do about that; None if it is loaded.
        built_against: the torch it was compiled against. Any torch from 2.11 on can load it.
        instruction_sets: the CPU instruction sets that it has code for.
        active_instruction_set: the one that this process uses.
        cuda_architectures: the GPU architectures that it has code for, such as "9.0"; "9.0+PTX" serves later ones too.
        compiler: the compiler that made it.
        cuda: the version of nvcc that made the code for GPUs, or None.
        cuda_reason: why there is no code for GPUs; None if there is.
        cuda_remedy: what to do about that; None if there is.
    """

    compiled: bool
    library: str | None = None
    reason: str | None = None
    remedy: str | None = None
    built_against: str | None = None
    instruction_sets: tuple[str, ...] = ()
    active_instruction_set: str | None = None
    cuda_architectures: tuple[str, ...] = ()
    compiler: str | None = None
    cuda: str | None = None
    cuda_reason: str | None = None
    cuda_remedy: str | None = None


@functools.cache
def status() -> Status:
    """Loads the library at the first call, and tells how that went.

    Raises:
        ValueError: `CUDA_OPS_INSTRUCTION_SET` names no instruction set.
        RuntimeError: it names one that this machine, or this installation, does not have.
    """
    wanted = _wanted_instruction_set()
    found = _load()
    if wanted and found.active_instruction_set != wanted:
        has = f"this process can run {found.active_instruction_set}" if found.compiled else found.reason
        raise RuntimeError(
            f"CUDA_OPS_INSTRUCTION_SET={wanted} cannot be had: {has}. Unset it, and the fastest one there is gets used."
        )
    return found


def backend_for(device_type: str, dtype: torch.dtype) -> str:
    """What runs tensors of a device type ("cpu", "cuda") and dtype: "cpu-avx512", "cpu-avx2", "cpu-neon", "cpu-portable", "cuda" or "reference"."""
    found = status()
    if not found.compiled or dtype not in _DTYPES:
        return "reference"
    if device_type == "cpu":
        return f"cpu-{found.active_instruction_set}"
    if device_type == "cuda" and found.cuda_architectures and dtype != torch.float64:
        return "cuda"
    return "reference"


def warn_if_reference(device_type: str, dtype: torch.dtype) -> None:
    """Warns, once for each cause, if such tensors run on the reference. Silent in `torch.compile` and on "meta": nothing runs."""
    if device_type == "meta" or torch.compiler.is_compiling() or backend_for(device_type, dtype) != "reference":
        return
    reason, remedy = _why_reference(status(), device_type, dtype)
    _warn_once(f"cuda_ops runs on its PyTorch reference, which is slow: {reason}. To change that, {remedy}.")


def _why_reference(found: Status, device_type: str, dtype: torch.dtype) -> tuple[str | None, str | None]:
    """Reason and remedy."""
    if not found.compiled:
        return found.reason, found.remedy
    if device_type == "cuda" and not found.cuda_architectures:
        return f"no operators for GPUs were built: {found.cuda_reason}", found.cuda_remedy
    reason = f"the installed library has no operators for {dtype} tensors on {device_type!r}"
    if device_type == "cuda":
        return reason, "use float32, bfloat16 or float16"
    return reason, "see what was built: python -m cuda_ops lists it"


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, ReferenceBackendWarning, stacklevel=4)


def _wanted_instruction_set() -> str | None:
    wanted = os.environ.get("CUDA_OPS_INSTRUCTION_SET")
    if wanted and wanted not in _INSTRUCTION_SETS:
        names = ", ".join(_INSTRUCTION_SETS)
        raise ValueError(f"CUDA_OPS_INSTRUCTION_SET must be one of {names}, got {wanted!r}. Correct it or unset it.")
    return wanted or None


def _load() -> Status:
    information = _build_info()
    if not information:
        return Status(False, reason="nothing was built in this source tree", remedy=_BUILD_HERE)
    if not information["compiled"]:
        return Status(False, reason=information["reason"], remedy=information["remedy"])
    built_against = information["torch"]
    library = _FOLDER / "_C.abi3.so"
    try:
        torch.ops.load_library(str(library))
        symbols = ctypes.CDLL(str(library))
    except OSError as error:
        reason = f"torch {torch.__version__} cannot load the library built against torch {built_against}: {error}"
        return Status(False, reason=reason, remedy=_REINSTALL, built_against=built_against)
    return Status(
        compiled=True,
        library=str(library),
        built_against=built_against,
        instruction_sets=tuple(_text(symbols.cuda_ops_instruction_sets).split(",")),
        active_instruction_set=_text(symbols.cuda_ops_active_instruction_set),
        cuda_architectures=tuple(information["cuda_architectures"]),
        compiler=information["compiler"],
        cuda=information.get("cuda"),
        cuda_reason=information.get("cuda_reason"),
        cuda_remedy=information.get("cuda_remedy"),
    )


def _build_info() -> dict[str, Any]:
    """The record that the build left beside this file; empty in a source tree where nothing was built."""
    record = _FOLDER / "_build_info.json"
    return json.loads(record.read_text()) if record.is_file() else {}


def _text(function: Any) -> str:
    function.restype = ctypes.c_char_p
    return function().decode()
