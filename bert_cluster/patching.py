"""Patch a model in place, and undo it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from bert_cluster import dispatch
from bert_cluster.config import CONFIG_KEY, ClusterConfig, LayerSettings
from bert_cluster.errors import ConfigError, NotPatchedError, UnsupportedModelError
from bert_cluster.families import (
    AttentionModule,
    attention_modules,
    configs_of,
    encoder_of,
    padded_by_addition,
    shares_layers,
)
from bert_cluster.planes import random_planes
from cuda_ops.checks import LARGEST_HEAD_SIZE

_STATE = "_bert_cluster_patch"  # attribute of a patched transformers model: its Patch

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class Patch:
    """What `unpatch` needs, and what the modules run with, whatever becomes of the configuration's copy of it."""

    configs: list["OwnConfig"]
    settings: ClusterConfig


@dataclass
class OwnConfig:
    """A configuration object of a patched model, which no other model shares.

    Attributes:
        own: the copy that the patched model holds.
        original: the object that the model held before, and gets back.
        before: the original's values at that time.
    """

    own: PretrainedConfig
    original: PretrainedConfig
    before: dict[str, Any]


def patch(
    model: Model,
    config: ClusterConfig | None = None,
    *,
    method: str | None = None,
    clusters: int | Literal["auto"] | None = None,
    topk: int | Literal["auto"] | None = None,
    key_clusters: int | Literal["auto"] | None = None,
    band: int | None = None,
    rounds: int | None = None,
    sample: int | Literal["auto"] | None = None,
    bits: int | None = None,
    iterations: int | None = None,
    layers: Mapping[int, Mapping[str, Any]] | None = None,
    exact_below: int | None = None,
    seed: int | None = None,
) -> Model:
    """Make a pretrained encoder's self-attention clustered, in place and without training.

    Everything is checked first: a model that is refused is bit for bit what it was. A patched model gets a configuration
    object of its own, so that others built from the same object stay as they are. Patching a patched model replaces its
    settings. Layers with a sliding window stay exact, computed in blocks (windows.py); so does cross-attention.

    Args:
        model: a transformers model, or a PeftModel, SentenceTransformer or CrossEncoder around one.
        config: the settings. Without any argument: those stored in ``model.config.clustered_attention`` if there are
            any, else the defaults. Any argument replaces stored settings whole.
        method, clusters, topk, key_clusters, band, rounds, sample, bits, iterations, layers, exact_below, seed: fields of
            `ClusterConfig`, instead of config.

    Returns:
        The same model.

    Raises:
        UnsupportedModelError: this model's attention cannot be replaced; the text says why and what can.
        ConfigError: impossible settings, or layers that the model has not.
    """
    named: dict[str, Any] = {
        "method": method,
        "clusters": clusters,
        "topk": topk,
        "key_clusters": key_clusters,
        "band": band,
        "rounds": rounds,
        "sample": sample,
        "bits": bits,
        "iterations": iterations,
        "layers": layers,
        "exact_below": exact_below,
        "seed": seed,
    }
    given = {name: value for name, value in named.items() if value is not None}
    if config is not None and given:
        raise ConfigError(f"patch() takes a ClusterConfig or its fields, got both (config and {', '.join(given)}).")
    if config is not None and not isinstance(config, ClusterConfig):
        raise ConfigError(
            f"patch() takes a ClusterConfig, got {type(config).__name__}. Write ClusterConfig(...), or name the fields."
        )
    encoder = encoder_of(model)
    modules = attention_modules(encoder)
    _refuse_nested_patches(encoder, modules)
    chosen = ClusterConfig(**given) if given else config or stored_settings(encoder.config) or ClusterConfig()
    settings = _settings_by_module(encoder, modules, chosen)
    _refuse_states(encoder)
    _refuse_long_heads(encoder, modules, settings)
    buffers = {each.name: _planes_of(each, settings[each.name], encoder) for each in modules}

    if is_patched(encoder):
        unpatch(model)
    configs = _own_configs(model, encoder)
    warned: set[type[Warning]] = set()
    for each in modules:
        layer = dispatch.Layer(settings[each.name], padded_by_addition(each.module), warned)
        setattr(each.module, dispatch.LAYER, layer)
        if buffers[each.name] is not None:
            each.module.register_buffer(dispatch.PLANES, buffers[each.name], persistent=False)
    setattr(encoder, _STATE, Patch(configs, chosen))
    for each_config in configs:  # model.set_attn_implementation would miss configurations that only layers hold
        each_config.own._attn_implementation = dispatch.NAME
    setattr(encoder.config, CONFIG_KEY, chosen.to_dict())
    return model


