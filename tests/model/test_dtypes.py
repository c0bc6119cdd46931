"""Patched models in other dtypes: autocast, and casts before or after patching."""

import copy

import pytest
import torch
from tiny_models import batch, hidden, loss_of, on_valid, tiny_bert, tiny_model
from torch import Tensor, nn

import bert_cluster

# Rounding of bfloat16 and float16 through two layers, relative to the largest value.
TOLERANCES = {torch.bfloat16: 4e-2, torch.float16: 5e-3}


def difference(left: Tensor, right: Tensor) -> float:
    return float((left.float() - right.float()).abs().max() / right.float().abs().max())


def dtypes_of_attention(model: nn.Module) -> list[torch.dtype]:
    """A list that fills with the dtypes that the patched layers return."""
    seen: list[torch.dtype] = []
    for module in model.modules():
        if hasattr(module, "clustered_attention"):
            module.register_forward_hook(lambda module, given, output: seen.append(output[0].dtype))
    return seen


@pytest.mark.parametrize("family", ["bert", "eurobert", "modernbert", "esm"])
def test_autocast(family: str) -> None:
    """Rotary families hand over q and k in float32 and v in bfloat16."""
    model, inputs = tiny_model(family), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact = hidden(model, inputs)
        bert_cluster.patch(model, topk=14)
        seen = dtypes_of_attention(model)
        patched = hidden(model, inputs)
    assert difference(on_valid(patched, inputs), on_valid(exact, inputs)) < TOLERANCES[torch.bfloat16]
    assert set(seen) == {torch.bfloat16}
    assert all(layer.calls["exact"] == 0 for layer in bert_cluster.info(model).layers if layer.method != "full")


def test_autocast_in_training() -> None:
    model, inputs = bert_cluster.patch(tiny_bert(), clusters=3, topk=4), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, inputs)
    loss.backward()
    gradient = model.encoder.layer[0].attention.self.query.weight.grad
    assert gradient.dtype == torch.float32
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 1e-2


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_casting_before_or_after_patching_is_the_same(dtype: torch.dtype) -> None:
    inputs = batch()
    exact = on_valid(hidden(tiny_bert().to(dtype), inputs), inputs)
    before = bert_cluster.patch(tiny_bert().to(dtype), topk=14)
    after = bert_cluster.patch(tiny_bert(), topk=14).to(dtype)
    assert torch.equal(hidden(before, inputs), hidden(after, inputs))
    assert difference(on_valid(hidden(after, inputs), inputs), exact) < TOLERANCES[dtype]
    bert_cluster.unpatch(after)
    assert torch.equal(on_valid(hidden(after, inputs), inputs), exact)


def test_double() -> None:
    inputs = batch()
    model = tiny_bert().double()
    exact = on_valid(hidden(model, inputs), inputs)
    bert_cluster.patch(model, topk=14)
    assert difference(on_valid(hidden(model, inputs), inputs), exact) < 1e-6
    assert (on_valid(hidden(model, inputs), inputs) - exact).abs().max() < 1e-12 * exact.abs().max()


def test_a_copy_may_be_cast_alone() -> None:
    model, inputs = bert_cluster.patch(tiny_bert(), clusters=3, topk=4), batch()
    expected = hidden(model, inputs)
    half = copy.deepcopy(model).half()
    assert hidden(half, inputs).dtype == torch.float16
    assert torch.equal(hidden(model, inputs), expected)


@pytest.mark.filterwarnings("ignore:cuda_ops runs on its PyTorch reference")  # its subject is not speed
def test_shapes_on_the_meta_device() -> None:
    model = bert_cluster.patch(tiny_bert(), clusters=3, topk=4).to("meta")
    inputs = {name: tensor.to("meta") for name, tensor in batch().items()}
    assert hidden(model, inputs).shape == (3, 14, 32)
    assert hidden(model, inputs).is_meta


@pytest.mark.cuda
def test_moving_to_a_gpu_before_or_after_patching() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    inputs = {name: tensor.cuda() for name, tensor in batch().items()}
    exact = on_valid(hidden(tiny_bert().cuda(), inputs), inputs)
    for model in (bert_cluster.patch(tiny_bert().cuda(), topk=14), bert_cluster.patch(tiny_bert(), topk=14).cuda()):
        assert difference(on_valid(hidden(model, inputs), inputs), exact) < 2e-5
