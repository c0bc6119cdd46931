"""Training patched models: gradients, activation checkpointing, dropout, Trainer and LoRA."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SIZES, batch, everything, hidden, loss_of, same_tensors, tiny_bert, tiny_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import bert_cluster
from bert_cluster.errors import AttentionDropoutWarning

BUDGETS: dict[str, Any] = {"method": "improved-clustered", "clusters": 3, "topk": 4, "bits": 16}
NO_DROPOUT = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}


def classifier(**changes: Any) -> BertForSequenceClassification:
    torch.manual_seed(7)
    return BertForSequenceClassification(BertConfig(**{**SIZES, **NO_DROPOUT, **changes}))


def gradients(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    model.zero_grad()
    loss_of(model, inputs).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def alike(left: list[Tensor], right: list[Tensor]) -> bool:
    """Whether two lists of gradients agree to the rounding of float32 through the model.

    Measured by the largest of all: the gradient of a key's bias is zero but for rounding.
    """
    allowed = 2e-5 * max(float(each.abs().max()) for each in right)
    return len(left) == len(right) > 0 and all(
        torch.allclose(a, b, rtol=0, atol=allowed) for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("family", ["bert", "eurobert", "layoutlm", "modernbert"])
def test_gradients_with_all_keys_are_those_of_exact_attention(family: str) -> None:
    model, inputs = tiny_model(family), batch()
    exact = gradients(model, inputs)
    bert_cluster.patch(model, topk=14, clusters=3)
    assert alike(gradients(model, inputs), exact)


def test_activation_checkpointing_changes_no_gradient() -> None:
    inputs = batch()
    plain = bert_cluster.patch(tiny_bert(**NO_DROPOUT), **BUDGETS).train()
    saving = copy.deepcopy(plain)
    with warnings.catch_warnings():  # 5.23 renames a keyword that 5.17 does not know by its new name
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        saving.gradient_checkpointing_enable()
    expected, found = gradients(plain, inputs), gradients(saving, inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert (
        bert_cluster.info(saving).layers[0].calls["clustered"] >= 2
        or bert_cluster.info(saving).layers[0].calls["reference"]
    )


def test_a_training_step_moves_every_weight_of_the_attention() -> None:
    model, inputs = bert_cluster.patch(classifier(), **BUDGETS).train(), batch()
    before = everything(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    first = model(**inputs, labels=torch.tensor([0, 1, 1])).loss
    first.backward()
    optimizer.step()
    moved = {name for name, tensor in everything(model).items() if not torch.equal(tensor, before[name])}
    names = [
        f"bert.encoder.layer.{i}.attention.self.{part}.weight" for i in (0, 1) for part in ("query", "key", "value")
    ]
    assert moved >= set(names)


def test_training_with_dropout_is_clustered_and_warns_once() -> None:
    model = bert_cluster.patch(classifier(attention_probs_dropout_prob=0.3), **BUDGETS).train()
    with pytest.warns(
        AttentionDropoutWarning, match="asks for 0.3. Load it with attention_probs_dropout_prob=0"
    ) as caught:
        for _ in range(2):
            model(**batch(), labels=torch.tensor([0, 1, 1])).loss.backward()
    assert len(caught) == 1
    assert all(layer.calls["exact"] == 0 for layer in bert_cluster.info(model).layers)
    with pytest.warns(AttentionDropoutWarning):
        bert_cluster.patch(classifier(attention_probs_dropout_prob=0.3)).train()(**batch())


def test_evaluation_with_dropout_does_not_warn() -> None:
    hidden(bert_cluster.patch(tiny_bert(attention_probs_dropout_prob=0.3)), batch())


def test_dropout_is_applied_in_layers_that_stay_exact() -> None:
    model = bert_cluster.patch(tiny_bert(hidden_dropout_prob=0.0), layers={0: {"method": "full"}}, **BUDGETS)
    module = model.encoder.layer[0].attention.self.train()
    module.dropout.p = 0.5
    states = torch.randn(2, 9, 32)
    assert not torch.equal(module(states)[0], module(states)[0])


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Ten texts with labels."""

    def __init__(self) -> None:
        self.inputs = batch(10, 40)
        self.labels = torch.arange(10) % 2

    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: tensor[row] for name, tensor in self.inputs.items()} | {"labels": self.labels[row]}


