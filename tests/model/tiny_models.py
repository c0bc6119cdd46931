"""Encoders of every family with tiny random weights, and batches for them."""

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedModel

WORDS = 60
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "pad_token_id": 1,
}
# Family (model_type) -> what its configuration needs besides SIZES.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "xlm-roberta-xl": {},
    "roberta-prelayernorm": {},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "data2vec-text": {},
    "ernie": {},
    "electra": {"embedding_size": 32},
    "albert": {"embedding_size": 16},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "mobilebert": {
        "embedding_size": 32,
        "intra_bottleneck_size": 32,
        "true_hidden_size": 32,
        "num_feedforward_networks": 1,
    },
    "splinter": {},
    "roc_bert": {
        "pronunciation_vocab_size": WORDS,
        "shape_vocab_size": WORDS,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "bert-generation": {},
    "esm": {"position_embedding_type": "rotary", "mask_token_id": 2, "token_dropout": False},
    "nomic_bert": {"head_dim": 8},
    "jina_embeddings_v3": {},
    "modernbert": {"global_attn_every_n_layers": 3, "local_attention": 8, "num_hidden_layers": 4},
    "ultrabert": {"sliding_window": 4, "num_hidden_layers": 4},
    "eurobert": {"num_key_value_heads": 2, "head_dim": 8},
    "gte": {},
    "layoutlm": {},
    "markuplm": {"xpath_unit_hidden_size": 2, "max_depth": 2},
}
# Family -> its layers with a sliding window, which stay exact.
WINDOWED = {"modernbert": (1, 2), "ultrabert": (0, 1, 3)}
_SPECIAL = {"bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}


def installed(family: str) -> bool:
    """Whether the installed transformers has the family."""
    return family in transformers.CONFIG_MAPPING


def tiny_config(family: str = "bert", **changes: Any) -> Any:
    special = {**_SPECIAL} if family in ("modernbert", "eurobert") else {}
    values = {**SIZES, **special, **FAMILIES.get(family, {}), **changes}
    return AutoConfig.for_model(family, **values)


def tiny_model(family: str = "bert", **changes: Any) -> PreTrainedModel:
    """The encoder of a family, in evaluation mode."""
    torch.manual_seed(7)
    model: PreTrainedModel = AutoModel.from_config(tiny_config(family, **changes))
    return model.eval()


def tiny_bert(**changes: Any) -> BertModel:
    torch.manual_seed(7)
    return BertModel(BertConfig(**{**SIZES, **changes})).eval()


def batch(rows: int = 3, tokens: int = 14, seed: int = 0) -> dict[str, Tensor]:
    """Words and a mask: the first row is whole, the others are padded on the right ever more."""
    words = torch.randint(4, WORDS, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(rows, tokens, dtype=torch.int64)
    for row in range(1, rows):
        mask[row, tokens - 3 * row :] = 0
    words[mask == 0] = 1
    return {"input_ids": words, "attention_mask": mask}


def hidden(model: torch.nn.Module, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """The last hidden states (B, N, hidden), without a gradient."""
    with torch.no_grad():
        states: Tensor = model(**inputs, **options).last_hidden_state
    return states


def close(left: Tensor, right: Tensor) -> bool:
    """Equal but for another order of summation, relative to the largest value."""
    return bool((left - right).abs().max() <= 2e-5 * right.abs().max())


def mask_of(model: torch.nn.Module, name: str, inputs: dict[str, Tensor]) -> Tensor | None:
    """The mask that one attention module is given in a call of its model."""
    caught: list[Tensor | None] = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda module, args, kwargs: caught.append(kwargs["attention_mask"]), with_kwargs=True
    )
    hidden(model, inputs)
    hook.remove()
    [mask] = caught
    return mask


def on_valid(states: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """The states of the tokens that are not padding."""
    return states[inputs["attention_mask"].bool()]


def loss_of(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """A loss with gradients of the size of one: the valid states times fixed numbers (their norm alone is constant)."""
    states = on_valid(model(**inputs).last_hidden_state, inputs)
    return (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(1))).sum()


def everything(model: torch.nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, those outside of the state dict too, copied."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same_tensors(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two collections of tensors have the same names and bits."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


class LastHidden(torch.nn.Module):
    """A model as a function of two tensors, as export wants it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=words, attention_mask=mask).last_hidden_state
