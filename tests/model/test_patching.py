"""Patching in place and undoing it: what changes, what does not, and what `info` says."""

import copy
import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import SIZES, batch, close, everything, hidden, on_valid, same_tensors, tiny_bert, tiny_model
from torch import Tensor
from transformers import AutoModel, BertConfig, BertLMHeadModel, BertModel
from transformers.masking_utils import create_bidirectional_mask

import bert_cluster
import cuda_ops
from bert_cluster import AttentionWeightsError, ClusterConfig, NotPatchedError, dispatch
from bert_cluster.config import METHODS
from bert_cluster.errors import ConfigError, ExactAttentionWarning

SMALL = {"method": "improved-clustered", "clusters": 2, "topk": 1}


def calls(model: torch.nn.Module) -> list[tuple[int, int]]:
    """Per layer: calls that ran clustered (on whichever backend), and exact ones."""
    layers = bert_cluster.info(model).layers
    return [(each.calls["clustered"] + each.calls["reference"], each.calls["exact"]) for each in layers]


def left_padded() -> dict[str, Tensor]:
    inputs = batch()
    return {name: tensor.flip(1) for name, tensor in inputs.items()}


def with_holes() -> dict[str, Tensor]:
    inputs = batch()
    inputs["attention_mask"][:, [2, 3, 7]] = 0
    return inputs


# Patch and undo


def test_patch_returns_the_model_and_changes_no_parameter() -> None:
    model = tiny_bert()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert bert_cluster.patch(model, **SMALL) is model
    assert same_tensors(dict(model.state_dict()), state)


def test_unpatch_undoes_everything() -> None:
    model, inputs = tiny_bert(), batch()
    before, tensors = hidden(model, inputs), everything(model)
    config, values = model.config, model.config.to_dict()
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}

    bert_cluster.patch(model, **SMALL)
    assert not torch.equal(hidden(model, inputs), before)
    assert bert_cluster.unpatch(model) is model

    assert same_tensors(everything(model), tensors)
    assert torch.equal(hidden(model, inputs), before)
    assert all(module.config is config for module in model.modules() if "config" in vars(module))
    assert config.to_dict() == values
    assert config._attn_implementation == "sdpa"
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_unpatch_returns_to_the_attention_before(name: str) -> None:
    model = bert_cluster.patch(tiny_bert(attn_implementation=name), **SMALL)
    assert model.config._attn_implementation == "clustered"
    assert model.encoder.layer[0].attention.self.config is model.config
    assert bert_cluster.unpatch(model).config._attn_implementation == name


def test_a_patched_model_has_a_configuration_of_its_own() -> None:
    config = BertConfig(**SIZES)
    first, second = BertModel(config).eval(), BertModel(config).eval()
    inputs = batch()
    before = hidden(second, inputs)
    values = config.to_dict()
    bert_cluster.patch(first, **SMALL)
    assert first.config is not config
    assert config.to_dict() == values
    assert second.config is config
    assert config._attn_implementation == "sdpa"
    assert torch.equal(hidden(second, inputs), before)
    assert bert_cluster.info(second).layers == ()
    bert_cluster.unpatch(first)
    assert first.config is config


def test_both_models_of_one_configuration() -> None:
    config = BertConfig(**SIZES)
    first, second = BertModel(config).eval(), BertModel(config).eval()
    bert_cluster.patch(first, **SMALL)
    bert_cluster.patch(second, clusters=3)
    bert_cluster.unpatch(first)
    assert [each.budgets["clusters"] for each in bert_cluster.info(second).layers] == [3, 3]
    hidden(second, batch())
    assert calls(second) == [(1, 0), (1, 0)]


def test_what_the_user_changes_meanwhile_stays() -> None:
    model = bert_cluster.patch(tiny_bert(), **SMALL)
    model.config.id2label = {0: "no", 1: "yes"}
    model.config.note = "mine"
    bert_cluster.unpatch(model)
    assert (model.config.id2label, model.config.note) == ({0: "no", 1: "yes"}, "mine")


def test_patching_again_replaces_the_settings() -> None:
    model, inputs = tiny_bert(), batch()
    before, config = hidden(model, inputs), model.config
    bert_cluster.patch(model, method="improved-clustered", clusters=9, bits=7, layers={0: {"topk": 3}})
    bert_cluster.patch(model, method="improved-clustered", topk=14)
    layer = bert_cluster.info(model).layers[0]
    assert layer.budgets == {"clusters": 25, "topk": 14, "bits": 63, "iterations": 10}
    assert close(on_valid(hidden(model, inputs), inputs), on_valid(before, inputs))
    bert_cluster.unpatch(model)
    assert torch.equal(hidden(model, inputs), before)
    assert model.config is config


