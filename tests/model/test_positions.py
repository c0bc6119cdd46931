"""Longer tables of learned positions: what changes, what stays, and what is refused."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_wrappers import TEXTS, checkpoint, classifier, tokenizer
from tiny_models import SIZES, batch, everything, hidden, same_tensors, tiny_bert, tiny_model
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, DebertaConfig, DebertaModel, MPNetConfig, MPNetModel

import bert_cluster
from bert_cluster import ConfigError, UnsupportedModelError, extend_positions
from bert_cluster.errors import ExtendedPositionsWarning
from bert_cluster.positions import position_table

# Family -> first rows of its table that stand for no position (the padding token is number 1 in these models).
OFFSETS = {
    "bert": 0,
    "electra": 0,
    "distilbert": 0,
    "albert": 0,
    "ernie": 0,
    "mobilebert": 0,
    "layoutlm": 0,
    "roberta": 2,
    "xlm-roberta": 2,
    "camembert": 2,
    "data2vec-text": 2,
    "markuplm": 2,
}
BEFORE, AFTER = SIZES["max_position_embeddings"], 151  # rows before, tokens after


def extended(model: Any, tokens: int = AFTER, how: str = "tile") -> Any:
    """The model, extended with its warning."""
    with pytest.warns(ExtendedPositionsWarning):
        return extend_positions(model, None, tokens, how=how)


@pytest.mark.parametrize("family", OFFSETS)
def test_tiling(family: str) -> None:
    model = tiny_model(family)
    offset = OFFSETS[family]
    usable = BEFORE - offset
    found = position_table(model)
    assert (found.positions, found.offset) == (usable, offset)
    old = found.table.weight.detach().clone()
    inputs = batch(tokens=usable)
    expected = hidden(model, inputs)

    assert extended(model) is model

    new = found.table.weight
    assert new.shape == (offset + AFTER, old.shape[1]) and new.requires_grad and new.dtype == old.dtype
    assert found.table.num_embeddings == model.config.max_position_embeddings == offset + AFTER
    assert torch.equal(new[:BEFORE], old)
    for position in (usable, usable + 1, 2 * usable, AFTER - 1):
        assert torch.equal(new[offset + position], old[offset + position % usable])
    assert torch.equal(hidden(model, inputs), expected)
    assert hidden(model, batch(1, AFTER)).isfinite().all()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_interpolating(family: str) -> None:
    model = tiny_model(family)
    offset = OFFSETS[family]
    table = position_table(model).table
    old = table.weight.detach().double()
    extended(model, how="interpolate")
    new = table.weight.detach()
    assert torch.equal(new[:offset].double(), old[:offset])
    trained = old[offset:]
    for position in (0, 1, 77, 149, 150):
        place = position * (len(trained) - 1) / (AFTER - 1)
        below, share = int(place), place - int(place)
        above = min(below + 1, len(trained) - 1)
        expected = (1 - share) * trained[below] + share * trained[above]
        assert new[offset + position].double() == pytest.approx(expected, abs=1e-5)


def test_buffers_go_on_and_stay_out_of_the_state_dict() -> None:
    model = tiny_bert()
    keys = model.state_dict().keys()
    extended(model)
    embeddings = model.embeddings
    assert torch.equal(embeddings.position_ids, torch.arange(AFTER)[None])
    assert torch.equal(embeddings.token_type_ids, torch.zeros(1, AFTER, dtype=torch.int64))
    assert model.state_dict().keys() == keys


def test_dtype_and_frozen_weights_stay() -> None:
    model = tiny_bert().to(torch.bfloat16).requires_grad_(False)
    for tokens, how in ((100, "tile"), (AFTER, "interpolate")):
        extended(model, tokens, how)
        weight = model.embeddings.position_embeddings.weight
        assert weight.dtype == torch.bfloat16 and not weight.requires_grad and weight.shape[0] == tokens


def test_new_positions_train() -> None:
    model = extended(tiny_bert()).train()
    model(**batch(1, AFTER)).last_hidden_state.square().sum().backward()
    gradient = model.embeddings.position_embeddings.weight.grad
    assert gradient.shape[0] == AFTER and gradient[BEFORE:].abs().sum() > 0


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "albert"])
@pytest.mark.parametrize("patched", [False, True])
def test_saving_and_loading(family: str, patched: bool, tmp_path: Path) -> None:
    model = tiny_model(family)
    if patched:
        bert_cluster.patch(model, clusters=3, topk=5)
    extended(model)
    inputs = batch(2, AFTER)
    expected = hidden(model, inputs)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    if patched:
        bert_cluster.patch(again)
    assert torch.equal(hidden(again, inputs), expected)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_order_of_patching_and_extending_changes_nothing(family: str) -> None:
    inputs = batch(2, AFTER)
    first = extended(bert_cluster.patch(tiny_model(family), clusters=3, topk=5))
    second = bert_cluster.patch(extended(tiny_model(family)), clusters=3, topk=5)
    assert torch.equal(hidden(first, inputs), hidden(second, inputs))
    for model in (first, second):
        bert_cluster.unpatch(model)
        assert model.config.max_position_embeddings == AFTER + OFFSETS[family]
    assert torch.equal(hidden(first, inputs), hidden(second, inputs))


def test_twice() -> None:
    twice, once = extended(extended(tiny_bert(), 2 * BEFORE), 4 * BEFORE), extended(tiny_bert(), 4 * BEFORE)
    assert same_tensors(everything(twice), everything(once))


def test_a_part_of_a_model() -> None:
    model = classifier()
    extended(model.bert)
    assert model.config.max_position_embeddings == AFTER
    assert model(**batch(1, AFTER)).logits.isfinite().all()


def test_every_configuration_of_the_model() -> None:
    model = classifier()
    model.bert.encoder.config = copy.deepcopy(model.config)
    extended(model)
    lengths = {module.config.max_position_embeddings for module in model.modules() if hasattr(module, "config")}
    assert lengths == {AFTER}


def test_the_tokenizer_cuts_later(tmp_path: Path) -> None:
    words = tokenizer(tmp_path)
    words.model_max_length = BEFORE
    with pytest.warns(ExtendedPositionsWarning):
        extend_positions(tiny_bert(), words, AFTER)
    assert words.model_max_length == AFTER
    assert len(words("w5 " * 500, truncation=True)["input_ids"]) == AFTER


def test_one_warning_that_says_what_it_is() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        extend_positions(tiny_bert(), None, AFTER)
        extend_positions(tiny_bert(), None, AFTER, how="interpolate")
    tiled, read = seen
    assert (tiled.category, tiled.filename) == (ExtendedPositionsWarning, __file__)
    assert str(tiled.message) == (
        "The 151 positions of this BertModel repeat its 64 present ones: a start for fine-tuning, or a rough extension whose "
        "results must be measured on your own texts."
    )
    assert "are interpolated from its 64 present ones" in str(read.message)


def test_a_warning_made_an_error_leaves_the_model_alone() -> None:
    model = tiny_bert()
    before = everything(model)
    with pytest.raises(ExtendedPositionsWarning):
        extend_positions(model, None, AFTER)
    assert same_tensors(everything(model), before) and model.config.max_position_embeddings == BEFORE


def test_sentence_transformer(tmp_path: Path) -> None:
    package = pytest.importorskip("sentence_transformers")
    model = package.SentenceTransformer(checkpoint(tmp_path / "bert", tiny_bert()), device="cpu")
    expected = model.encode(TEXTS)
    extended(model)
    assert model.max_seq_length == model.tokenizer.model_max_length == AFTER
    assert (model.encode(TEXTS) == expected).all()
    long = ["w5 w6 w7 " * 40 + "w8", "w5 w6 w7 " * 40 + "w9"]
    assert not (model.encode(long[:1]) == model.encode(long[1:])).all()
    model.save(str(tmp_path / "saved"))
    again = package.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert again.max_seq_length == AFTER and (again.encode(long) == model.encode(long)).all()


def test_cross_encoder(tmp_path: Path) -> None:
    package = pytest.importorskip("sentence_transformers")
    model = package.CrossEncoder(checkpoint(tmp_path / "bert", classifier(labels=1)), device="cpu")
    extended(model)
    assert model.max_seq_length == AFTER
    assert len(model.predict([("w5 " * 60, "w6 " * 60)])) == 1


def test_peft_model() -> None:
    peft = pytest.importorskip("peft")
    options = {"r": 2, "target_modules": ["query"], "task_type": "SEQ_CLS"}
    model = extended(peft.get_peft_model(classifier(), peft.LoraConfig(**options))).eval()
    assert model(**batch(1, AFTER)).logits.isfinite().all()
    trained = peft.get_peft_model(classifier(), peft.LoraConfig(**options, modules_to_save=["position_embeddings"]))
    with pytest.raises(
        UnsupportedModelError, match="is a ModulesToSaveWrapper instead of a plain.*extend the base model"
    ):
        extend_positions(trained, None, AFTER)


NO_TABLE = "rotary positions and no table: it takes longer texts as it is, so there is nothing to extend"
MPNET = {**SIZES, "relative_attention_num_buckets": 8}
DEBERTA = {**SIZES, "relative_attention": True, "pos_att_type": ["c2p"]}
REFUSED: dict[str, tuple[Any, str]] = {
    "esm": (lambda: tiny_model("esm"), f"EsmModel .esm. has {NO_TABLE}"),
    "modernbert": (lambda: tiny_model("modernbert"), NO_TABLE),
    "eurobert": (lambda: tiny_model("eurobert"), NO_TABLE),
    "nomic_bert": (lambda: tiny_model("nomic_bert"), NO_TABLE),
    "ALiBi": (lambda: tiny_bert(position_embedding_type="alibi"), "has ALiBi and no table: it takes longer texts"),
    "relative key": (
        lambda: tiny_bert(position_embedding_type="relative_key"),
        "has relative positions, which a longer",
    ),
    "mpnet": (lambda: MPNetModel(MPNetConfig(**MPNET)), "MPNetModel .mpnet. has relative positions"),
    "deberta": (lambda: DebertaModel(DebertaConfig(**DEBERTA)), "DebertaModel .deberta. has relative positions"),
    "decoder": (lambda: tiny_bert(is_decoder=True), "is a decoder"),
    "meta": (lambda: tiny_bert().to("meta"), "is on the meta device and has no weights yet. Load them, then extend"),
    "no model": (lambda: nn.Linear(2, 2), "Linear holds 0 transformers models, one is expected"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_refused(name: str) -> None:
    make, message = REFUSED[name]
    model = make()
    before = copy.deepcopy(everything(model))
    with pytest.raises(UnsupportedModelError, match=message):
        extend_positions(model, None, AFTER)
    assert name == "meta" or same_tensors(everything(model), before)


def test_a_table_of_another_length_than_the_configuration() -> None:
    model = BertModel(BertConfig(**SIZES))
    model.config.max_position_embeddings = 50
    with pytest.raises(UnsupportedModelError, match="has 64 rows, and its config.max_position_embeddings is 50"):
        extend_positions(model, None, AFTER)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (BEFORE, {}, "max_positions must be more than the 64 tokens that this BertModel takes already, got 64"),
        (3, {}, "got 3. There is nothing to extend"),
        (True, {}, "max_positions must be a whole number of tokens, got True"),
        (128.0, {}, "max_positions must be a whole number of tokens, got 128.0"),
        ("128", {}, "got '128'"),
        (128, {"how": "mirror"}, "how must be one of tile, interpolate, got 'mirror'"),
        (128, {"tokenizer": "bert"}, "tokenizer must be a transformers tokenizer or None, got str. Load one with"),
    ],
)
def test_arguments_that_are_refused(tokens: Any, options: dict[str, Any], message: str) -> None:
    model = tiny_bert()
    before = everything(model)
    with pytest.raises(ConfigError, match=message):
        extend_positions(model, **{"tokenizer": None, "max_positions": tokens, **options})
    assert same_tensors(everything(model), before)


def test_roberta_counts_usable_tokens() -> None:
    with pytest.raises(ConfigError, match="more than the 62 tokens that this RobertaModel takes already, got 62"):
        extend_positions(tiny_model("roberta"), None, 62)
    assert extended(tiny_model("roberta"), 63).config.max_position_embeddings == 65