def unpatch(model: Model) -> Model:
    """Undo `patch`: attention, configuration and state are bit for bit what they were; stored settings are removed.

    Raises:
        NotPatchedError: the model is not patched.
    """
    encoder = encoder_of(model)
    state: Patch | None = vars(encoder).get(_STATE)
    if state is None:
        part_of = any(dispatch.LAYER in vars(module) for module in encoder.modules())
        raise NotPatchedError(
            f"This {type(encoder).__name__} was not patched itself, but a model around it or in it was: unpatch that one."
            if part_of
            else f"This {type(encoder).__name__} is not patched: there is nothing to undo."
        )
    changes = [_changes(each) for each in state.configs]
    for module in encoder.modules():
        if dispatch.LAYER in vars(module):
            delattr(module, dispatch.LAYER)
        if dispatch.PLANES in module._buffers:
            delattr(module, dispatch.PLANES)
    originals = {id(each.own): each.original for each in state.configs}
    for each, (changed, deleted) in zip(state.configs, changes, strict=True):
        for name, value in changed.items():
            setattr(each.original, name, value)
        for name in deleted:
            vars(each.original).pop(name, None)
        vars(each.original).pop(CONFIG_KEY, None)
        if each.original._attn_implementation == dispatch.NAME:  # loaded under our name: exact from now on
            each.original._attn_implementation_internal = "sdpa" if encoder._supports_sdpa else "eager"
    for module, config in configs_of(model):
        if id(config) in originals:
            module.config = originals[id(config)]
    delattr(encoder, _STATE)
    return model


def is_patched(encoder: PreTrainedModel) -> bool:
    """Whether `patch` was called on this model (not: whether its configuration stores settings)."""
    return _STATE in vars(encoder)


def running_settings(encoder: PreTrainedModel) -> ClusterConfig:
    """What a patched model runs with; unlike `stored_settings` no look at its configuration, which anybody may have changed."""
    state: Patch = vars(encoder)[_STATE]
    return state.settings


def stored_settings(config: PretrainedConfig) -> ClusterConfig | None:
    """The settings that a configuration carries, None without any.

    Raises:
        ConfigError: they cannot be read, or are of a newer version.
    """
    data = getattr(config, CONFIG_KEY, None)
    return None if data is None else ClusterConfig.from_dict(data)


def _settings_by_module(
    encoder: PreTrainedModel,
    modules: tuple[AttentionModule, ...],
    config: ClusterConfig,
) -> dict[str, LayerSettings]:
    if config.layers and shares_layers(encoder, modules):
        raise ConfigError(
            f"{type(encoder).__name__} has attention modules for {len(modules)} of {encoder.config.num_hidden_layers} "
            f"layers (num_hidden_layers), so `layers` cannot tell its layers apart. Give settings for all layers only; or, if layers "
            f"were removed from the model, set num_hidden_layers in its configuration to how many are left."
        )
    unknown = [index for index in config.layers if index >= len(modules)]
    if unknown:
        raise ConfigError(
            f"layers names layer {unknown[0]}, and this {type(encoder).__name__} has layers 0 to {len(modules) - 1}."
        )
    settings: dict[str, LayerSettings] = {}
    for index, each in enumerate(modules):
        asked = config.layers.get(index, {})
        if each.exempt and asked.get("method", "full" if not asked else config.method) != "full":
            raise ConfigError(
                f"layers[{index}] ({each.name}) has {each.exempt} and stays exact. Leave it out of `layers`."
            )
        settings[each.name] = LayerSettings("full") if each.exempt else config.for_layer(index)
    if all(each.method == "full" for each in settings.values()):
        raise ConfigError(
            "These settings leave every layer exact: there is nothing to patch. Do not patch, or choose a method."
        )
    return settings


