"""Layers of a patched model that stay exact keep the bits that they had: SDPA with the mask that it always got."""

from typing import Any

import pytest
import torch
from tiny_models import batch, hidden, mask_of, tiny_bert, tiny_model
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import bert_cluster
from bert_cluster import dispatch


def outputs_of(model: nn.Module, name: str, inputs: dict[str, Tensor]) -> Tensor:
    """What one attention module returns in a call of its model."""
    caught: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda module, given, output: caught.append(output[0]))
    hidden(model, inputs)
    hook.remove()
    return caught[0]


@pytest.mark.parametrize("padded", [True, False])
def test_a_disabled_layer_keeps_its_bits(padded: bool) -> None:
    inputs = batch()
    if not padded:
        inputs["attention_mask"][:] = 1
    name = "encoder.layer.0.attention.self"
    before = outputs_of(tiny_bert(), name, inputs)
    model = bert_cluster.patch(tiny_bert(), clusters=2, topk=1, layers={0: {"method": "full"}})
    assert torch.equal(outputs_of(model, name, inputs), before)


def test_no_mask_of_all_pairs_is_made_for_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, ...]] = []

    def watched(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **named: Any) -> tuple[Tensor, None]:
        given.append(tuple(mask.shape))
        return sdpa_attention_forward(module, q, k, v, mask, **named)

    monkeypatch.setattr(dispatch, "sdpa_attention_forward", watched)
    hidden(bert_cluster.patch(tiny_bert(), topk=1, layers={0: {"method": "full"}}), batch())
    assert given == [(3, 1, 1, 14)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_disabled_layer_keeps_its_gradient(dtype: torch.dtype) -> None:
    name, inputs, gradients = "encoder.layer.0.attention.self", batch(tokens=53), []
    states = torch.randn(3, 53, 32, dtype=dtype)
    for model in (tiny_bert().to(dtype), bert_cluster.patch(tiny_bert().to(dtype), layers={0: {"method": "full"}})):
        mask = mask_of(model, name, inputs)
        assert mask is not None
        given = states.clone().requires_grad_()
        out = model.get_submodule(name)(given, attention_mask=mask)[0]
        gradients.append(torch.autograd.grad(out.square().sum(), given)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("window", [4, 64])
def test_a_window_keeps_its_bits(window: int) -> None:
    """Also where the window is wider than the text and SDPA needs no mask at all."""
    inputs = batch()
    if window > inputs["input_ids"].shape[1]:
        inputs["attention_mask"][:] = 1
    exact = tiny_model("modernbert", local_attention=window, global_attn_every_n_layers=2)
    patched = tiny_model("modernbert", local_attention=window, global_attn_every_n_layers=2)
    bert_cluster.patch(patched, topk=14)
    # The global layers before a window differ in rounding, so the window gets the same states in both models.
    states = torch.randn(3, 14, 32)
    position = exact.rotary_emb(states, torch.arange(14)[None], "sliding_attention")
    expected, given = [], []
    for model, caught in ((exact, expected), (patched, given)):
        mask = mask_of(model, "layers.1.attn", inputs)
        with torch.no_grad():
            caught.append(model.layers[1].attn(states, position_embeddings=position, attention_mask=mask)[0])
    assert exact.layers[1].attn.sliding_window is not None
    assert (mask is None) == (window > 14)
    assert torch.equal(given[0], expected[0])


def test_biased_scores_are_never_clustered() -> None:
    """A keyword that changes the scores makes the call exact, with the bias in it."""
    model = bert_cluster.patch(tiny_bert(), clusters=2, topk=1)
    module = model.encoder.layer[0].attention.self
    query = torch.randn(2, 4, 6, 8)
    bias = torch.randn(1, 4, 6, 6)
    with pytest.warns(bert_cluster.errors.ExactAttentionWarning, match="position_bias changes the scores"):
        out, _ = dispatch.clustered_attention(module, query, query, query, None, scaling=1.0, position_bias=bias)
    expected = torch.softmax(query @ query.transpose(2, 3) + bias, -1) @ query
    assert torch.allclose(out, expected.transpose(1, 2), atol=1e-6)
    assert bert_cluster.info(model).layers[0].calls["exact"] == 1
