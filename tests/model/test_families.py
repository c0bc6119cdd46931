"""Every family that dispatches through transformers' registries: with K >= N a patched model is the unpatched one."""

import pytest
import torch
from tiny_models import FAMILIES, WINDOWED, batch, hidden, installed, on_valid, tiny_model

import bert_cluster

# Exact attention in another order of summation, through two to four layers of float32.
TOLERANCE = 2e-5


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    if not installed(request.param):
        pytest.skip(f"the installed transformers has no {request.param}")
    return str(request.param)


@pytest.mark.parametrize("method", ["improved-clustered", "refined-clustered"])
def test_all_keys_exact_is_the_unpatched_model(family: str, method: str) -> None:
    model = tiny_model(family)
    inputs = batch()
    exact = on_valid(hidden(model, inputs), inputs)
    whole = hidden(model, {"input_ids": inputs["input_ids"]})

    bert_cluster.patch(model, method=method, clusters=3, topk=14)
    patched = on_valid(hidden(model, inputs), inputs)
    without_mask = hidden(model, {"input_ids": inputs["input_ids"]})

    scale = exact.abs().max()
    assert (patched - exact).abs().max() <= TOLERANCE * scale
    assert (without_mask - whole).abs().max() <= TOLERANCE * scale
    layers = bert_cluster.info(model).layers
    windowed = WINDOWED.get(family, ())
    calls = 2 * model.config.num_hidden_layers if family == "albert" else 2
    assert len(layers) == (1 if family == "albert" else model.config.num_hidden_layers)
    for index, layer in enumerate(layers):
        ran = layer.calls["clustered"] + layer.calls["reference"]
        assert (ran, layer.calls["exact"]) == ((0, calls) if index in windowed else (calls, 0)), layer.name


def test_small_budgets_change_the_model(family: str) -> None:
    """The test above can fail: the calls it counts are clustered ones."""
    model = tiny_model(family)
    inputs = batch()
    exact = on_valid(hidden(model, inputs), inputs)
    bert_cluster.patch(model, method="improved-clustered", clusters=2, topk=1)
    patched = on_valid(hidden(model, inputs), inputs)
    assert torch.isfinite(patched).all()
    assert (patched - exact).abs().max() > 100 * TOLERANCE * exact.abs().max()


def test_unpatch_gives_the_same_bits(family: str) -> None:
    model = tiny_model(family)
    inputs = batch()
    before = hidden(model, inputs)
    bert_cluster.patch(model, clusters=2, topk=1)
    hidden(model, inputs)
    bert_cluster.unpatch(model)
    assert torch.equal(hidden(model, inputs), before)


@pytest.mark.parametrize("method", ["clustered", "improved-clustered", "refined-clustered"])
def test_fewer_key_heads(method: str) -> None:
    """EuroBERT with two key heads for four query heads equals the same model with its key heads repeated."""
    if not installed("eurobert"):
        pytest.skip("the installed transformers has no eurobert")
    grouped = tiny_model("eurobert")
    repeated = tiny_model("eurobert", num_key_value_heads=4)
    state = grouped.state_dict()
    for name, tensor in state.items():
        if "k_proj" in name or "v_proj" in name:
            state[name] = tensor.unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    repeated.load_state_dict(state)
    inputs = batch()
    outputs = [
        on_valid(hidden(bert_cluster.patch(model, method=method, clusters=3), inputs), inputs)
        for model in (grouped, repeated)
    ]
    assert torch.allclose(*outputs, rtol=0, atol=float(TOLERANCE * outputs[0].abs().max()))