def test_a_parent_class_is_patched_through_its_head() -> None:
    model = BertLMHeadModel(BertConfig(**SIZES)).eval()
    bert_cluster.patch(model, **SMALL)
    with torch.no_grad():
        model(**batch())
    assert calls(model) == [(1, 0), (1, 0)]
    assert model.bert.config is model.config


def test_copies_are_patched_and_independent() -> None:
    model, inputs = tiny_bert(), batch()
    before = hidden(model, inputs)
    bert_cluster.patch(model, **SMALL)
    patched = hidden(model, inputs)
    other = copy.deepcopy(model)
    bert_cluster.unpatch(model)
    assert torch.equal(hidden(other, inputs), patched)
    assert torch.equal(hidden(model, inputs), before)
    assert calls(other) == [(2, 0), (2, 0)]
    bert_cluster.unpatch(other)
    assert torch.equal(hidden(other, inputs), before)


# Settings


def test_stored_settings_are_used() -> None:
    model = tiny_bert()
    model.config.clustered_attention = ClusterConfig(clusters=4, layers={1: {"clusters": 5}}).to_dict()
    bert_cluster.patch(model)
    assert [each.budgets["clusters"] for each in bert_cluster.info(model).layers] == [4, 5]
    bert_cluster.unpatch(model)
    assert not hasattr(model.config, "clustered_attention")


def test_any_argument_replaces_stored_settings_whole() -> None:
    model = tiny_bert()
    model.config.clustered_attention = ClusterConfig(method="clustered", clusters=4, bits=5, seed=9).to_dict()
    bert_cluster.patch(model, topk=3)
    assert model.config.clustered_attention == ClusterConfig(topk=3).to_dict()
    bert_cluster.patch(model, ClusterConfig(method="clustered"))
    assert bert_cluster.info(model).layers[0].budgets == {"clusters": 25, "bits": 63, "iterations": 10}


def test_settings_are_stored_in_the_configuration() -> None:
    config = ClusterConfig(clusters=4, layers={0: {"method": "full"}})
    model = bert_cluster.patch(tiny_bert(), config)
    assert ClusterConfig.from_dict(model.config.clustered_attention) == config


def test_layers_have_their_own_settings() -> None:
    model, inputs = tiny_bert(), batch()
    exact = tiny_bert()
    bert_cluster.patch(model, layers={0: {"method": "full"}, 1: {"method": "clustered", "clusters": 3}})
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
        expected = exact(**inputs, output_hidden_states=True).hidden_states
    assert close(on_valid(states[1], inputs), on_valid(expected[1], inputs))
    assert not close(on_valid(states[2], inputs), on_valid(expected[2], inputs))
    assert calls(model) == [(0, 1), (1, 0)]
    assert [each.method for each in bert_cluster.info(model).layers] == ["full", "clustered"]


def test_rows_below_exact_below_are_exact() -> None:
    model, inputs = tiny_bert(), batch()  # rows of 14, 11 and 8 tokens
    exact = hidden(model, inputs)
    bert_cluster.patch(model, **SMALL, exact_below=12)
    states = hidden(model, inputs)
    valid = inputs["attention_mask"].bool()
    assert close(states[1:][valid[1:]], exact[1:][valid[1:]])
    assert not close(states[0], exact[0])


def test_a_text_below_exact_below_is_spared_the_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """`full_attention` gives what the method's operator gives, with its gradients, bit for bit; and serves no longer text."""
    q, k, v = (torch.randn(2, 4, 11, 8, requires_grad=True) for _ in range(3))
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[1, 7:] = False
    expected = cuda_ops.refined_clustered(q, k, v, mask, clusters=2, topk=1, exact_below=12)[0]
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
    settings = ClusterConfig(clusters=2, topk=1, exact_below=12)
    monkeypatch.delattr(cuda_ops, "refined_clustered")
    out = bert_cluster.attention(q, k, v, mask, settings)
    got = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert torch.equal(out, expected) and all(map(torch.equal, got, wanted))
    with pytest.raises(AttributeError, match="refined_clustered"):
        bert_cluster.attention(q, k, v, mask, dataclasses.replace(settings, exact_below=11))


# What stays exact


