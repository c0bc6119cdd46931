"""OUTPUT_DIR/all_results.json: everything measured, by method, in one schema (documented in docs/results-schema.md)."""

import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from bert_cluster.evaluation.bootstrap import Difference
from bert_cluster.evaluation.methods import Method
from bert_cluster.evaluation.rows import Source
from bert_cluster.evaluation.runner import MethodRun
from bert_cluster.processor import processor_name

SCHEMA = "bert_cluster.evaluation"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Agreement:
    """How much a method predicts what full attention predicts.

    `kind` is "same predictions" (a share, 0 to 1) or, for regression, "mean absolute difference" (in the label's unit).
    """

    kind: str
    value: float


@dataclass(frozen=True)
class MethodResult:
    """One method's part of the results. `scores` is empty for a split without labels; `differences` and `agreement` are
    None for full attention and where full attention was not run."""

    method: Method
    run: MethodRun
    scores: Mapping[str, float]
    differences: Mapping[str, Difference] | None
    agreement: Agreement | None
    not_finite: int


@dataclass(frozen=True)
class Results:
    """A whole evaluation, as report and plot take it."""

    command: str
    task: Mapping[str, Any]
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    batches: Mapping[str, Any]
    environment: Mapping[str, Any]
    methods: Sequence[MethodResult]
    bootstrap: Mapping[str, Any]
    notes: Sequence[str] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """The content of all_results.json; numbers that are not finite become null."""
        full = next((result for result in self.methods if result.method.config is None), None)
        return finite(
            {
                "schema": SCHEMA,
                "schema_version": SCHEMA_VERSION,
                "command": self.command,
                "task": dict(self.task),
                "model": dict(self.model),
                "data": dict(self.data),
                "settings": dict(self.settings),
                "batches": dict(self.batches),
                "environment": dict(self.environment),
                "bootstrap": dict(self.bootstrap),
                "methods": {result.method.name: _method_to_dict(result, full) for result in self.methods},
                "notes": list(self.notes),
            }
        )


def _method_to_dict(result: MethodResult, full: MethodResult | None) -> dict[str, Any]:
    run = result.run
    seconds = sum(run.seconds)
    compared = full is not None and full is not result
    return {
        "cluster_config": None if result.method.config is None else result.method.config.to_dict(),
        "settings_from": result.method.origin,
        "scores": dict(result.scores),
        "difference_to_full": None
        if result.differences is None
        else {name: {"value": one.value, "low": one.low, "high": one.high} for name, one in result.differences.items()},
        "agreement_with_full": None
        if result.agreement is None
        else {"kind": result.agreement.kind, "value": result.agreement.value},
        "seconds": seconds,
        "tokens_per_second": run.tokens_per_second,
        "speedup_over_full": sum(full.run.seconds) / seconds if compared and full is not None and seconds else None,
        "peak_memory_bytes": run.peak_memory_bytes,
        "backend": run.backend,
        "calls": dict(run.calls),
        "not_finite": result.not_finite,
    }


def finite(value: Any) -> Any:
    """The same JSON value with null for NaN and infinities, and plain Python numbers."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe_data(parts: Sequence[tuple[Source, int, bool]]) -> dict[str, Any]:
    """`data` of the results.

    Args:
        parts: for each where its examples came from, how many there are, and whether they have labels.
    """
    return {
        "source": ", ".join(str(source) for source, _, _ in parts),
        "examples": sum(examples for _, examples, _ in parts),
        "labelled": any(labelled for _, _, labelled in parts),
        "parts": [
            {**dataclasses.asdict(source), "examples": examples, "labelled": labelled}
            for source, examples, labelled in parts
        ],
    }


def describe_environment(device: torch.device, processes: int, operators: str) -> dict[str, Any]:
    """Machine and versions: part of the results, and part of what a continued run must share.

    Args:
        operators: what cuda_ops runs on, such as cpu-avx512 or reference.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": device.type,
        "device_name": name,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "operators": operators,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
