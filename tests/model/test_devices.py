"""The device that a command runs on."""

import pytest
import torch

from bert_cluster.devices import choose_device
from bert_cluster.errors import DeviceError


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="must be auto, cpu, cuda"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == torch.device("cpu")
        with pytest.raises(DeviceError, match="sees no CUDA GPU"):
            choose_device("cuda")