def test_sliding_windows_stay_exact() -> None:
    model, inputs = tiny_model("modernbert"), batch()
    exact = copy.deepcopy(model)
    bert_cluster.patch(model, topk=14)
    assert [each.method for each in bert_cluster.info(model).layers] == [
        "refined-clustered",
        "full",
        "full",
        "refined-clustered",
    ]
    assert close(on_valid(hidden(model, inputs), inputs), on_valid(hidden(exact, inputs), inputs))
    assert calls(model) == [(1, 0), (0, 1), (0, 1), (1, 0)]


def test_a_padding_mask_comes_in_every_form() -> None:
    """Booleans or numbers, of each row or one for all rows, with two axes or four."""
    module = bert_cluster.patch(tiny_bert(), **SMALL).encoder.layer[0].attention.self
    x = torch.randn(2, 4, 11, 8)
    mask = (torch.arange(11) < 7).expand(2, 11)
    expected = dispatch.clustered_attention(module, x, x, x, mask, scaling=0.5)[0]
    assert not torch.equal(expected, dispatch.clustered_attention(module, x, x, x, None, scaling=0.5)[0])
    for form in (mask.long(), mask[:1], mask[:1].long(), mask[:1, None, None]):
        assert torch.equal(dispatch.clustered_attention(module, x, x, x, form, scaling=0.5)[0], expected)


def test_cross_attention_is_never_clustered() -> None:
    """Two queries of another length than the keys reach the function only from cross-attention: exact, and said so."""
    model = bert_cluster.patch(tiny_bert(), **SMALL)
    module = model.encoder.layer[0].attention.self
    query, key = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 5, 8)
    with pytest.warns(ExactAttentionWarning, match="3 queries and 5 keys"):
        out, weights = dispatch.clustered_attention(module, query, key, key, None, scaling=0.5)
    expected = torch.softmax(query @ key.transpose(2, 3) * 0.5, -1) @ key
    assert close(out, expected.transpose(1, 2))
    assert weights is None
    assert calls(model)[0] == (0, 1)


def test_a_name_without_a_patch_is_an_error() -> None:
    model = AutoModel.from_config(BertConfig(**SIZES), attn_implementation="clustered")
    with pytest.raises(NotPatchedError, match="never patched.*call bert_cluster.patch.model."):
        model(**batch())
    model = tiny_bert()
    model.set_attn_implementation("clustered")
    with pytest.raises(NotPatchedError, match="never patched"):
        model(**batch())
    bert_cluster.patch(model)
    model(**batch())
    patched_config = bert_cluster.patch(tiny_bert()).config
    with pytest.raises(NotPatchedError, match="never patched"):
        BertModel(patched_config)(**batch())


# Attention weights


@pytest.mark.parametrize("family", ["bert", "eurobert", "layoutlm", "modernbert"])
def test_a_call_for_weights_gives_those_of_eager(family: str) -> None:
    eager, inputs = tiny_model(family, attn_implementation="eager"), batch()
    model = bert_cluster.patch(tiny_model(family), **SMALL)
    with torch.no_grad():
        expected = eager(**inputs, output_attentions=True)
        outputs = model(**inputs, output_attentions=True)
    assert len(outputs.attentions) == len(expected.attentions) == model.config.num_hidden_layers
    valid = inputs["attention_mask"].bool()
    for ours, theirs in zip(outputs.attentions, expected.attentions, strict=True):
        assert torch.allclose(ours.transpose(1, 2)[valid], theirs.transpose(1, 2)[valid], atol=1e-5, rtol=0)
    assert close(outputs.last_hidden_state[valid], expected.last_hidden_state[valid])
    assert all(each == (0, 1) for each in calls(model))
    hidden(model, inputs)
    assert calls(model)[0] == (1, 1)


def test_weights_in_training_have_dropout() -> None:
    sizes: Any = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.5}
    eager, model = tiny_bert(**sizes, attn_implementation="eager").train(), tiny_bert(**sizes).train()
    bert_cluster.patch(model, **SMALL)
    found = []
    for each in (eager, model):
        torch.manual_seed(3)
        found.append(each(input_ids=batch()["input_ids"], output_attentions=True).attentions)
    for theirs, ours in zip(*found, strict=True):
        assert 0.3 < (ours == 0).float().mean() < 0.7
        torch.testing.assert_close(ours, theirs)


def test_weights_of_a_causal_call_are_refused() -> None:
    model = bert_cluster.patch(tiny_bert(), **SMALL)
    module = model.encoder.layer[0].attention.self
    module.is_causal = True
    with pytest.raises(AttentionWeightsError, match="is causal and got no mask.*attn_implementation='eager'"):
        model(input_ids=batch()["input_ids"], output_attentions=True)


