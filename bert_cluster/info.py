"""What is patched in a model, and how its calls ran."""

from dataclasses import dataclass

from torch import nn

import cuda_ops
from bert_cluster import dispatch
from bert_cluster.config import Budget
from bert_cluster.families import encoder_of

BYPASSED = "bypassed"


@dataclass(frozen=True)
class LayerInfo:
    """One attention module of a patched model.

    Attributes:
        name: dotted, within the transformers model.
        method: what it runs; "full" is exact attention through SDPA.
        budgets: the method's budgets by name, "auto" where each text's length decides, and exact_below where it is not 0.
        backend: what the operators run on for this layer's device and dtype; "bypassed (NAME)" where the model was set to
            another attention, which then runs instead: `bert_cluster.patch` again makes it clustered.
        calls: how often it ran "clustered", "exact" (full layers, masks that are no padding masks, calls that asked for
            attention weights) and on the "reference". Rows below exact_below are decided inside the operator and count
            as clustered; calls inside a compiled or exported graph are not seen.
    """

    name: str
    method: str
    budgets: dict[str, Budget]
    backend: str
    calls: dict[str, int]


@dataclass(frozen=True)
class ModelInfo:
    """The patched layers of a model; none for a model that is not patched. ``print`` shows a table."""

    layers: tuple[LayerInfo, ...]

    def __str__(self) -> str:
        if not self.layers:
            return "not patched: bert_cluster.patch(model) makes its attention clustered"
        width = max(len(layer.name) for layer in self.layers)
        texts = [" ".join(f"{name}={value}" for name, value in layer.budgets.items()) for layer in self.layers]
        room = max(46, *(len(text) for text in texts))
        lines = [
            f"{'layer':<{width}}  {'method':<18}  {'budgets':<{room}}  {'backend':<12}  clustered  exact  reference"
        ]
        for layer, budgets in zip(self.layers, texts, strict=True):
            calls = f"{layer.calls['clustered']:>9}  {layer.calls['exact']:>5}  {layer.calls['reference']:>9}"
            lines.append(f"{layer.name:<{width}}  {layer.method:<18}  {budgets:<{room}}  {layer.backend:<12}  {calls}")
        lines.append("Calls inside a compiled or exported graph are not counted.")
        if any(layer.backend.startswith(BYPASSED) for layer in self.layers):
            lines.append(
                "Bypassed: the model was set to another attention, which runs instead and is exact. Call patch(model) again."
            )
        return "\n".join(lines)


def info(model: nn.Module) -> ModelInfo:
    """Look at the modules of a model (not at its configuration) and tell what is patched.

    Args:
        model: as for `bert_cluster.patch`.

    Raises:
        UnsupportedModelError: it holds no transformers model.
    """
    layers = []
    encoder = encoder_of(model)
    for name, module in encoder.named_modules():
        layer: dispatch.Layer | None = vars(module).get(dispatch.LAYER)
        if layer is None:
            continue
        settings = layer.settings
        # Quantized layers have none, or whole numbers, which tell nothing of what they compute with.
        like = next((each for each in module.parameters() if each.is_floating_point()), encoder)
        clustered = settings.method != "full"
        backend = cuda_ops.backend_for(like.device.type, like.dtype) if clustered else "sdpa"
        running = getattr(getattr(module, "config", None), "_attn_implementation", dispatch.NAME)
        if running != dispatch.NAME:
            backend = f"{BYPASSED} ({running})"
        budgets = settings.budgets() | ({"exact_below": settings.exact_below} if settings.exact_below else {})
        layers.append(LayerInfo(name, settings.method, budgets, backend, dict(layer.calls)))
    return ModelInfo(tuple(layers))
