"""Models inside models: parts are patched as a whole or on their own, never half of each."""

import pytest
import torch
from tiny_models import SIZES, WORDS, batch, on_valid, tiny_bert
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertForQuestionAnswering,
    BertLMHeadModel,
    EncoderDecoderModel,
)

import bert_cluster
from bert_cluster import NotPatchedError, UnsupportedModelError


def answering() -> BertForQuestionAnswering:
    return BertForQuestionAnswering(BertConfig(**SIZES)).eval()


def test_a_part_patched_on_its_own() -> None:
    whole = answering()
    config = whole.config
    bert_cluster.patch(whole.bert, clusters=2)
    whole(**batch())
    assert [layer.calls["exact"] for layer in bert_cluster.info(whole).layers] == [0, 0]
    assert whole.config is config
    with pytest.raises(
        UnsupportedModelError, match="bert, a part of this BertForQuestionAnswering, is patched on its own"
    ):
        bert_cluster.patch(whole)
    with pytest.raises(NotPatchedError, match="a model around it or in it was: unpatch that one"):
        bert_cluster.unpatch(whole)
    bert_cluster.unpatch(whole.bert)
    assert whole.bert.config is config
    bert_cluster.patch(whole)


def test_a_whole_patched_keeps_its_parts() -> None:
    whole = bert_cluster.patch(answering(), clusters=2)
    with pytest.raises(UnsupportedModelError, match="is a part of a model that is patched as a whole"):
        bert_cluster.patch(whole.bert)
    with pytest.raises(NotPatchedError, match="unpatch that one"):
        bert_cluster.unpatch(whole.bert)
    assert len(bert_cluster.info(whole).layers) == 2


def test_layers_may_go_while_patched() -> None:
    model = bert_cluster.patch(tiny_bert(num_hidden_layers=3))
    dropped = model.encoder.layer[2]
    model.encoder.layer = model.encoder.layer[:2]
    bert_cluster.unpatch(model)
    assert bert_cluster.info(model).layers == ()
    assert len(model.encoder.layer) == 2
    assert dropped is not None


def test_the_encoder_of_an_encoder_and_decoder() -> None:
    """Its outer and inner modules hold different configuration objects; the decoder and its cross-attention stay."""
    decoder = BertLMHeadModel(BertConfig(**SIZES, is_decoder=True, add_cross_attention=True))
    model = EncoderDecoderModel(encoder=tiny_bert(), decoder=decoder).eval()
    inputs = batch()

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs, decoder_input_ids=inputs["input_ids"]).logits

    before = logits()
    with pytest.raises(UnsupportedModelError, match=r"Patch its encoder alone .model\.get_encoder"):
        bert_cluster.patch(model)
    bert_cluster.patch(model.get_encoder(), topk=14)
    after = logits()
    assert torch.allclose(after, before, atol=2e-5 * float(before.abs().max()), rtol=0)
    assert not torch.equal(after, before)
    assert all(layer.calls["exact"] == 0 for layer in bert_cluster.info(model.encoder).layers)
    assert model.decoder.config._attn_implementation == "sdpa"
    bert_cluster.unpatch(model.get_encoder())
    assert torch.equal(logits(), before)


def test_the_encoder_of_bart() -> None:
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
    model = BartModel(
        BartConfig(vocab_size=WORDS, **sizes, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48)
    )
    encoder, inputs = model.eval().get_encoder(), batch()
    with torch.no_grad():
        before = on_valid(encoder(**inputs).last_hidden_state, inputs)
        bert_cluster.patch(encoder, topk=14)
        after = on_valid(encoder(**inputs).last_hidden_state, inputs)
    assert torch.allclose(after, before, atol=2e-5 * float(before.abs().max()), rtol=0)
    assert [layer.calls["exact"] for layer in bert_cluster.info(encoder).layers] == [0, 0]
    assert model.decoder.config._attn_implementation == "sdpa"


def test_a_name_given_at_loading_is_gone_after_unpatch() -> None:
    model = tiny_bert()
    model.set_attn_implementation("clustered")
    bert_cluster.unpatch(bert_cluster.patch(model))
    assert model.config._attn_implementation == "sdpa"
    model(**batch())