def trainer(model: nn.Module, folder: Path) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], per_device_eval_batch_size=4, max_steps=2, disable_tqdm=True
    )
    return Trainer(model=model, args=arguments, train_dataset=Rows(), eval_dataset=Rows())


def test_trainer_evaluates_and_trains(tmp_path: Path) -> None:
    model = classifier().eval()
    exact = trainer(model, tmp_path).evaluate()["eval_loss"]
    bert_cluster.patch(model, topk=40)
    assert trainer(model, tmp_path).evaluate()["eval_loss"] == pytest.approx(exact, rel=1e-4)
    layers = bert_cluster.info(model).layers
    assert [layer.calls["clustered"] + layer.calls["reference"] for layer in layers] == [3, 3]
    bert_cluster.patch(model, **BUDGETS)
    ours = trainer(model, tmp_path)
    ours.train()
    ours.save_model(str(tmp_path / "saved"))
    again = BertForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    bert_cluster.patch(again)
    model.eval()
    with torch.no_grad():
        assert torch.equal(again(**batch()).logits, model(**batch()).logits)


# LoRA


@pytest.fixture
def lora() -> Any:
    peft = pytest.importorskip("peft")
    return peft, peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS", init_lora_weights=False)


def test_lora_on_a_patched_model(lora: Any) -> None:
    peft, options = lora
    model = bert_cluster.patch(classifier(), **BUDGETS)
    adapted = peft.get_peft_model(model, options)
    adapted(**batch(), labels=torch.tensor([0, 1, 1])).loss.backward()
    assert adapted.base_model.model.bert.encoder.layer[0].attention.self.query.lora_A["default"].weight.grad is not None
    assert [layer.calls["exact"] for layer in bert_cluster.info(adapted).layers] == [0, 0]
    assert bert_cluster.info(adapted).layers[0].calls != {"clustered": 0, "exact": 0, "reference": 0}


def test_patching_an_adapted_model_patches_the_inner_one(lora: Any) -> None:
    peft, options = lora
    torch.manual_seed(5)
    adapted = peft.get_peft_model(classifier(), options).eval()
    config, inputs = adapted.base_model.model.config, batch()
    with torch.no_grad():
        before = adapted(**inputs).logits
        assert bert_cluster.patch(adapted, topk=14) is adapted
        patched = adapted(**inputs).logits
        assert torch.allclose(patched, before, atol=2e-5 * float(before.abs().max()), rtol=0)
        assert adapted.config is adapted.base_model.model.config
        assert [layer.calls["exact"] for layer in bert_cluster.info(adapted).layers] == [0, 0]
        bert_cluster.unpatch(adapted)
        assert torch.equal(adapted(**inputs).logits, before)
    assert adapted.config is adapted.base_model.model.config is config


def test_merging_keeps_the_patch(lora: Any) -> None:
    peft, options = lora
    adapted = peft.get_peft_model(bert_cluster.patch(classifier().eval(), topk=14), options).eval()
    with torch.no_grad():
        before = adapted(**batch()).logits
        merged = adapted.merge_and_unload()
        after = merged(**batch()).logits
    assert torch.allclose(after, before, atol=1e-4 * float(before.abs().max()), rtol=0)
    assert len(bert_cluster.info(merged).layers) == 2
    assert merged.config.clustered_attention["topk"] == 14


def test_an_adapter_does_not_save_the_settings_or_planes(lora: Any, tmp_path: Path) -> None:
    peft, options = lora
    adapted = peft.get_peft_model(bert_cluster.patch(classifier()), options)
    before = everything(adapted)
    adapted.save_pretrained(tmp_path)
    assert same_tensors(everything(adapted), before)
    assert "clustered" not in (tmp_path / "adapter_config.json").read_text()
