"""Runs one method over all batches, chunk by chunk, and measures it."""

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

import bert_cluster
from bert_cluster.evaluation.backends import backend_of, calls_of
from bert_cluster.evaluation.batches import Batch, Collator, Plan
from bert_cluster.evaluation.errors import RunError
from bert_cluster.evaluation.memory import PeakMemory, is_out_of_memory
from bert_cluster.evaluation.methods import Method
from bert_cluster.evaluation.processes import Processes
from bert_cluster.evaluation.store import Store

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Job:
    """What every method runs: batches, how to make tensors of them, and which outputs to keep.

    `outputs` names fields of the model's output. Where `per_token`, they are (B, N), and each input keeps its own valid
    tokens; otherwise (B, ...), and each input keeps its row.
    """

    plan: Plan
    collate: Collator
    outputs: tuple[str, ...]
    per_token: bool
    sizes: tuple[int, ...]


@dataclass
class MethodRun:
    """Outputs of one method, part by part and in the order of the inputs, and its measurements."""

    outputs: list[dict[str, Arrays]]
    seconds: list[float]
    tokens: int = 0
    peak_memory_bytes: int | None = None
    backend: str = ""
    calls: dict[str, int] = field(default_factory=dict)
    preparation_seconds: float = 0.0
    resumed_chunks: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Valid tokens per second of forward time."""
        return self.tokens / sum(self.seconds) if sum(self.seconds) > 0 else 0.0


def run_method(
    method: Method,
    model: PreTrainedModel | None,
    job: Job,
    store: Store,
    processes: Processes,
    *,
    progress: bool = True,
) -> MethodRun:
    """Run the chunks of `method` that are not stored yet, then read all of them back in the main process.

    Batch i of a chunk runs in process i modulo their number: every batch is the same as in a single process, so a
    cluster decision cannot change with the launch.

    Args:
        model: not patched; None where every chunk is stored.

    Returns:
        The run; complete in the main process only, empty elsewhere.

    Raises:
        RunError: a forward failed.
    """
    chunks = job.plan.chunks
    finished = [store.is_finished(method.name, number) for number in range(len(chunks))] if processes.is_main else []
    finished = processes.from_main(finished)
    if not all(finished):
        if model is None:
            raise RunError(f"{method.name} has chunks to run, and no model was loaded.")
        with _progress(method, job, finished, enabled=progress and processes.is_main) as bar:
            _run_chunks(method, model, job, store, processes, finished, bar)
    if not processes.is_main:
        return MethodRun([], [])
    run = _collect(method, job, store)
    run.resumed_chunks = sum(finished)
    return run


def _run_chunks(
    method: Method,
    model: PreTrainedModel,
    job: Job,
    store: Store,
    processes: Processes,
    finished: Sequence[bool],
    bar: "tqdm[Any]",
) -> None:
    memory = PeakMemory(processes.device)
    memory.reset()
    start = time.perf_counter()
    with attention_of(model, method):
        preparation = time.perf_counter() - start
        _forward(method, model, job, min(job.plan.batches, key=lambda batch: batch.padded_tokens))  # warm-up, not timed
        for number, chunk in enumerate(job.plan.chunks):
            if finished[number]:
                continue
            before = calls_of(model, method)
            arrays, seconds = _run_chunk(method, model, job, chunk, processes, bar)
            after = calls_of(model, method)
            measures = {
                "part": chunk[0].part,
                "seconds": seconds,
                "tokens": sum(batch.tokens for batch in chunk),
                "peak_memory_bytes": memory.peak(),
                "backend": backend_of(model, method),
                "calls": {name: count - before.get(name, 0) for name, count in after.items()},
                "preparation_seconds": preparation,
            }
            gathered = processes.gather((arrays, measures))
            if processes.is_main:
                _store_chunk(store, method.name, number, gathered)
            bar.update(sum(batch.padded_tokens for batch in chunk) - _own_tokens(chunk, processes))


def _own_tokens(chunk: Sequence[Batch], processes: Processes) -> int:
    return sum(batch.padded_tokens for batch in chunk[processes.index :: processes.count])


def _run_chunk(
    method: Method,
    model: PreTrainedModel,
    job: Job,
    chunk: Sequence[Batch],
    processes: Processes,
    bar: "tqdm[Any]",
) -> tuple[dict[int, dict[str, np.ndarray]], float]:
    """Outputs of this process's batches by input index, and the seconds that their forwards took."""
    outputs: dict[int, dict[str, np.ndarray]] = {}
    seconds = 0.0
    for batch in chunk[processes.index :: processes.count]:
        rows, took = _forward(method, model, job, batch)
        outputs.update(zip(batch.indices, rows, strict=True))
        seconds += took
        bar.update(batch.padded_tokens)
    return outputs, seconds


