"""A model while it is calibrated: whatever it was before, it is that again afterwards, also after an exception."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from bert_cluster import dispatch
from bert_cluster.config import ClusterConfig, LayerSettings
from bert_cluster.errors import CalibrationError
from bert_cluster.families import (
    AttentionModule,
    attention_modules,
    configs_of,
    encoder_of,
    padded_by_addition,
    shares_layers,
)
from bert_cluster.patching import head_size, is_patched, patch, unpatch
from bert_cluster.planes import random_planes

_FULL = LayerSettings("full")


@dataclass(frozen=True)
class Session:
    """A patched model whose layers take any settings at once.

    Attributes:
        encoder: the transformers model.
        modules: its attention modules.
        layers: indices of those that settings can differ for: one where all layers share a module.
        shared: whether they do.
        repeats: how often a forward pass runs the module of one entry of `layers`.
    """

    encoder: PreTrainedModel
    modules: tuple[AttentionModule, ...]
    layers: tuple[int, ...]
    shared: bool
    repeats: int

    def apply(self, choice: Mapping[int, LayerSettings]) -> None:
        """Give layers their settings; those that are not named run exact."""
        for index, each in enumerate(self.modules):
            settings = _FULL if each.exempt else choice.get(0 if self.shared else index, _FULL)
            setattr(each.module, dispatch.LAYER, dispatch.Layer(settings, padded_by_addition(each.module)))
            planes = None
            if settings.hashes:
                planes = dispatch.planes_buffer(random_planes(settings.bits, head_size(each), settings.seed))
                planes = planes.to(next(each.module.parameters()).device)
            _set_planes(each.module, planes)

    def check_calls(self) -> None:
        """Whether the settings ran as they were asked for.

        Raises:
            CalibrationError: a clustered layer ran exact attention, or not at all.
        """
        for each in self.modules:
            layer: dispatch.Layer = vars(each.module)[dispatch.LAYER]
            ran = layer.calls["clustered"] + layer.calls["reference"]
            if layer.settings.method != "full" and (layer.calls["exact"] or not ran):
                raise CalibrationError(
                    f"{each.name} was to run {layer.settings.method} and ran {'exact attention' if layer.calls['exact'] else 'not through bert_cluster'}, so there is "
                    f"nothing to calibrate. Patch the model by bert_cluster.patch alone, and give texts with padding masks only."
                )


@contextmanager
def opened(model: nn.Module) -> Iterator[Session]:
    """The model patched and in evaluation mode; settings, configurations and training flags come back at the end.

    Raises:
        UnsupportedModelError: the model cannot be patched; nothing of it has been changed.
    """
    encoder = encoder_of(model)
    modules = attention_modules(encoder)
    shared = shares_layers(encoder, modules)
    layers = (0,) if shared else tuple(index for index, each in enumerate(modules) if not each.exempt)
    repeats = int(encoder.config.num_hidden_layers) if shared else 1
    flags = [(module, module.training) for module in model.modules()]
    with _set_aside(model, encoder, modules):
        try:
            model.eval()
            yield Session(encoder, modules, layers, shared, repeats)
        finally:
            for module, training in flags:
                module.training = training


@contextmanager
def _set_aside(model: nn.Module, encoder: PreTrainedModel, modules: tuple[AttentionModule, ...]) -> Iterator[None]:
    if is_patched(encoder):
        before: list[tuple[nn.Module, Any, Any]] = [
            (each.module, vars(each.module)[dispatch.LAYER], each.module._buffers.get(dispatch.PLANES))
            for each in modules
        ]
        try:
            yield
        finally:
            for module, layer, planes in before:
                setattr(module, dispatch.LAYER, layer)
                _set_planes(module, planes)
        return
    found = {id(config): config for _, config in configs_of(model)}
    configs = [(config, dict(vars(config))) for config in found.values()]
    patch(model, ClusterConfig())
    try:
        yield
    finally:
        unpatch(model)
        for config, values in configs:  # unpatch removes settings that were stored and never in force
            vars(config).clear()
            vars(config).update(values)


def _set_planes(module: nn.Module, planes: Any) -> None:
    if dispatch.PLANES in module._buffers:
        delattr(module, dispatch.PLANES)
    if planes is not None:
        module.register_buffer(dispatch.PLANES, planes, persistent=False)
