"""The device that a command runs on."""

import torch

from bert_cluster.errors import DeviceError


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; `auto` is the GPU if there is one, else the CPU.

    Raises:
        DeviceError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"--device must be auto, cpu, cuda, cuda:INDEX or mps, got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"--device {name}: torch {torch.__version__} sees no CUDA GPU here. Use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from 0.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("--device mps: torch sees no Apple GPU here. Use --device cpu.")
    return device
