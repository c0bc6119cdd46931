"""Loads the checkpoint that `checkpoints.find_checkpoint` found: every weight from a file, none made up."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import PreTrainedModel

from bert_cluster.evaluation.checkpoints import Adapter, Checkpoint
from bert_cluster.evaluation.errors import CheckpointError, MissingPackageError

PEFT_PREFIX = "base_model.model."


def load_model(
    checkpoint: Checkpoint,
    auto_class: Any,
    *,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    id2label: Mapping[int, str] | None = None,
) -> PreTrainedModel:
    """The model in evaluation mode on its device, an adapter merged into it.

    Args:
        checkpoint: what `find_checkpoint` returned.
        auto_class: AutoModelForQuestionAnswering or AutoModelForSequenceClassification.
        dtype: a name of torch, or auto for the checkpoint's own.
        id2label: output names of an adapter's head. Full checkpoints keep their own configuration.

    Raises:
        CheckpointError: weights are missing, of another shape, or the architecture has no such head.
        MissingPackageError: an adapter without peft.
    """
    adapter = checkpoint.adapter
    kwargs: dict[str, Any] = {"config": checkpoint.config, "dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if adapter is not None:
        _require_peft(checkpoint.name)
        # merging in the narrow type would round the sum of base and adapter twice
        kwargs["dtype"] = torch.float32
        if id2label is not None:
            names = dict(id2label)
            checkpoint.config.id2label = names
            checkpoint.config.label2id = {name: number for number, name in names.items()}
            checkpoint.config.problem_type = "regression" if len(names) == 1 else None
    provided = set() if adapter is None else {key.removeprefix(PEFT_PREFIX) for key in adapter.keys}
    model = _load_weights(checkpoint, auto_class, kwargs, provided)
    if adapter is not None:
        model = _merge(model, adapter)
        if dtype != "auto":
            model = model.to(getattr(torch, dtype))
    return model.eval().to(device)


def _load_weights(
    checkpoint: Checkpoint, auto_class: Any, kwargs: Mapping[str, Any], provided: set[str]
) -> PreTrainedModel:
    """The model with every weight from the checkpoint, except those that an adapter provides."""
    # sizes that differ are an error below, by name; transformers' own points at a report that is not shown
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _quiet_transformers():
            model, info = auto_class.from_pretrained(
                checkpoint.weights, revision=checkpoint.revision, **options, **checkpoint.hub, **kwargs
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{checkpoint.weights}: the model cannot be loaded: {first}") from error
    mismatched = sorted(one for one in info["mismatched_keys"] if one[0] not in provided)
    _require_none_missing(checkpoint.weights, set(info["missing_keys"]) - provided - {key for key, *_ in mismatched})
    if mismatched:
        key, stored, expected = mismatched[0]
        raise CheckpointError(
            f"{checkpoint.weights}: the weights {key} have the shape {tuple(stored)}, and by config.json it is "
            f"{tuple(expected)}. Weights and config.json are not of the same model: check num_labels and the sizes there."
        )
    return model


def _require_none_missing(place: str, missing: set[str]) -> None:
    if missing:
        raise CheckpointError(
            f"{place} lacks the weights {', '.join(sorted(missing))}: it is an encoder without the head of this task, and a "
            "random head would give meaningless scores. Use a checkpoint that was fine-tuned for the task."
        )


def _merge(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    from peft import PeftModel, get_peft_model_state_dict

    try:
        with warnings.catch_warnings():
            # keys that do not match are checked below, by name
            warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)
            # peft asks transformers by a name that 5.23 renames; nothing the user can change
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            wrapped = PeftModel.from_pretrained(model, adapter.folder, torch_device="cpu")
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{adapter.folder}: the adapter does not fit {adapter.base}: {error}") from error
    # False: else peft looks for the base that the adapter names, on the Hub too, whatever base was loaded
    expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    if expected != set(adapter.keys):
        wrong = sorted(expected ^ set(adapter.keys))
        shown = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise CheckpointError(
            f"{adapter.folder}: the adapter does not fit {adapter.base}: weights only on one side: {shown}. "
            "Name the base model that it was trained on with --base_model_name_or_path."
        )
    merged = wrapped.merge_and_unload()
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    return merged


def _require_peft(name: str) -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"{name} is a PEFT adapter, and peft is not installed: pip install peft, or give a merged checkpoint."
        ) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Missing weights are errors here; the table that transformers prints about them says that training would fix it."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
