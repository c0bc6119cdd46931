"""Longer tables of learned positions, so that an encoder takes longer texts than it was trained on."""

import warnings
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import PreTrainedModel

from bert_cluster.errors import ConfigError, ExtendedPositionsWarning, UnsupportedModelError
from bert_cluster.families import attention_modules, configs_of, encoder_of

WAYS = ("tile", "interpolate")
_TABLE = "position_embeddings"  # the name of the table in every family that has one
_BUFFERS = ("position_ids", "token_type_ids")  # (1, rows of the table); token types are cut out of theirs

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class PositionTable:
    """The learned positions of a model.

    Attributes:
        name: dotted, within the model.
        table: (offset + positions, hidden): the row of a position is `offset` + the position.
        offset: first rows that stand for no position: padding and what is before it in RoBERTa's line, else none.
    """

    name: str
    table: nn.Embedding
    offset: int

    @property
    def positions(self) -> int:
        """Tokens that the table is long enough for."""
        return self.table.num_embeddings - self.offset


def extend_positions(model: Model, tokenizer: Any, max_positions: int, *, how: str = "tile") -> Model:
    """Give an encoder with learned absolute positions a longer table of them, in place and without training.

    With T trained positions p_0 ... p_(T-1) and L = `max_positions`, the new position i is

    - "tile": p_(i mod T), the table repeated, as Longformer started from RoBERTa (section 5 of
      https://arxiv.org/abs/2004.05150). The first T positions are what they were: texts that fitted before get the same
      output, bit for bit.
    - "interpolate": the table read at i (T - 1) / (L - 1), linearly between its two neighbours. Every position changes, and
      with it every output.

    Neither makes a model that understands long texts: Longformer was trained on after this start. Measure on your own texts,
    or fine-tune. Rows that stand for no position (RoBERTa's line has them for padding) are kept. Patching, before or after,
    changes nothing here. Where transformers keeps the old length, the new one is written: in every configuration object of the
    model (in place, as its `resize_token_embeddings` does) and in the buffers beside the table. An optimiser that holds the old
    table must be made anew.

    Args:
        model: a transformers model, or a PeftModel, SentenceTransformer or CrossEncoder around one; patched or not.
        tokenizer: its `model_max_length` is set; None where there is none, or where the model carries its own.
        max_positions: tokens that the model shall take, special tokens included; more than now.
        how: "tile" or "interpolate".

    Returns:
        The same model. `save_pretrained` and `from_pretrained` keep the longer table.

    Raises:
        UnsupportedModelError: the model has no such table (rotary positions or ALiBi, which need none), adds relative positions
            as well, is on the meta device, or cannot be made clustered. Nothing has been changed.
        ConfigError: `max_positions` is no whole number above the present one, an unknown `how`, or no tokenizer. Nothing has
            been changed.

    Warns:
        ExtendedPositionsWarning: once per call, since the new positions were not trained.
    """
    if how not in WAYS:
        raise ConfigError(f"how must be one of {', '.join(WAYS)}, got {how!r}.")
    if isinstance(max_positions, bool) or not isinstance(max_positions, int):
        raise ConfigError(f"max_positions must be a whole number of tokens, got {max_positions!r}.")
    tokenizers = _tokenizers(model, tokenizer)
    encoder = encoder_of(model)
    found = position_table(encoder)
    if max_positions <= found.positions:
        raise ConfigError(
            f"max_positions must be more than the {found.positions} tokens that this {type(encoder).__name__} takes already, got "
            f"{max_positions}. There is nothing to extend."
        )
    _warn(encoder, found.positions, max_positions, how)

    before, rows = found.table.num_embeddings, found.offset + max_positions
    longer = torch.cat([found.table.weight.detach()[: found.offset], _longer(found, max_positions, how)])
    found.table.weight = nn.Parameter(longer, requires_grad=found.table.weight.requires_grad)
    found.table.num_embeddings = rows
    for _, config in configs_of(encoder):
        if getattr(config, "max_position_embeddings", None) == before:
            config.max_position_embeddings = rows
    _extend_buffers(encoder, before, rows)
    for each in tokenizers:
        each.model_max_length = max_positions
    wrapper: Any = model
    if hasattr(wrapper, "max_seq_length"):
        wrapper.max_seq_length = max_positions
    return model