# Masks


@pytest.mark.parametrize("make", [batch, left_padded, with_holes])
def test_masks_of_any_pattern(make: Any) -> None:
    model, inputs = tiny_bert(), make()
    exact = on_valid(hidden(model, inputs), inputs)
    bert_cluster.patch(model, topk=14)
    assert close(on_valid(hidden(model, inputs), inputs), exact)
    assert calls(model) == [(1, 0), (1, 0)]


@pytest.mark.parametrize("make", [batch, left_padded, with_holes])
def test_padding_reaches_nothing(make: Any) -> None:
    model, inputs = bert_cluster.patch(tiny_bert(), **SMALL), make()
    before = on_valid(hidden(model, inputs), inputs)
    inputs["input_ids"] = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], 5)
    assert torch.equal(on_valid(hidden(model, inputs), inputs), before)


def test_no_mask_is_a_mask_of_ones() -> None:
    model, words = bert_cluster.patch(tiny_bert(), **SMALL), batch()["input_ids"]
    ones = torch.ones_like(words)
    assert torch.equal(hidden(model, {"input_ids": words}), hidden(model, {"input_ids": words, "attention_mask": ones}))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masks_of_any_dtype(dtype: torch.dtype) -> None:
    model, inputs = bert_cluster.patch(tiny_bert(), **SMALL), batch()
    expected = hidden(model, inputs)
    inputs["attention_mask"] = inputs["attention_mask"].to(dtype)
    assert torch.equal(hidden(model, inputs), expected)


def test_a_four_dimensional_padding_mask_is_clustered() -> None:
    model, inputs = bert_cluster.patch(tiny_bert(), **SMALL), batch()
    expected = hidden(model, inputs)
    four = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"].bool()[:, None, None, :]}
    assert torch.equal(hidden(model, four), expected)
    assert calls(model) == [(2, 0), (2, 0)]


@pytest.mark.parametrize("additive", [False, True])
def test_any_other_four_dimensional_mask_is_exact_and_says_so(additive: bool) -> None:
    model, words = tiny_bert(), batch()["input_ids"]
    allowed = torch.ones(14, 14, dtype=torch.bool).tril().expand(3, 1, 14, 14)
    mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min) if additive else allowed
    inputs = {"input_ids": words, "attention_mask": mask}
    exact = hidden(model, inputs)
    bert_cluster.patch(model, **SMALL)
    with pytest.warns(ExactAttentionWarning, match=r"shape \(3, 1, 14, 14\), and a padding mask of .batch, tokens."):
        states = hidden(model, inputs)
    assert close(states, exact)
    assert calls(model) == [(0, 1), (0, 1)]
    hidden(model, inputs)  # the warning came once


def test_an_all_padded_row_is_finite() -> None:
    model, inputs = bert_cluster.patch(tiny_bert(), **SMALL), batch()
    inputs["attention_mask"][1] = 0
    assert torch.isfinite(hidden(model, inputs)).all()


def test_windows_become_the_mask_of_sdpa() -> None:
    """A mask function that is more than padding reaches the layers as (B, 1, N, N) booleans."""
    model, inputs = bert_cluster.patch(tiny_bert(), **SMALL), batch()
    options = {
        "config": model.config,
        "inputs_embeds": torch.zeros(3, 14, 32),
        "attention_mask": inputs["attention_mask"],
    }
    assert create_bidirectional_mask(**options).shape == (3, 14)
    mask = create_bidirectional_mask(**options, and_mask_function=lambda b, h, q, k: abs(q - k) < 3)
    expected = (torch.arange(14)[:, None] - torch.arange(14)).abs() < 3
    assert torch.equal(mask, expected & inputs["attention_mask"].bool()[:, None, None, :])


# Info


def test_info_counts_and_shows() -> None:
    model = tiny_bert()
    assert "not patched: bert_cluster.patch" in str(bert_cluster.info(model))
    bert_cluster.patch(model, method="improved-clustered", layers={0: {"method": "full"}}, exact_below=3)
    for _ in range(3):
        hidden(model, batch())
    first, second = bert_cluster.info(model).layers
    assert (first.name, second.name) == ("encoder.layer.0.attention.self", "encoder.layer.1.attention.self")
    assert (first.method, first.backend, first.calls) == (
        "full",
        "sdpa",
        {"clustered": 0, "exact": 3, "reference": 0},
    )
    assert second.budgets == {"clusters": 25, "topk": 32, "bits": 63, "iterations": 10, "exact_below": 3}
    kind = "reference" if second.backend == "reference" else "clustered"
    assert second.calls == {"clustered": 0, "exact": 0, "reference": 0} | {kind: 3}
    table = str(bert_cluster.info(model))
    for text in (second.name, "improved-clustered", "clusters=25 topk=32 bits=63", second.backend, "are not counted"):
        assert text in table


