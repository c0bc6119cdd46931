"""What cannot be patched is refused by name, and stays bit for bit what it was."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny_models import SIZES, WORDS, batch, everything, same_tensors, tiny_bert, tiny_model
from torch import nn

import bert_cluster
from bert_cluster import BertClusterError, ClusterConfig, ConfigError, NotPatchedError, UnsupportedModelError

T5_SIZES = {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
CLIP_SPECIAL = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
SWIN_SIZES = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}
RESNET_SIZES = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}
GPT2_SIZES = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 1}
ITSELF = "computes its attention itself or has none.*Use a family that does, such as BERT"
LOOKS = "clustered attention looks at all tokens"

# name -> model class, its configuration, text of the refusal.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "deberta": ("Deberta", SIZES, f"DebertaModel .deberta. {ITSELF}"),
    "deberta-v2": ("DebertaV2", SIZES, ITSELF),
    "mpnet": ("MPNet", SIZES, ITSELF),
    "fnet": ("FNet", SIZES, ITSELF),
    "longformer": ("Longformer", {**SIZES, "attention_window": 4}, ITSELF),
    "squeezebert": ("SqueezeBert", {**SIZES, "embedding_size": 32}, ITSELF),
    "no attention at all": ("ResNet", RESNET_SIZES, ITSELF),
    "T5": ("T5", T5_SIZES, "an encoder with a decoder; clustered attention is for encoders. Patch its encoder alone"),
    "T5's encoder": ("T5Encoder", T5_SIZES, "adds position biases.*Use a family with absolute or rotary positions"),
    "BERT as a decoder": (
        "Bert",
        {**SIZES, "is_decoder": True},
        f"config.is_decoder is True.*{LOOKS}. Load it with is_decoder=False",
    ),
    "GPT-2": ("GPT2", GPT2_SIZES, f"causal attention.*{LOOKS}. Use an encoder"),
    "CLIP's text tower": ("CLIPText", {**SIZES, **CLIP_SPECIAL}, f"causal attention .in CLIPText.*{LOOKS}"),
    "Swin": ("Swin", SWIN_SIZES, "adds position biases"),
}


def build(name: str) -> nn.Module:
    kind, values, _ = REFUSED[name]
    torch.manual_seed(3)
    config = getattr(transformers, f"{'T5' if kind == 'T5Encoder' else kind}Config")(**values)
    model: nn.Module = getattr(transformers, f"{kind}Model")(config)
    return model.eval()


def outputs(model: nn.Module) -> torch.Tensor:
    """The first output for a fixed input."""
    with torch.no_grad():
        if isinstance(model, (transformers.SwinModel, transformers.ResNetModel)):
            return model(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32))[0]
        inputs: dict[str, Any] = batch(2, 8)
        if isinstance(model, transformers.FNetModel):
            inputs.pop("attention_mask")
        if isinstance(model, transformers.T5Model):
            inputs["decoder_input_ids"] = inputs["input_ids"]
        return model(**inputs)[0]


def unchanged_by(refusal: Callable[[], None], model: nn.Module) -> None:
    """Runs a refusal and compares the model's tensors, configuration, attributes and output before and after."""
    before, state = outputs(model), everything(model)
    config, values = model.config, copy.deepcopy(model.config.to_dict())
    implementation = model.config._attn_implementation
    refusal()
    assert same_tensors(everything(model), state)
    assert model.config is config
    assert model.config.to_dict() == values
    assert model.config._attn_implementation == implementation
    assert not any("cluster" in name for module in model.modules() for name in vars(module))
    assert torch.equal(outputs(model), before)
    assert bert_cluster.info(model).layers == ()


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_patched(name: str) -> None:
    model = build(name)

    def refusal() -> None:
        with pytest.raises(UnsupportedModelError, match=f"(?s){REFUSED[name][2]}") as caught:
            bert_cluster.patch(model)
        assert isinstance(caught.value, BertClusterError)
        assert isinstance(caught.value, ValueError)

    unchanged_by(refusal, model)


