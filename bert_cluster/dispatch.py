"""The two functions that transformers calls under our name: attention, and the mask that goes with it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from bert_cluster import windows
from bert_cluster.attention import run_layer, runs_on_reference
from bert_cluster.config import LayerSettings
from bert_cluster.errors import (
    AttentionDropoutWarning,
    AttentionWeightsError,
    ExactAttentionWarning,
    NotPatchedError,
)
from bert_cluster.families import SCORE_KEYWORDS

NAME = "clustered"
LAYER = "clustered_attention"  # attribute of a patched attention module: its Layer
PLANES = "clustered_planes"  # its buffer: the bits of the float32 planes as int32, which no .to(dtype) casts

_ADDED_TO_PADDING = -1000.0  # families that add their mask put -10000 or less on padding and 0 elsewhere


@dataclass
class Layer:
    """What a patched model's attention module carries: its settings, and how its calls ran.

    Calls inside a compiled or exported graph are not counted: counting there would break the graph.
    """

    settings: LayerSettings
    additive_padding: bool = False
    warned: set[type[Warning]] = field(default_factory=set)  # one set for all layers of a model
    calls: dict[str, int] = field(default_factory=lambda: {"clustered": 0, "exact": 0, "reference": 0})

    def count(self, kind: str) -> None:
        if not torch.compiler.is_compiling():
            self.calls[kind] += 1

    def warn_once(self, category: type[Warning], message: str) -> None:
        if not torch.compiler.is_compiling() and category not in self.warned:
            self.warned.add(category)
            warnings.warn(message, category, stacklevel=4)


def clustered_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one layer, as transformers' registry defines it.

    Args:
        module: the attention module; patched ones carry a `Layer`.
        query: (B, H, N, D), any strides.
        key: (B, H_kv, N, D).
        value: as key.
        attention_mask: (B, N) bool or a mask in blocks from `clustered_mask`, None, or what the family or the caller made.
        scaling: factor of the scores.
        dropout: of the attention weights; applied by exact layers only.

    Returns:
        (B, N, H, D), and the attention weights (B, H, N, N) where the caller asked for them, else None.

    Raises:
        NotPatchedError: the module's model is not patched.
    """
    layer: Layer | None = getattr(module, LAYER, None)
    if layer is None:
        raise NotPatchedError(
            f"A model runs under the attention name {NAME!r}, but this {type(module).__name__} was never patched: its attention "
            f"would be exact without saying so. Load the model without attn_implementation and call bert_cluster.patch(model)."
        )
    if kwargs.get("output_attentions"):
        layer.count("exact")
        return _with_weights(module, query, key, value, attention_mask, scaling, dropout)
    if layer.settings.method == "full":
        layer.count("exact")
        return _exact(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
    mask, problem = _key_padding(attention_mask, query, key, layer)
    problem = problem or _more_than_padding(module, kwargs)
    if problem:
        layer.count("exact")
        layer.warn_once(ExactAttentionWarning, f"{type(module).__name__} runs exact attention in this call: {problem}.")
        return _exact(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
    if module.training and dropout > 0:
        layer.warn_once(
            AttentionDropoutWarning,
            f"Clustered layers train without attention dropout; the model asks for {dropout}. Load it with "
            f"{_dropout_setting(module)}=0 to say that this is meant.",
        )
    query, key, value = _one_dtype(query, key, value)
    planes = _planes(module) if layer.settings.hashes else None
    out = run_layer(query, key, value, mask, layer.settings, planes, scaling)
    layer.count("reference" if not torch.compiler.is_compiling() and runs_on_reference(query) else "clustered")
    return out.transpose(1, 2), None


def clustered_mask(
    *,
    mask_function: Callable[..., Any] = bidirectional_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """The mask of our attention: the 2-D padding mask as it is, where padding is all there is to mask.

    A sliding window becomes a mask in blocks (windows.py), where the text is long enough. Anything more (causality, packed sequences) becomes
    the mask of SDPA, as if the model were not patched.
    """
    if mask_function is bidirectional_mask_function:
        return attention_mask
    if _is_window(attention_mask, **kwargs) and windows.saves_work(kwargs["q_length"], kwargs["local_size"]):
        return windows.blocked_mask(
            mask_function,
            attention_mask,
            batch=kwargs["batch_size"],
            tokens=kwargs["q_length"],
            reach=kwargs["local_size"],
            device=torch.device(kwargs.get("device", "cpu")),
        )
    made: Tensor | None = sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **kwargs)
    return made


def _is_window(attention_mask: Tensor | None, **kwargs: Any) -> bool:
    """Whether a mask is of a window to both sides and of padding, nothing else: no pair more than `local_size` apart is seen.

    So it is where `create_bidirectional_sliding_window_mask` allows the mask to be skipped; with a function that the caller adds it does not.
    Others allow it with `bidirectional_mask_function` only, which is no question here.
    """
    tokens = kwargs["q_length"]
    return (
        kwargs.get("local_size") is not None
        and kwargs.get("allow_is_bidirectional_skip", False)
        and (tokens, 0, 0) == (kwargs["kv_length"], kwargs.get("q_offset", 0), kwargs.get("kv_offset", 0))
        and (attention_mask is None or attention_mask.shape == (kwargs["batch_size"], tokens))
    )


def register() -> None:
    """Give transformers both functions. Importing this package does it; doing it again changes nothing."""
    AttentionInterface.register(NAME, clustered_attention)
    AttentionMaskInterface.register(NAME, clustered_mask)


def planes_buffer(planes: Tensor) -> Tensor:
    """The planes as the buffer that follows the model's device and never its dtype."""
    return planes.view(torch.int32)


def _planes(module: nn.Module) -> Tensor:
    """The float32 planes."""
    buffer: Tensor = getattr(module, PLANES)
    return buffer.view(torch.float32)


def _key_padding(mask: Tensor | None, query: Tensor, key: Tensor, layer: Layer) -> tuple[Tensor | None, str | None]:
    """The mask as (B, N) booleans, or why it is no padding mask."""
    batch, tokens = query.shape[0], query.shape[2]
    if key.shape[2] != tokens:
        return (
            None,
            f"it has {tokens} queries and {key.shape[2]} keys, which self-attention has not",
        )
    if mask is None:
        return None, None
    if mask.dim() == 4 and mask.shape[1] == 1 and mask.shape[2] == 1:
        if mask.dtype == torch.bool:
            mask = mask[:, 0, 0, :]
        elif layer.additive_padding:
            mask = mask[:, 0, 0, :] > _ADDED_TO_PADDING
    if mask.dim() != 2 or mask.shape[1] != tokens:
        return (
            None,
            f"its mask has the shape {tuple(mask.shape)}, and a padding mask of (batch, tokens) is expected",
        )
    if mask.dtype != torch.bool:
        mask = mask.to(torch.bool)
    return mask if mask.shape[0] == batch else mask.expand(batch, tokens), None


def _more_than_padding(module: nn.Module, kwargs: dict[str, Any]) -> str | None:
    """What else than padding shapes the scores of this call, if anything does."""
    if kwargs.get("is_causal") or getattr(module, "is_causal", False):
        return "the attention is causal"
    for name in SCORE_KEYWORDS:
        if kwargs.get(name) is not None:
            return f"{name} changes the scores"
    return None


def _dropout_setting(module: nn.Module) -> str:
    """What the family calls the dropout of attention weights."""
    config = getattr(module, "config", None)
    return "attention_dropout" if hasattr(config, "attention_dropout") else "attention_probs_dropout_prob"


def _exact(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA with the mask that the model would give it if it were not patched: the same bits, but where a window is computed in blocks.

    Padding is the same for all queries: its mask has one row for them, (B, 1, 1, N), where transformers makes N.
    """
    if windows.is_blocked(mask):
        if all(kwargs.get(name) is None for name in SCORE_KEYWORDS):
            return windows.windowed_attention(module, query, key, value, mask, dropout=dropout, scaling=scaling)
        mask = windows.whole_mask(mask, query.shape[2])
    if mask is not None and mask.dim() == 2:
        mask = sdpa_mask(
            batch_size=query.shape[0],
            q_length=1,
            kv_length=key.shape[2],
            mask_function=bidirectional_mask_function,
            attention_mask=mask.to(torch.bool),
            allow_is_causal_skip=False,
            allow_is_bidirectional_skip=True,
            device=query.device,
        )
    kwargs.setdefault("is_causal", False if mask is not None else getattr(module, "is_causal", False))
    out, _ = sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    return out, None


def _with_weights(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Exact attention with its weights, softmax(scaling q k^T + mask), because clustered attention forms none.

    In training with dropout applied, as transformers gives them.
    """
    if getattr(module, "is_causal", False) and mask is None:
        raise AttentionWeightsError(
            f"{type(module).__name__} is causal and got no mask, so its attention weights cannot be given. "
            f"Call unpatch and load the model with attn_implementation='eager' to see them."
        )
    groups = query.shape[1] // key.shape[1]
    key, value = (
        key.repeat_interleave(groups, dim=1),
        value.repeat_interleave(groups, dim=1),
    )
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is not None:
        if windows.is_blocked(mask):
            mask = windows.whole_mask(mask, query.shape[2])
        mask = mask[:, None, None, :] if mask.dim() == 2 else mask
        valid = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if valid else scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    weights = torch.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast rotary positions leave q and k wider than v; exact attention casts all three, and so does this."""
    if query.dtype == key.dtype == value.dtype:
        return query, key, value
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)
