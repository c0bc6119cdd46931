"""A patched model in one compiled or exported graph, for any batch and length."""

from typing import Any

import pytest
import torch
from tiny_models import LastHidden, batch, close, hidden, loss_of, on_valid, tiny_bert, tiny_model
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import bert_cluster

BUDGETS: dict[str, Any] = {"method": "refined-clustered", "clusters": 3, "topk": 4, "key_clusters": 2, "band": 1}
SHAPES = ((3, 14), (2, 9), (5, 21), (2, 33))
# The other operators of a compiled model may round otherwise, and a cluster decision may flip on that: so K >= N here.
ALL_KEYS: dict[str, Any] = {"clusters": 3, "topk": 64}


def operators(graph: torch.fx.GraphModule) -> list[str]:
    """Names of our operators in a graph, in order."""
    names = [str(node.target).removesuffix(".default") for node in graph.graph.nodes]
    return [name for name in names if name.startswith("cuda_ops.")]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("method", ["clustered", "improved-clustered"])
def test_one_graph_for_any_length(method: str) -> None:
    """aot_eager runs the very operators of eager mode: the same bits."""
    model = bert_cluster.patch(tiny_bert(), method=method, clusters=3)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for rows, tokens in SHAPES:
        inputs = batch(rows, tokens)
        assert torch.equal(hidden(compiled, inputs), hidden(model, inputs))
        frames.append(counter.frame_count)
    assert len(set(frames)) == 1


@pytest.mark.parametrize("family", ["albert", "modernbert", "eurobert", "layoutlm"])
def test_other_families_compile(family: str) -> None:
    model, inputs = bert_cluster.patch(tiny_model(family), **BUDGETS), batch()
    expected = on_valid(hidden(model, inputs), inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(on_valid(hidden(compiled, inputs), inputs), expected)


def test_inductor() -> None:
    model, inputs = bert_cluster.patch(tiny_bert(num_hidden_layers=1), **ALL_KEYS), batch()
    compiled = torch.compile(model, fullgraph=True)
    assert close(on_valid(hidden(compiled, inputs), inputs), on_valid(hidden(model, inputs), inputs))


def test_the_graph_holds_one_operator_a_layer() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    model = bert_cluster.patch(tiny_bert(), **BUDGETS)
    hidden(torch.compile(model, fullgraph=True, backend=backend), batch())
    (graph,) = graphs
    assert operators(graph) == ["cuda_ops.refined_clustered"] * 2


def test_compiled_gradients_are_those_of_eager() -> None:
    inputs = batch()
    gradients = []
    for compiled in (False, True):
        model = bert_cluster.patch(tiny_bert(), **BUDGETS)
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        loss_of(run, inputs).backward()
        gradients.append([parameter.grad for parameter in model.encoder.parameters()])
    for eager, traced in zip(*gradients, strict=True):
        assert torch.allclose(traced, eager, rtol=1e-4, atol=1e-4 * float(eager.abs().max()) + 1e-7)


def test_compiled_calls_are_not_counted_and_info_says_so() -> None:
    model = bert_cluster.patch(tiny_bert(), **BUDGETS)
    hidden(torch.compile(model, fullgraph=True, backend="aot_eager"), batch())
    assert bert_cluster.info(model).layers[0].calls == {"clustered": 0, "exact": 0, "reference": 0}
    assert "not counted" in str(bert_cluster.info(model))


def test_patching_and_unpatching_a_compiled_model() -> None:
    """A graph made before never serves the model as it is now."""
    model, inputs = tiny_bert(), batch()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    exact = hidden(compiled, inputs)
    bert_cluster.patch(compiled, **BUDGETS)
    assert torch.equal(hidden(compiled, inputs), hidden(model, inputs))
    assert not close(hidden(compiled, inputs), exact)
    bert_cluster.patch(compiled, clusters=2, topk=1)
    assert torch.equal(hidden(compiled, inputs), hidden(model, inputs))
    bert_cluster.unpatch(compiled)
    assert torch.equal(hidden(compiled, inputs), exact)


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_any_batch_and_length(strict: bool, tmp_path: Any) -> None:
    model, inputs = bert_cluster.patch(tiny_bert(), **BUDGETS), batch()
    rows, tokens = torch.export.Dim("rows", min=1, max=64), torch.export.Dim("tokens", min=2, max=64)
    dynamic = {name: {0: rows, 1: tokens} for name in ("words", "mask")}
    program = torch.export.export(
        LastHidden(model), (inputs["input_ids"], inputs["attention_mask"]), dynamic_shapes=dynamic, strict=strict
    )
    assert operators(program.graph_module) == ["cuda_ops.refined_clustered"] * 2
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for shape in SHAPES:
        inputs = batch(*shape)
        out = loaded(inputs["input_ids"], inputs["attention_mask"])
        assert torch.equal(out, hidden(model, inputs))