SETTINGS = [
    ({"layers": {2: {"clusters": 3}}}, "layers names layer 2, and this BertModel has layers 0 to 1"),
    ({"layers": {0: {"method": "full"}, 1: {"method": "full"}}}, "leave every layer exact: there is nothing to patch"),
    ({"method": "full"}, "leave every layer exact"),
    ({"clusters": 0}, "clusters must be a whole number from 1 to 65536 or 'auto', got 0"),
    ({"topk": -1}, "topk must be a whole number from 0"),
    ({"bits": 257}, "bits must be a whole number from 1 to 256, got 257"),
    ({"iterations": -1}, "iterations must be a whole number from 0"),
    ({"exact_below": -1}, "exact_below must be"),
    ({"seed": 2**32}, "seed must be"),
    (
        {"method": "linear"},
        "method must be one of full, clustered, improved-clustered, refined-clustered, got 'linear'",
    ),
    ({"method": "clustered", "topk": 3}, "topk=3 means nothing to the method 'clustered'"),
    ({"config": {"clusters": 3}}, "takes a ClusterConfig, got dict"),
    ({"config": ClusterConfig(), "clusters": 3}, "takes a ClusterConfig or its fields, got both .config and clusters"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS, ids=[str(list(each[0])) for each in SETTINGS])
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    model = tiny_bert()

    def refusal() -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            bert_cluster.patch(model, **settings)
        assert isinstance(caught.value, BertClusterError)
        assert isinstance(caught.value, ValueError)

    unchanged_by(refusal, model)


def test_a_refusal_leaves_a_patched_model_patched() -> None:
    model = bert_cluster.patch(tiny_bert(), clusters=3, topk=2)
    before, state = outputs(model), everything(model)
    for refused in ({"clusters": 0}, {"layers": {5: {"clusters": 3}}}):
        with pytest.raises(ConfigError):
            bert_cluster.patch(model, **refused)
    assert same_tensors(everything(model), state)
    assert torch.equal(outputs(model), before)
    assert bert_cluster.info(model).layers[0].budgets["clusters"] == 3


def test_albert_has_no_layers_of_its_own() -> None:
    model = tiny_model("albert")

    def refusal() -> None:
        with pytest.raises(ConfigError, match="AlbertModel has attention modules for 1 of 2 layers"):
            bert_cluster.patch(model, layers={0: {"clusters": 3}})

    unchanged_by(refusal, model)
    bert_cluster.patch(model, clusters=3)


def test_sliding_windows_have_no_settings() -> None:
    model = tiny_model("modernbert")

    def refusal() -> None:
        with pytest.raises(ConfigError, match="layers.1. .layers.1.attn. has a sliding window and stays exact"):
            bert_cluster.patch(model, layers={1: {"clusters": 3}})

    unchanged_by(refusal, model)


def test_a_configuration_that_asks_for_weights() -> None:
    model = tiny_bert(attn_implementation="eager")
    model.config.output_attentions = True

    def refusal() -> None:
        with pytest.raises(UnsupportedModelError, match="config.output_attentions is True.*Set it to False") as caught:
            bert_cluster.patch(model)
        assert isinstance(caught.value, ValueError)

    unchanged_by(refusal, model)


def test_stored_settings_that_cannot_be_read() -> None:
    model = tiny_bert()
    model.config.clustered_attention = {"version": 99}
    with pytest.raises(ConfigError, match="version 99; this bert-cluster reads versions up to 1"):
        bert_cluster.patch(model)
    assert model.config.clustered_attention == {"version": 99}
    assert model.config._attn_implementation != "clustered"


def test_weights_that_are_not_there_yet() -> None:
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig(**SIZES))
    with pytest.raises(UnsupportedModelError, match="on the meta device and has no weights yet. Load them, then patch"):
        bert_cluster.patch(model)


@pytest.mark.parametrize("thing", ["bert-base-uncased", None, 3])
def test_not_a_model(thing: object) -> None:
    for function in (bert_cluster.patch, bert_cluster.unpatch, bert_cluster.info):
        with pytest.raises(UnsupportedModelError, match="is expected, got .* Load it with AutoModel.from_pretrained"):
            function(thing)  # type: ignore[arg-type]


def test_a_module_without_a_transformers_model() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear holds 0 transformers models, one is expected"):
        bert_cluster.patch(nn.Linear(2, 2))


def test_two_encoders_in_one_module() -> None:
    both = nn.ModuleDict({"query": tiny_bert(), "document": tiny_bert()})
    states = [everything(each) for each in both.values()]
    with pytest.raises(UnsupportedModelError, match="ModuleDict holds 2 transformers models.*Patch the encoder itself"):
        bert_cluster.patch(both)
    assert all(same_tensors(everything(each), state) for each, state in zip(both.values(), states, strict=True))
    bert_cluster.patch(both["query"])
    assert bert_cluster.info(both["document"]).layers == ()


def test_unpatching_what_is_not_patched() -> None:
    model = tiny_bert()

    def refusal() -> None:
        with pytest.raises(NotPatchedError, match="This BertModel is not patched: there is nothing to undo") as caught:
            bert_cluster.unpatch(model)
        assert isinstance(caught.value, BertClusterError)
        assert isinstance(caught.value, RuntimeError)

    unchanged_by(refusal, model)


def test_a_tower_that_reads_its_output_at_padding() -> None:
    siglip = pytest.importorskip("transformers").SiglipTextModel
    config = siglip.config_class(**{**SIZES, "projection_size": 32})
    with pytest.raises(UnsupportedModelError, match="takes what stands at the last place for the whole text"):
        bert_cluster.patch(siglip(config))


def test_heads_that_are_too_long() -> None:
    model = tiny_bert(hidden_size=514, num_attention_heads=2)

    def refusal() -> None:
        with pytest.raises(
            UnsupportedModelError, match="has heads of 257 numbers; clustered attention takes at most 256"
        ):
            bert_cluster.patch(model)

    unchanged_by(refusal, model)


def test_layers_that_were_removed() -> None:
    model = tiny_bert(num_hidden_layers=3)
    model.encoder.layer = model.encoder.layer[:2]
    with pytest.raises(ConfigError, match="modules for 2 of 3 layers .* set num_hidden_layers in its configuration"):
        bert_cluster.patch(model, layers={0: {"clusters": 3}})
    model.config.num_hidden_layers = 2
    bert_cluster.patch(model, layers={0: {"clusters": 3}})


def test_an_offloaded_model() -> None:
    from accelerate import cpu_offload

    model = tiny_bert()
    cpu_offload(model, "cpu")
    with pytest.raises(UnsupportedModelError, match="offloaded by accelerate .* Patch the model first"):
        bert_cluster.patch(model)


def test_a_decoder_that_attends_to_both_sides_at_once() -> None:
    """T5Gemma2's decoder joins the two masks, and none of its modules says that it is a decoder."""
    text = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
    images = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 16,
    }
    config = transformers.T5Gemma2Config(
        encoder={"text_config": text, "vision_config": {**images, "patch_size": 8}, "mm_tokens_per_image": 4},
        decoder=text,
    )
    with pytest.raises(UnsupportedModelError, match="T5Gemma2Model .* is an encoder with a decoder"):
        bert_cluster.patch(transformers.T5Gemma2Model(config))
