"""Peak memory per method: what an earlier, hungrier one used must not be in it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bert_cluster.evaluation.memory import PeakMemory

MIB = 2**20


def hungry(size: int) -> None:
    """Touch `size` bytes and free them."""
    np.ones(size, dtype=np.uint8).sum()


def test_the_hungry_one_first_does_not_count_for_the_next() -> None:
    memory = PeakMemory(torch.device("cpu"))
    memory.reset()
    start = memory.peak()
    if start is None:
        pytest.skip("this system does not let a process reset its peak memory")
    hungry(300 * MIB)
    first = memory.peak()
    memory.reset()
    hungry(20 * MIB)
    second = memory.peak()
    assert first is not None and second is not None
    assert first - start > 250 * MIB
    assert first - second > 200 * MIB


def test_small_pieces_are_given_back_to_the_system() -> None:
    """glibc keeps freed heap pages, which would stay resident."""
    memory = PeakMemory(torch.device("cpu"))
    memory.reset()
    if memory.peak() is None:
        pytest.skip("this system does not let a process reset its peak memory")
    pieces = [bytearray(60_000) for _ in range(2500)]
    first = memory.peak()
    del pieces
    memory.reset()
    second = memory.peak()
    assert first is not None and second is not None
    assert first - second > 100 * MIB


@pytest.mark.parametrize("status", ["/proc/self/status", "/nowhere"])
def test_null_where_it_cannot_be_reset(status: str, tmp_path: Path) -> None:
    clear_refs = tmp_path / "folder" / "clear_refs"  # cannot be written: its folder is missing
    memory = PeakMemory(torch.device("cpu"), status=status, clear_refs=clear_refs)
    memory.reset()
    assert memory.peak() is None


def test_null_before_the_first_reset_and_on_devices_that_keep_none() -> None:
    assert PeakMemory(torch.device("cpu")).peak() is None
    memory = PeakMemory(torch.device("mps"))
    memory.reset()
    assert memory.peak() is None
