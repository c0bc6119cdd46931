"""How long an input a model can read."""

from typing import Any

from transformers import PretrainedConfig

# these families number positions from pad_token_id + 1, so their table is longer than their longest input
POSITIONS_AFTER_PADDING = (
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "data2vec-text", "xmod"),
    *("markuplm", "esm", "mpnet", "longformer", "luke"),
)


LONGEST = 8192
"""Tokens of an input where nothing sets a bound."""


def longest_input(config: PretrainedConfig, tokenizer: Any, requested: int | None) -> int:
    """The number of tokens to cut inputs to: `requested`, or what the model's position table holds if that is less.

    A tokenizer's `model_max_length` counts only where the configuration has no position table: sentence-transformers
    checkpoints put the length that they embed best there, which is far below what the model can read.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return min(LONGEST if requested is None else requested, int(tokenizer.model_max_length))
    if config.model_type in POSITIONS_AFTER_PADDING:
        positions -= int(config.pad_token_id or 0) + 1
    return positions if requested is None else min(requested, positions)
