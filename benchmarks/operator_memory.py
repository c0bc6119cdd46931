"""How much memory one call takes beside its inputs and its output, measured in a process that did nothing else."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from operator_methods import METHODS
from timed_cases import Case

from bert_cluster.evaluation.memory import PeakMemory

WARM_UP = 64  # tokens of a first call, after which code and threads are there


def extra_memory(case: Case, names: Sequence[str], tokens: int) -> dict[str, float | None]:
    """MiB by method; None where the system does not let a process reset its peak memory."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["bert_cluster"])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        futures = {name: pool.submit(of_one_call, case, name, tokens) for name in names}
        return {name: future.result() for name, future in futures.items()}


def of_one_call(case: Case, name: str, tokens: int) -> float | None:
    """MiB by which this process's peak is above what it had, less the output."""
    torch.set_num_threads(case.threads)
    memory = PeakMemory(torch.device("cpu"))
    with torch.inference_mode():
        METHODS[name](case.inputs(WARM_UP), None)()
        run = METHODS[name](case.inputs(tokens), None)
        memory.reset()
        before = memory.peak()
        output = run()
        after = memory.peak()
    if before is None or after is None:
        return None
    return round(max(0, after - before - output.nbytes) / 2**20, 1)