def test_info_looks_at_the_modules() -> None:
    model = tiny_bert()
    model.config.clustered_attention = ClusterConfig().to_dict()
    assert bert_cluster.info(model).layers == ()


def test_calls_on_the_reference_are_counted_as_such(on_reference: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "runs_on_reference", lambda query: True)
    model = bert_cluster.patch(tiny_bert(), **SMALL)
    hidden(model, batch())
    assert bert_cluster.info(model).layers[0].calls == {"clustered": 0, "exact": 0, "reference": 1}


def test_another_attention_in_its_place_is_shown() -> None:
    model = bert_cluster.patch(tiny_bert(), **SMALL)
    model.set_attn_implementation("sdpa")
    assert [layer.backend for layer in bert_cluster.info(model).layers] == ["bypassed (sdpa)"] * 2
    assert "Call patch(model) again." in str(bert_cluster.info(model))
    bert_cluster.patch(model, **SMALL)
    assert not any("bypassed" in layer.backend for layer in bert_cluster.info(model).layers)


def test_a_quantized_model() -> None:
    """Its linear layers have no parameters, or whole numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is to move to another package
        model = torch.ao.quantization.quantize_dynamic(tiny_bert(), {torch.nn.Linear})
        bert_cluster.patch(model, **SMALL)
        hidden(model, batch())
    assert calls(model) == [(1, 0)] * 2
    expected = cuda_ops.backend_for("cpu", torch.float32)
    assert [layer.backend for layer in bert_cluster.info(model).layers] == [expected] * 2
    packed = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    model.encoder.layer[0].attention.self.register_parameter("packed", packed)
    assert [layer.backend for layer in bert_cluster.info(model).layers] == [expected] * 2


@pytest.mark.parametrize("value", [torch.tensor([1.0, 2.0]), np.array([1.0, 2.0])], ids=["tensor", "array"])
def test_unpatching_with_numbers_in_the_configuration(value: Any) -> None:
    model = tiny_bert()
    model.config.class_weights = value
    expected = hidden(model, batch())
    bert_cluster.patch(model, **SMALL)
    model.config.class_weights = value * 2
    bert_cluster.unpatch(model)
    assert model.config.class_weights.tolist() == [2.0, 4.0]
    assert torch.equal(hidden(model, batch()), expected)


def test_what_is_deleted_from_the_configuration_stays_away() -> None:
    model = tiny_bert()
    model.config.extra = 3
    bert_cluster.patch(model, **SMALL)
    del model.config.extra
    assert not hasattr(bert_cluster.unpatch(model).config, "extra")


def test_attention_checks_what_it_is_given() -> None:
    x, full = torch.randn(1, 2, 5, 3), ClusterConfig(method="full")
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        bert_cluster.attention(x, x, x, torch.ones(1, 5), config=full)
    with pytest.raises(ConfigError, match="config must be a ClusterConfig or None, got str"):
        bert_cluster.attention(x, x, x, config="clustered")  # type: ignore[arg-type]
    for config in map(ClusterConfig, METHODS):
        with pytest.raises(ValueError, match="q must have 4 axes"):
            bert_cluster.attention(x[0], x[0], x[0], config=config)
        with pytest.raises(TypeError, match="q must be a tensor"):
            bert_cluster.attention(x.tolist(), x, x, config=config)
        with pytest.raises(ValueError, match="q must"):
            bert_cluster.attention(x[..., :0], x[..., :0], x[..., :0], config=config)


def test_cross_attention_by_its_place() -> None:
    """BLIP-2's class does not say it in its name."""
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    settings = {**SIZES, "encoder_hidden_size": 32, "cross_attention_frequency": 1}
    model = bert_cluster.patch(Blip2QFormerModel(Blip2QFormerConfig(**settings)), **SMALL)
    methods = {layer.name: layer.method for layer in bert_cluster.info(model).layers}
    assert {name for name, method in methods.items() if method == "full"} == {
        name for name in methods if "cross" in name
    }
    assert len(set(methods.values())) == 2