def _forward(
    method: Method, model: PreTrainedModel, job: Job, batch: Batch
) -> tuple[list[dict[str, np.ndarray]], float]:
    inputs = job.collate(batch)
    start = time.perf_counter()
    try:
        with torch.inference_mode():
            result = model(**{name: inputs[name].to(model.device) for name in _accepted(model, inputs)})
        kept = {name: result[name].float().cpu().numpy() for name in job.outputs}
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(str(error)):
            raise RunError(
                f"{method.name} ran out of memory on a batch of {len(batch.indices)} x {batch.length} tokens. "
                "Lower --per_device_eval_batch_size or --max_seq_length."
            ) from error
        raise
    seconds = time.perf_counter() - start
    valid = inputs["attention_mask"].bool().numpy()
    rows = [
        {name: values[row][valid[row]] if job.per_token else values[row] for name, values in kept.items()}
        for row in range(len(batch.indices))
    ]
    return rows, seconds


def _accepted(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> list[str]:
    """The inputs that the model's forward names, as Trainer chooses them: DistilBERT takes no token_type_ids."""
    names = inspect.signature(model.forward).parameters
    return [name for name in inputs if name in names or "input_ids" not in names]


@contextmanager
def attention_of(model: PreTrainedModel, method: Method) -> Iterator[None]:
    """The model with this method's attention; as it was afterwards."""
    if method.config is None:
        yield
        return
    bert_cluster.patch(model, method.config)
    try:
        yield
    finally:
        bert_cluster.unpatch(model)


def _progress(method: Method, job: Job, finished: Sequence[bool], *, enabled: bool) -> "tqdm[Any]":
    chunks = zip(job.plan.chunks, finished, strict=True)
    done = sum(batch.padded_tokens for chunk, is_done in chunks if is_done for batch in chunk)
    return tqdm(
        desc=method.name,
        total=job.plan.padded_tokens,
        initial=done,
        unit="token",
        unit_scale=True,
        dynamic_ncols=True,
        disable=not enabled,
    )


def _store_chunk(
    store: Store, method: str, number: int, gathered: Sequence[tuple[dict[int, Any], dict[str, Any]]]
) -> None:
    """Write what all processes computed of a chunk: the slowest process's seconds, the largest one's memory."""
    rows = {index: row for outputs, _ in gathered for index, row in outputs.items()}
    every = [measures for _, measures in gathered]
    peaks = [measures["peak_memory_bytes"] for measures in every]
    measures = {
        **every[0],
        "seconds": max(one["seconds"] for one in every),
        "preparation_seconds": max(one["preparation_seconds"] for one in every),
        "peak_memory_bytes": None if None in peaks else max(peaks),
        "calls": {name: sum(one["calls"].get(name, 0) for one in every) for name in every[0]["calls"]},
    }
    indices = sorted(rows)
    arrays = {"indices": np.array(indices)}
    for name in rows[indices[0]]:
        arrays[f"{name}.lengths"] = np.array([len(rows[index][name]) for index in indices])
        arrays[f"{name}.values"] = np.concatenate([rows[index][name] for index in indices])
    store.write_chunk(method, number, arrays, measures)


def _collect(method: Method, job: Job, store: Store) -> MethodRun:
    """Read all chunks back and put the outputs in the order of the inputs."""
    found: list[dict[int, dict[str, np.ndarray]]] = [{} for _ in job.sizes]
    run = MethodRun([], [0.0 for _ in job.sizes])
    peaks: list[int | None] = []
    for number in range(len(job.plan.chunks)):
        arrays, measures = store.read_chunk(method.name, number)
        _unpack(arrays, job.outputs, found[measures["part"]])
        run.seconds[measures["part"]] += measures["seconds"]
        run.tokens += measures["tokens"]
        peaks.append(measures["peak_memory_bytes"])
        run.backend = measures["backend"]
        run.preparation_seconds = measures["preparation_seconds"]
        for name, count in measures["calls"].items():
            run.calls[name] = run.calls.get(name, 0) + count
    known = [peak for peak in peaks if peak is not None]
    run.peak_memory_bytes = max(known) if known and len(known) == len(peaks) else None
    for part, size in zip(found, job.sizes, strict=True):
        run.outputs.append({name: [part[index][name] for index in range(size)] for name in job.outputs})
    return run


def _unpack(arrays: Mapping[str, np.ndarray], names: Sequence[str], into: dict[int, dict[str, np.ndarray]]) -> None:
    for name in names:
        bounds = np.cumsum(arrays[f"{name}.lengths"])[:-1]
        for index, values in zip(arrays["indices"], np.split(arrays[f"{name}.values"], bounds), strict=True):
            into.setdefault(int(index), {})[name] = values
