"""Which attention modules of a model can be made clustered, and why the others cannot.

Found in the source of the classes, before anything runs: a module whose ``forward`` asks transformers' attention registry
for its function is one whose attention can be replaced by name.
"""

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from bert_cluster.errors import UnsupportedModelError

_DISPATCH = "ALL_ATTENTION_FUNCTIONS.get_interface("
# Keywords that families give their attention function for scores that are more than a scaled product.
SCORE_KEYWORDS = ("position_bias", "softcap", "s_aux", "sinks")
# Families that hand their padding mask over as numbers to add, (B, 1, 1, N), and nothing else in it.
ADDITIVE_PADDING = ("layoutlm", "markuplm")
# Towers that take the output at the last place of the batch for the text's, padding or not: clustered attention has none there.
POOLING_AT_PADDING = ("siglip_text_model", "siglip2_text_model")
_WITH_A_DECODER = (
    "{kind} is an encoder with a decoder; clustered attention is for encoders. Patch its encoder alone "
    "(model.get_encoder()), if that has plain self-attention."
)


@dataclass(frozen=True)
class AttentionModule:
    """One attention module of a model.

    Attributes:
        name: dotted, within the model.
        module: itself.
        exempt: why it stays exact whatever the settings; None where it can be clustered.
    """

    name: str
    module: nn.Module
    exempt: str | None


def encoder_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model in a model, a PeftModel, a SentenceTransformer or a CrossEncoder.

    Raises:
        UnsupportedModelError: there is none, or more than one.
    """
    if isinstance(model, PreTrainedModel):
        return model
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"A transformers model (or a PeftModel, SentenceTransformer or CrossEncoder around one) is expected, got "
            f"{type(model).__name__}. Load it with AutoModel.from_pretrained first."
        )
    found: list[PreTrainedModel] = []
    inside: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and not any(name.startswith(outer) for outer in inside):
            found.append(module)
            inside.append(f"{name}." if name else "")
    if len(found) != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} holds {len(found)} transformers models, one is expected. Patch the encoder itself."
        )
    return found[0]


def attention_modules(model: PreTrainedModel) -> tuple[AttentionModule, ...]:
    """Every attention module that dispatches through the registry, in the order of the model.

    Raises:
        UnsupportedModelError: nothing dispatches, or the model is one whose attention is more than a padding mask.
    """
    kind = f"{type(model).__name__} ({model.config.model_type})"
    _refuse_decoders(model, kind)
    _refuse_pooling(model, kind)
    found = tuple(
        AttentionModule(name, module, _exemption(name, module))
        for name, module in model.named_modules()
        if _dispatches(module)
    )
    if not found or not model._can_set_attn_implementation():
        raise UnsupportedModelError(
            f"{kind} computes its attention itself or has none: no module asks transformers' attention registry for it, so "
            f"nothing can be replaced. Use a family that does, such as BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT or ModernBERT."
        )
    for each in found:
        _refuse_causality(each, kind)
        _refuse_biases(each, kind)
    if all(each.exempt for each in found):
        reasons = sorted({str(each.exempt) for each in found})
        raise UnsupportedModelError(f"{kind} has no attention that can be clustered: {'; '.join(reasons)}.")
    return found


def shares_layers(model: PreTrainedModel, modules: tuple[AttentionModule, ...]) -> bool:
    """Whether layers share one attention module, as in ALBERT: then a layer has no settings of its own."""
    return len(modules) < getattr(model.config, "num_hidden_layers", 0)


@functools.cache
def _source(function: object) -> str:
    try:
        return inspect.getsource(function)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""


def _forward_source(module: nn.Module) -> str:
    forward = type(module).forward
    return _source(inspect.unwrap(forward))


def _dispatches(module: nn.Module) -> bool:
    return _DISPATCH in _forward_source(module)


def _exemption(name: str, module: nn.Module) -> str | None:
    by_name = "cross" in type(module).__name__.lower() or "crossatt" in name.lower().replace("_", "")
    if by_name or getattr(module, "is_cross_attention", False):
        return "cross-attention"
    if getattr(module, "sliding_window", None) is not None:
        return "a sliding window"
    return None


def _refuse_decoders(model: PreTrainedModel, kind: str) -> None:
    config = model.config
    looks_back = any(getattr(module, "is_decoder", False) is True for module in model.modules())
    if looks_back and getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(_WITH_A_DECODER.format(kind=kind))
    for name, module in model.named_modules():
        if getattr(getattr(module, "config", None), "is_decoder", False):
            raise UnsupportedModelError(
                f"{kind} is a decoder (config.is_decoder is True{f' in {name}' if name else ''}); clustered attention looks at "
                f"all tokens. Load it with is_decoder=False if it is meant as an encoder."
            )
        source = _forward_source(module)
        if "create_causal_mask" in source and getattr(config, "is_encoder_decoder", False):
            raise UnsupportedModelError(_WITH_A_DECODER.format(kind=kind))
        if "create_causal_mask" in source and "create_bidirectional_mask" not in source:
            raise UnsupportedModelError(
                f"{kind} has causal attention (in {type(module).__name__}); clustered attention looks at all tokens. Use an encoder."
            )


def _refuse_pooling(model: PreTrainedModel, kind: str) -> None:
    for name, module in model.named_modules():
        family = getattr(getattr(module, "config", None), "model_type", None)
        if family in POOLING_AT_PADDING:
            raise UnsupportedModelError(
                f"{kind} takes what stands at the last place for the whole text, also where that is padding ({family}"
                f"{f' in {name}' if name else ''}); clustered attention gives padding no output. Patch another part of it alone, "
                f"such as its vision_model."
            )


def _refuse_causality(each: AttentionModule, kind: str) -> None:
    if not each.exempt and getattr(each.module, "is_causal", False):
        raise UnsupportedModelError(
            f"{kind} has causal attention (in {each.name or type(each.module).__name__}); clustered attention looks at all "
            f"tokens. Use an encoder."
        )


def _refuse_biases(each: AttentionModule, kind: str) -> None:
    parameters = inspect.signature(inspect.unwrap(type(each.module).forward)).parameters
    relative = [
        name for name in vars(each.module) | each.module._parameters | each.module._modules if "relative" in name
    ]
    active = [
        name for name in relative if getattr(each.module, name) is not None and getattr(each.module, name) is not False
    ]
    source = _forward_source(each.module)
    passed = [name for name in SCORE_KEYWORDS if f"{name}=" in source]
    if "position_bias" in parameters or active or passed:
        raise UnsupportedModelError(
            f"{kind} adds position biases to the scores of {each.name or type(each.module).__name__}; clustered attention has no "
            f"place for them. Use a family with absolute or rotary positions."
        )


def padded_by_addition(module: nn.Module) -> bool:
    """Whether the module's family adds its padding mask to the scores (B, 1, 1, N) instead of giving it as booleans."""
    return getattr(getattr(module, "config", None), "model_type", None) in ADDITIVE_PADDING


def configs_of(model: nn.Module) -> Iterator[tuple[Any, PretrainedConfig]]:
    """Every module that holds a configuration of transformers, with it."""
    for module in model.modules():
        config = vars(module).get("config")
        if isinstance(config, PretrainedConfig):
            yield module, config
