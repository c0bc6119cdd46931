"""Launches: a process that was meant to be one of several but runs alone must say so."""

import pytest
import torch

from bert_cluster.evaluation.errors import LaunchError
from bert_cluster.evaluation.processes import join_processes, refuse_silent_solo


def test_a_plain_start_is_one_process() -> None:
    processes = join_processes("cpu")
    assert (processes.index, processes.count, processes.is_main) == (0, 1, True)
    assert processes.gather("x") == ["x"]
    assert processes.from_main(3) == 3


def test_a_launch_on_the_cpu_is_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert join_processes("auto").device == torch.device("cpu")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_several_launched_but_one_seen(name: str) -> None:
    with pytest.raises(LaunchError, match=f"{name}=2 says that several processes were launched, .*torchrun"):
        refuse_silent_solo({name: "2"}, 1)
    refuse_silent_solo({name: "2"}, 2)
    refuse_silent_solo({name: "1"}, 1)


def test_accelerate_launch_on_the_cpu_starts_only_one() -> None:
    environment = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}
    with pytest.raises(LaunchError, match="asked for several processes .*started only this one"):
        refuse_silent_solo(environment, 1)
    refuse_silent_solo({"ACCELERATE_MIXED_PRECISION": "no"}, 1)
    refuse_silent_solo({**environment, "WORLD_SIZE": "1"}, 1)