def _refuse_nested_patches(encoder: PreTrainedModel, modules: tuple[AttentionModule, ...]) -> None:
    for name, module in encoder.named_modules():
        if module is not encoder and _STATE in vars(module):
            raise UnsupportedModelError(
                f"{name}, a part of this {type(encoder).__name__}, is patched on its own. Unpatch it first, then patch the whole."
            )
    if not is_patched(encoder) and any(dispatch.LAYER in vars(each.module) for each in modules):
        raise UnsupportedModelError(
            f"This {type(encoder).__name__} is a part of a model that is patched as a whole. Unpatch or patch that one."
        )


def _refuse_states(encoder: PreTrainedModel) -> None:
    if getattr(encoder.config, "output_attentions", False):
        raise UnsupportedModelError(
            "config.output_attentions is True, and clustered attention forms no weights. Set it to False; a call with "
            "output_attentions=True gives exact weights."
        )
    if any(parameter.is_meta for parameter in encoder.parameters()):
        if any(hasattr(module, "_hf_hook") for module in encoder.modules()):
            raise UnsupportedModelError(
                "Weights of the model are offloaded by accelerate and are not there. Patch the model first, then offload it."
            )
        raise UnsupportedModelError("The model is on the meta device and has no weights yet. Load them, then patch.")


def _refuse_long_heads(
    encoder: PreTrainedModel, modules: tuple[AttentionModule, ...], settings: Mapping[str, LayerSettings]
) -> None:
    for each in modules:
        size = _own_head_size(each)
        if settings[each.name].method != "full" and size is not None and size > LARGEST_HEAD_SIZE:
            raise UnsupportedModelError(
                f"{each.name} of this {type(encoder).__name__} has heads of {size} numbers; clustered attention takes at most "
                f"{LARGEST_HEAD_SIZE}. Use a model with more or smaller heads."
            )


def _planes_of(each: AttentionModule, settings: LayerSettings, encoder: PreTrainedModel) -> Any:
    if not settings.hashes:
        return None
    device = next(each.module.parameters(), encoder).device  # quantized layers have no parameters
    return dispatch.planes_buffer(random_planes(settings.bits, head_size(each), settings.seed)).to(device)


def _own_head_size(each: AttentionModule) -> int | None:
    """D as the attention module itself says it, if it does."""
    sizes = (getattr(each.module, name, None) for name in ("head_dim", "attention_head_size", "dim_head"))
    return next((size for size in sizes if isinstance(size, int)), None)


def head_size(each: AttentionModule) -> int:
    """D of an attention module."""
    own = _own_head_size(each)
    if own is not None:
        return own
    config: Any = each.module.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size)


def _own_configs(model: nn.Module, encoder: PreTrainedModel) -> list[OwnConfig]:
    """Replace the encoder's configuration, and every configuration inside it, by copies."""
    memo: dict[int, Any] = {}
    copy.deepcopy(encoder.config, memo)
    inside = set(encoder.modules())
    made: dict[int, OwnConfig] = {}
    for module, config in list(configs_of(model)):
        if id(config) in memo or module in inside:
            own = copy.deepcopy(config, memo)
            made[id(config)] = OwnConfig(own, config, copy.deepcopy(vars(config)))
            module.config = own
    return list(made.values())


def _changes(config: OwnConfig) -> tuple[dict[str, Any], set[str]]:
    """What the user changed in the configuration while the model was patched, and what they deleted: it stays so."""
    ours = {CONFIG_KEY, "_attn_implementation_internal"}
    changed = {
        name: value
        for name, value in vars(config.own).items()
        if name not in ours and not isinstance(value, PretrainedConfig) and not _same(config.before.get(name), value)
    }
    return changed, config.before.keys() - vars(config.own).keys() - ours


def _same(before: Any, now: Any) -> bool:
    """Whether two values are known to be equal; arrays and tensors do not say it in one word."""
    try:
        return bool(before == now)
    except (RuntimeError, TypeError, ValueError):
        return False
