"""Runs all methods of a command over the same batches: loads once, continues what is stored, refuses to mix settings."""

import argparse
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

import bert_cluster
from bert_cluster import cells
from bert_cluster.config import FULL
from bert_cluster.evaluation.backends import operators_here
from bert_cluster.evaluation.batches import CHUNK_TOKENS, Collator, Input, Plan, plan_batches
from bert_cluster.evaluation.checkpoints import Checkpoint
from bert_cluster.evaluation.methods import Method
from bert_cluster.evaluation.processes import Processes
from bert_cluster.evaluation.results import describe_environment
from bert_cluster.evaluation.runner import Job, MethodRun, attention_of, run_method
from bert_cluster.evaluation.store import Store


@dataclass(frozen=True)
class Question:
    """What a command asks of every method.

    Attributes:
        command: squad_eval or glue_eval.
        settings: the flags that decide what the model computes; they identify the stored results, by these names.
        parts: model inputs of each part, unpadded (MNLI has two parts, everything else one).
        outputs, per_token: see `runner.Job`.
    """

    command: str
    settings: Mapping[str, Any]
    parts: Sequence[Sequence[Input]]
    outputs: tuple[str, ...]
    per_token: bool


@dataclass(frozen=True)
class Comparison:
    """The runs, in the order of the methods, and what they share. `runs` is empty outside the main process."""

    runs: list[MethodRun]
    plan: Plan
    model: Mapping[str, Any]
    environment: Mapping[str, Any]
    notes: Sequence[str] = ()

    def batches(self) -> dict[str, Any]:
        """The entry `batches` of all_results.json."""
        return {
            "count": len(self.plan.batches),
            "inputs": sum(len(batch.indices) for batch in self.plan.batches),
            "tokens": self.plan.tokens,
            "padded_tokens": self.plan.padded_tokens,
            "padded_share": self.plan.padded_share,
        }


def compare(
    options: argparse.Namespace,
    question: Question,
    checkpoint: Checkpoint,
    methods: Sequence[Method],
    processes: Processes,
    load: Callable[[], PreTrainedModel],
) -> Comparison:
    """Run every method, or read what is stored of it.

    Args:
        options: flags of `options.add_run_options` and `add_model_options`.
        load: loads the model; called at most once, and not at all where everything is stored, unless --dtype is auto.
    """
    load = functools.cache(load)
    dtype = _dtype(options, processes, load)
    environment = describe_environment(processes.device, processes.count, operators_here(processes.device, dtype))
    model_facts = {
        "name": checkpoint.name,
        "base": None if checkpoint.adapter is None else checkpoint.weights,
        "model_type": checkpoint.model_type,
        "revision": options.model_revision,
        "commit": checkpoint.fingerprint.get("commit"),
        "dtype": str(dtype).removeprefix("torch."),
    }
    pad_to = question.settings["max_seq_length"] if options.pad_to_max_length else None
    lengths = [[len(one["input_ids"]) for one in part] for part in question.parts]
    chunk_tokens = CHUNK_TOKENS * processes.count
    plan = plan_batches(lengths, options.per_device_eval_batch_size, pad_to=pad_to, chunk_tokens=chunk_tokens)
    job = Job(
        plan,
        Collator(checkpoint.tokenizer, question.parts),
        question.outputs,
        question.per_token,
        tuple(map(len, lengths)),
    )
    identity = _identity(options, question, {**model_facts, "files": dict(checkpoint.fingerprint)}, environment)
    store = Store(options.output_dir, identity, {method.name: method.settings() for method in methods})
    runs = _run_all(options, job, methods, processes, store, load)
    notes = exact_notes(methods, lengths, checkpoint.config.num_hidden_layers)
    return Comparison(runs if processes.is_main else [], plan, model_facts, environment, notes)


def _identity(
    options: argparse.Namespace, question: Question, model: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that must be the same for stored results to be continued, under the names that a refusal shows."""
    return {
        "command": question.command,
        "bert_cluster": bert_cluster.__version__,
        "model": model,
        **question.settings,
        "per_device_eval_batch_size": options.per_device_eval_batch_size,
        "pad_to_max_length": options.pad_to_max_length,
        "environment": environment,
        "inputs": _digest(question.parts),
    }


def exact_notes(methods: Sequence[Method], lengths: Sequence[Sequence[int]], layers: int) -> list[str]:
    """How many inputs are so short that `exact_below` has them computed exactly: the operator decides it, unseen.

    One note for a method, or one for each group of layers where their `exact_below` differs.
    """
    every = [length for part in lengths for length in part]
    notes = []
    for method in methods:
        groups = _layers_by_exact_below(method, layers)
        for below, indices in sorted(groups.items()):
            short = sum(length < below for length in every)
            if short:
                place = f", {_named_layers(indices)}" if len(groups) > 1 else ""
                notes.append(
                    f"{method.name}{place}: {short:,} of {len(every):,} inputs have fewer than exact_below={below} "
                    "tokens and ran exact attention."
                )
    return notes


def _layers_by_exact_below(method: Method, layers: int) -> dict[int, list[int]]:
    """The layers of each `exact_below`, without those whose method is full."""
    groups: dict[int, list[int]] = {}
    if method.config is not None:
        for index in range(layers):
            settings = method.config.for_layer(index)
            if settings.method != FULL:
                groups.setdefault(settings.exact_below, []).append(index)
    return groups


def _named_layers(indices: Sequence[int]) -> str:
    """Layers in ascending order, neighbours as a range: "layers 0 to 2, 5"."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and ranges[-1][-1] == index - 1:
            ranges[-1].append(index)
        else:
            ranges.append([index])
    return f"layer{'' if len(indices) == 1 else 's'} {', '.join(map(cells.span, ranges))}"


def _run_all(
    options: argparse.Namespace,
    job: Job,
    methods: Sequence[Method],
    processes: Processes,
    store: Store,
    load: Callable[[], PreTrainedModel],
) -> list[MethodRun]:
    overwrite = options.overwrite_output_dir
    if processes.is_main:
        store.check(overwrite=overwrite)
    finished = processes.is_main and not overwrite and _all_finished(job, methods, store)
    model = None
    if not processes.from_main(finished):
        with processes.main_first():
            model = load()
        for method in methods:
            with attention_of(model, method):
                pass  # what cannot be patched is refused before anything runs for hours
    if processes.is_main:
        store.claim(overwrite=overwrite)  # not earlier: a command that cannot run leaves the folder as it was
    progress = not options.disable_tqdm
    return [run_method(method, model, job, store, processes, progress=progress) for method in methods]


def _all_finished(job: Job, methods: Sequence[Method], store: Store) -> bool:
    return all(store.is_finished(method.name, chunk) for method in methods for chunk in range(len(job.plan.chunks)))


def _dtype(options: argparse.Namespace, processes: Processes, load: Callable[[], PreTrainedModel]) -> torch.dtype:
    """That of the weights that run: a configuration may name none, or its base's, in which an adapter is not merged."""
    if options.dtype != "auto":
        return getattr(torch, options.dtype)
    with processes.main_first():
        return load().dtype


def _digest(parts: Sequence[Sequence[Input]]) -> str:
    """Tells whether data, tokenizer or cutting changed."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(b"part")
        for one in part:
            digest.update(json.dumps({name: list(values) for name, values in one.items()}).encode())
    return digest.hexdigest()
