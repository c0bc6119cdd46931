"""What kind of model is saved: the library that loads it, the class to load it with, and its task on the Hub."""

from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel

from bert_cluster.errors import NotPatchedError, SaveError
from bert_cluster.families import encoder_of
from bert_cluster.patching import is_patched

TRANSFORMERS, SENTENCE_TRANSFORMERS = "transformers", "sentence-transformers"

# End of an architecture's name -> its task on the Hub.
TASKS = {
    "ForQuestionAnswering": "question-answering",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMultipleChoice": "multiple-choice",
    "ForMaskedLM": "fill-mask",
}
ENCODER = "feature-extraction"
# The task on the Hub -> the class of transformers that loads a model for it.
AUTO_CLASSES = {task: f"AutoModel{end}" for end, task in TASKS.items()} | {ENCODER: "AutoModel"}
# The same for classes of sentence-transformers, which are known by name: the package is optional.
SENTENCE_CLASSES = {"sentence-similarity": "SentenceTransformer", "text-ranking": "CrossEncoder"}


@dataclass(frozen=True)
class Kind:
    """One saved model.

    Attributes:
        model: what is saved, without the wrappers of torch.compile and of parallel training.
        encoder: the patched transformers model in it.
        library: "transformers" or "sentence-transformers".
        loader: name of the class of that library that loads it, such as "AutoModelForQuestionAnswering".
        task: its pipeline tag on the Hub, None where the Hub has none for its head.
    """

    model: Any
    encoder: PreTrainedModel
    library: str
    loader: str
    task: str | None


def kind_of(model: nn.Module) -> Kind:
    """Tell what a patched model is saved as.

    Raises:
        SaveError: a model with adapters, or one that no library can load again.
        NotPatchedError: it is not patched, or only a part of it is.
        UnsupportedModelError: it holds no transformers model, or several.
    """
    model = _unwrapped(model)
    _refuse_adapters(model)
    encoder = encoder_of(model)
    _require_patched(model, encoder)
    _refuse_foreign(encoder)
    if isinstance(model, PreTrainedModel):
        return Kind(model, encoder, TRANSFORMERS, *_loader_and_task(model))
    name = _sentence_class(model)
    if name is None:
        raise SaveError(
            f"{type(model).__name__} is no model that transformers or sentence-transformers loads again. Save the "
            f"{type(encoder).__name__} in it, or a SentenceTransformer or CrossEncoder around it."
        )
    task = next((task for task, one in SENTENCE_CLASSES.items() if one == name), None)
    if name == "CrossEncoder" and getattr(model, "num_labels", 1) != 1:
        task = "text-classification"  # as sentence-transformers itself has it
    return Kind(model, encoder, SENTENCE_TRANSFORMERS, name, task)


def _loader_and_task(model: PreTrainedModel) -> tuple[str, str | None]:
    architecture = type(model).__name__
    for end, task in TASKS.items():
        if architecture.endswith(end):
            return AUTO_CLASSES[task], task
    if model.base_model is model:
        return AUTO_CLASSES[ENCODER], ENCODER
    own = f"AutoModel{architecture[architecture.find('For') :]}" if "For" in architecture else ""
    return (own if hasattr(transformers, own) else architecture), None


def _sentence_class(model: nn.Module) -> str | None:
    """The class of sentence-transformers that a model is an instance of, None for all other models."""
    for each in type(model).__mro__:
        if each.__module__.startswith("sentence_transformers."):
            import sentence_transformers

            return each.__name__ if hasattr(sentence_transformers, each.__name__) else None
    return None


def _unwrapped(model: nn.Module) -> nn.Module:
    """Without torch.compile and data parallelism: what they wrap is what is saved."""
    while True:
        if "_orig_mod" in getattr(model, "_modules", {}):
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def _refuse_adapters(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        return
    loaded = any(getattr(module, "_hf_peft_config_loaded", False) for module in model.modules())
    inside = any(type(module).__module__.split(".")[0] == "peft" for module in model.modules())
    if loaded or inside:
        raise SaveError(
            f"This {type(model).__name__} has PEFT adapters, and saving it would keep the adapters alone, without the settings of "
            f"clustered attention. Merge them first: model = model.merge_and_unload(), then patch and save what it returns."
        )


def _refuse_foreign(encoder: PreTrainedModel) -> None:
    """A subclass of the user's, or remote code: whoever loads it with transformers alone would get another model."""
    name = type(encoder).__name__
    if getattr(transformers, name, None) is not type(encoder):
        raise SaveError(
            f"{name} (of {type(encoder).__module__}) is no class of transformers, so nobody else could load it again. Save a "
            f"model whose class is one of transformers."
        )


def _require_patched(model: nn.Module, encoder: PreTrainedModel) -> None:
    if is_patched(encoder):
        return
    parts = [name for name, each in encoder.named_modules() if isinstance(each, PreTrainedModel) and is_patched(each)]
    if parts:
        raise NotPatchedError(
            f"Of this {type(model).__name__} only its part {parts[0]!r} is patched, and a loaded model is patched as a whole. Call "
            f"bert_cluster.unpatch on the part and bert_cluster.patch on the model, then save it."
        )
    raise NotPatchedError(
        f"This {type(model).__name__} is not patched. Call bert_cluster.patch(model) first, or save it with its own "
        f"save_pretrained or push_to_hub."
    )
