"""One model, several methods, the same batches: outputs in the order of the inputs, resumed chunks, honest measurements."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerFast

from bert_cluster import ClusterConfig
from bert_cluster.evaluation import runner
from bert_cluster.evaluation.batches import Batch, Collator, plan_batches
from bert_cluster.evaluation.errors import RunError
from bert_cluster.evaluation.methods import Method
from bert_cluster.evaluation.processes import Processes
from bert_cluster.evaluation.runner import Job, run_method
from bert_cluster.evaluation.store import Store

ALONE = Processes(0, 1, torch.device("cpu"))
FULL = Method("full", None, "defaults")
EVERY_KEY = Method("improved-clustered", ClusterConfig(method="improved-clustered", topk=128), "flags")
COARSE = Method("clustered", ClusterConfig(method="clustered", clusters=2), "flags")


@pytest.fixture
def model(qa_model: str) -> PreTrainedModel:
    return BertForQuestionAnswering.from_pretrained(qa_model).eval()


@pytest.fixture
def inputs() -> list[dict[str, list[int]]]:
    random = np.random.RandomState(0)
    return [{"input_ids": random.randint(5, 40, length).tolist()} for length in (9, 30, 4, 17, 17, 25, 1, 12)]


@pytest.fixture
def job(tokenizer: PreTrainedTokenizerFast, inputs: list[dict[str, list[int]]]) -> Job:
    lengths = [[len(one["input_ids"]) for one in inputs]]
    plan = plan_batches(lengths, 3, chunk_tokens=30)
    return Job(plan, Collator(tokenizer, [inputs]), ("start_logits", "end_logits"), True, (len(inputs),))


def test_outputs_come_back_in_order_without_padding(
    model: PreTrainedModel, job: Job, inputs: list[dict[str, list[int]]], tmp_path: Path
) -> None:
    run = run_method(FULL, model, job, Store(tmp_path), ALONE, progress=False)
    for index, one in enumerate(inputs):
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([one["input_ids"]]))
        np.testing.assert_allclose(run.outputs[0]["start_logits"][index], expected.start_logits[0].numpy(), atol=1e-4)
        np.testing.assert_allclose(run.outputs[0]["end_logits"][index], expected.end_logits[0].numpy(), atol=1e-4)
    assert run.tokens == sum(len(one["input_ids"]) for one in inputs)
    assert run.seconds[0] > 0
    assert run.calls == {}
    assert run.backend == "sdpa"


def test_all_keys_equal_full_and_the_calls_are_clustered(model: PreTrainedModel, job: Job, tmp_path: Path) -> None:
    store = Store(tmp_path)
    full = run_method(FULL, model, job, store, ALONE, progress=False)
    clustered = run_method(EVERY_KEY, model, job, store, ALONE, progress=False)
    for one, other in zip(full.outputs[0]["start_logits"], clustered.outputs[0]["start_logits"], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert clustered.calls["clustered"] == 2 * len(job.plan.batches)
    assert clustered.calls["exact"] == 0
    coarse = run_method(COARSE, model, job, store, ALONE, progress=False)
    assert np.abs(coarse.outputs[0]["start_logits"][1] - full.outputs[0]["start_logits"][1]).max() > 1e-2


def test_every_method_gets_the_same_batches_and_the_model_is_left_as_it_was(
    model: PreTrainedModel, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Batch]] = {}
    original = runner._forward

    def spy(method: Method, model: PreTrainedModel, job: Job, batch: Batch) -> Any:
        seen.setdefault(method.name, []).append(batch)
        return original(method, model, job, batch)

    monkeypatch.setattr(runner, "_forward", spy)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for method in (FULL, COARSE, EVERY_KEY):
        run_method(method, model, job, Store(tmp_path), ALONE, progress=False)
    assert seen["full"] == seen["clustered"] == seen["improved-clustered"]
    assert model.config._attn_implementation == "sdpa"
    assert not hasattr(model.config, "clustered_attention")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_finished_chunks_are_not_run_again(model: PreTrainedModel, job: Job, tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = run_method(FULL, model, job, store, ALONE, progress=False)
    assert (first.resumed_chunks, len(job.plan.chunks) > 2) == (0, True)
    store.chunk_path("full", 1).unlink()
    second = run_method(FULL, model, job, store, ALONE, progress=False)
    assert second.resumed_chunks == len(job.plan.chunks) - 1
    third = run_method(FULL, None, job, store, ALONE, progress=False)
    assert third.seconds == second.seconds
    for one, other in zip(first.outputs[0]["start_logits"], third.outputs[0]["start_logits"], strict=True):
        np.testing.assert_array_equal(one, other)


def test_memory_that_was_not_measured_in_one_chunk_is_not_known(
    model: PreTrainedModel, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.PeakMemory, "peak", lambda self: None)
    assert run_method(FULL, model, job, Store(tmp_path), ALONE, progress=False).peak_memory_bytes is None


def test_the_hungry_method_first(model: PreTrainedModel, job: Job, tmp_path: Path) -> None:
    class Wasteful(BertForQuestionAnswering):
        def forward(self, **inputs: Any) -> Any:
            if self.config._attn_implementation == "sdpa":
                torch.ones(75 * 2**20).sum()  # 300 MiB
            return super().forward(**inputs)

    model.__class__ = Wasteful
    full = run_method(FULL, model, job, Store(tmp_path), ALONE, progress=False)
    frugal = run_method(EVERY_KEY, model, job, Store(tmp_path), ALONE, progress=False)
    if full.peak_memory_bytes is None:
        pytest.skip("this system does not let a process reset its peak memory")
    assert frugal.peak_memory_bytes is not None
    assert full.peak_memory_bytes - frugal.peak_memory_bytes > 200 * 2**20


def windows_out_of_memory() -> None:
    raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes")


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**60), windows_out_of_memory])
def test_out_of_memory_says_what_to_lower(
    allocate: Callable[[], Any], job: Job, model: PreTrainedModel, tmp_path: Path
) -> None:
    model.forward = lambda **_: allocate()  # type: ignore[method-assign,assignment]
    with pytest.raises(RunError, match="full ran out of memory on a batch of .* --per_device_eval_batch_size"):
        run_method(FULL, model, job, Store(tmp_path), ALONE, progress=False)


def test_an_error_of_the_model_is_not_hidden_and_the_patch_is_taken_off(
    job: Job, model: PreTrainedModel, tmp_path: Path
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("shape mismatch")

    model.forward = fail  # type: ignore[method-assign,assignment]
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run_method(COARSE, model, job, Store(tmp_path), ALONE, progress=False)
    assert model.config._attn_implementation == "sdpa"


def test_the_bar_counts_every_token_once_and_starts_where_it_stopped(
    job: Job, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []

    class Bar(runner.tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **options)
            bars.append(self)

    monkeypatch.setattr(runner, "tqdm", Bar)
    store = Store(tmp_path)
    run_method(FULL, model, job, store, ALONE)
    shutil.rmtree(store.chunk_path("full", 0).parent)
    run_method(FULL, model, job, store, ALONE)
    store.chunk_path("full", 0).unlink()
    run_method(FULL, model, job, store, ALONE)
    first = sum(batch.padded_tokens for batch in job.plan.chunks[0])
    assert [bar.n for bar in bars] == [job.plan.padded_tokens] * 3
    assert [bar.initial for bar in bars] == [0, 0, job.plan.padded_tokens - first]


def test_two_processes_split_whole_batches(
    job: Job, model: PreTrainedModel, tmp_path: Path, save_model: Callable[..., str]
) -> None:
    """What each of two processes computes, put together as the main one does, is what one process stores."""
    alone = run_method(FULL, model, job, Store(tmp_path / "alone"), ALONE, progress=False)
    store = Store(tmp_path / "two")
    for number, chunk in enumerate(job.plan.chunks):
        gathered = []
        for index in range(2):
            processes = Processes(index, 2, torch.device("cpu"))
            with runner._progress(FULL, job, [False] * len(job.plan.chunks), enabled=False) as bar:
                rows, seconds = runner._run_chunk(FULL, model, job, chunk, processes, bar)
            measures = {
                "part": 0,
                "seconds": seconds,
                "tokens": sum(batch.tokens for batch in chunk),
                "calls": {"x": 1},
            }
            gathered.append(
                (rows, {**measures, "peak_memory_bytes": index, "backend": "b", "preparation_seconds": 0.0})
            )
        runner._store_chunk(store, "full", number, gathered)
    together = runner._collect(FULL, job, store)
    for one, other in zip(alone.outputs[0]["end_logits"], together.outputs[0]["end_logits"], strict=True):
        np.testing.assert_array_equal(one, other)
    assert together.peak_memory_bytes == 1
    assert together.calls == {"x": 2 * len(job.plan.chunks)}
