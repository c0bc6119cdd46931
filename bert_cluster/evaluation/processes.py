"""One or several processes: torchrun and `accelerate launch`, on CPUs and GPUs."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

import torch

from bert_cluster.devices import choose_device
from bert_cluster.evaluation.errors import LaunchError, OptionError

T = TypeVar("T")

HOW_TO_LAUNCH = (
    "On CPUs launch with `torchrun --nproc_per_node N -m squad_eval ...` (or glue_eval), or with "
    "`ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes N -m ...`."
)


@dataclass(frozen=True)
class Processes:
    """This process among those of the launch. `index` 0 is the main one: it alone writes files and prints.

    As a context it leaves the launch in order: nobody ends while the main process still writes (the launcher would stop
    it), nor with the process group's threads running (torch can abort then). After an exception nobody is waited for.
    """

    index: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.index == 0

    def gather(self, value: T) -> list[T]:
        """The value of every process, in their order, in every process. Waits for all of them."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def from_main(self, value: T) -> T:
        """The main process's value, in every process."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.count == 1:
            return
        from accelerate import PartialState

        if error is None:
            PartialState().wait_for_everyone()
        PartialState().destroy_process_group()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in the main process, then in the others: they find its downloads in the cache."""
        if self.count == 1:
            yield
            return
        from accelerate import PartialState

        with PartialState().main_process_first():
            yield


def join_processes(device: str) -> Processes:
    """Join the launch that started this process.

    Args:
        device: value of `--device`; "auto" is the CPU under `accelerate launch --cpu`. With several processes each GPU
            process takes the GPU of its local rank.

    Raises:
        LaunchError: several processes were launched, but this one would evaluate everything alone.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # What `accelerate launch --cpu` leaves for its programs; PartialState does not read it.
    on_cpu = device == "auto" and parse_flag_from_env("ACCELERATE_USE_CPU")
    chosen = choose_device("cpu" if on_cpu else device)
    state = PartialState(cpu=chosen.type == "cpu")
    refuse_silent_solo(os.environ, state.num_processes)
    if state.num_processes > 1:
        if chosen.type != "cpu" and chosen.index is not None:
            raise OptionError(
                f"--device {device} would put {state.num_processes} processes on one GPU. Use --device cuda."
            )
        chosen = torch.device(state.device)
    return Processes(state.process_index, state.num_processes, chosen)


def refuse_silent_solo(environment: Mapping[str, str], num_processes: int) -> None:
    """Raise LaunchError where a launcher started several processes, or was told to, and accelerate sees only one.

    torchrun and MPI export the number of processes. `accelerate launch --cpu --num_processes N` starts a single one
    (accelerate 1.15, commands/launch.py, simple_launcher) and leaves MASTER_ADDR without WORLD_SIZE as its only trace.
    """
    if num_processes > 1:
        return
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"):
        if int(environment.get(name) or 1) > 1:
            raise LaunchError(
                f"{name}={environment[name]} says that several processes were launched, but accelerate sees one: each would "
                f"evaluate everything and overwrite the others' results. {HOW_TO_LAUNCH}"
            )
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    if by_accelerate and "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment:
        raise LaunchError(
            "`accelerate launch` was asked for several processes (it set MASTER_ADDR) but started only this one, as it "
            f"does with --cpu. {HOW_TO_LAUNCH}"
        )