def position_table(encoder: PreTrainedModel) -> PositionTable:
    """The table of learned positions that a model adds to its tokens.

    Raises:
        UnsupportedModelError: it has none or more than one, or its positions are more than that.
    """
    kind = f"{type(encoder).__name__} ({encoder.config.model_type})"
    tables = [
        (f"{name}.{_TABLE}".lstrip("."), module._modules[_TABLE])
        for name, module in encoder.named_modules()
        if _TABLE in module._modules and not name.endswith(_TABLE)
    ]
    _refuse_other_positions(encoder, kind, tables=len(tables))
    attention_modules(encoder)
    if len(tables) != 1:
        raise UnsupportedModelError(
            f"{kind} has {len(tables)} tables of learned positions (`{_TABLE}`), one is expected. Use an encoder with absolute "
            f"positions, such as BERT, RoBERTa, ELECTRA or DistilBERT."
        )
    ((name, table),) = tables
    if not isinstance(table, nn.Embedding):
        raise UnsupportedModelError(
            f"{name} of this {kind} is a {type(table).__name__} instead of a plain nn.Embedding. If an adapter holds it, extend the "
            f"base model first, then add the adapter; or merge the adapter."
        )
    if table.weight.is_meta:
        raise UnsupportedModelError(f"{kind} is on the meta device and has no weights yet. Load them, then extend.")
    stated = getattr(encoder.config, "max_position_embeddings", None)
    if table.num_embeddings != stated:
        raise UnsupportedModelError(
            f"{name} of this {kind} has {table.num_embeddings} rows, and its config.max_position_embeddings is {stated}: they must "
            f"agree. Load the model with the configuration that it was saved with."
        )
    return PositionTable(name, table, 0 if table.padding_idx is None else table.padding_idx + 1)


def _refuse_other_positions(encoder: PreTrainedModel, kind: str, *, tables: int) -> None:
    config = encoder.config
    stated = str(getattr(config, "position_embedding_type", "absolute"))
    kinds = {type(module).__name__.lower() for module in encoder.modules()}
    names = {name for module in encoder.modules() for name in (*module._modules, *module._parameters)}
    if stated.startswith("relative") or any("relative" in name or name == "rel_embeddings" for name in names):
        raise UnsupportedModelError(
            f"{kind} has relative positions, which a longer table does not extend. Use a family with absolute positions alone, "
            f"such as BERT, RoBERTa, ELECTRA or DistilBERT."
        )
    without = "ALiBi" if stated == "alibi" else "rotary positions"
    rotary = stated.startswith("rot") or any("rotary" in name for name in kinds)
    if stated == "alibi" or (rotary and not tables):
        raise UnsupportedModelError(
            f"{kind} has {without} and no table: it takes longer texts as it is, so there is nothing to extend. Where a limit is in "
            f"the way, raise tokenizer.model_max_length."
        )


def _warn(encoder: PreTrainedModel, trained: int, max_positions: int, how: str) -> None:
    """Before anything is changed: whoever makes the warning an error keeps the model."""
    made = "repeat" if how == "tile" else "are interpolated from"
    warnings.warn(
        f"The {max_positions} positions of this {type(encoder).__name__} {made} its {trained} present ones: a start for "
        f"fine-tuning, or a rough extension whose results must be measured on your own texts.",
        ExtendedPositionsWarning,
        stacklevel=3,
    )


def _longer(found: PositionTable, max_positions: int, how: str) -> Tensor:
    """(max_positions, hidden), of the table's dtype and device."""
    trained = found.table.weight.detach()[found.offset :]
    if how == "tile":
        return trained[torch.arange(max_positions, device=trained.device) % found.positions]
    exact = trained if trained.dtype == torch.float64 else trained.float()
    read = interpolate(exact.T[None], size=max_positions, mode="linear", align_corners=True)[0].T
    return read.to(trained.dtype)


def _extend_buffers(encoder: PreTrainedModel, before: int, rows: int) -> None:
    """Position numbers count on, token types are 0 as before; a buffer stays in or out of the state dict."""
    for module in encoder.modules():
        for name in _BUFFERS:
            buffer = module._buffers.get(name)
            if buffer is not None and buffer.shape == (1, before):
                longer = torch.zeros(1, rows, dtype=buffer.dtype, device=buffer.device)
                if name == "position_ids":
                    longer += torch.arange(rows, dtype=buffer.dtype, device=buffer.device)
                module._buffers[name] = longer


def _tokenizers(model: nn.Module, tokenizer: Any) -> list[Any]:
    """Those whose longest text changes: the one given, and the one that a SentenceTransformer or CrossEncoder holds."""
    if tokenizer is not None and not hasattr(tokenizer, "model_max_length"):
        raise ConfigError(
            f"tokenizer must be a transformers tokenizer or None, got {type(tokenizer).__name__}. Load one with "
            f"AutoTokenizer.from_pretrained."
        )
    own = getattr(model, "tokenizer", None)
    return [each for each in (tokenizer, own) if hasattr(each, "model_max_length")]
