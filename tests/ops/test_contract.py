"""A good PyTorch operator: its schema, fake kernel, autograd and layout hold, and torch.compile keeps one graph."""

from collections.abc import Callable

import pytest
import torch
from everything import random_batch, run_backward, run_forward
from operator_cases import DTYPES, Case, Inputs
from refined_cases import Refined, refined
from tolerance import assert_close, assert_same_bits
from torch import Tensor
from torch._subclasses import FakeTensorMode

import cuda_ops

pytestmark = pytest.mark.usefixtures("backend")


def operator_arguments(dtype: torch.dtype = torch.float32, requires_grad: bool = True) -> dict[str, tuple[object, ...]]:
    """The arguments of every operator, as the schema orders them."""
    inputs = Case(B=2, H=4, H_kv=2, N=11, D=5, C=3, K=2, P=67, exact_below=8).inputs(dtype)
    q, k, v, mask, planes, scale = inputs.q, inputs.k, inputs.v, inputs.mask, inputs.planes, inputs.scale
    codes = cuda_ops.hash_vectors(q, planes, mask=mask)
    assignment, _ = cuda_ops.cluster_codes(codes, mask=mask, bits=67, clusters=3, iterations=2)
    means = cuda_ops.group_mean(q, assignment, clusters=3, scale=scale)
    scores = cuda_ops.centroid_scores(means, k, mask=mask)
    top = cuda_ops.top_keys(scores, mask=mask, topk=2)
    rest, top_mass, _ = cuda_ops.centroid_attention(scores, v, mask=mask, top_keys=top)
    improved, clustered, full = inputs.improved(), inputs.clustered(), inputs.full()
    queries, keys = (cuda_ops.cluster_rows(q, mask, 3, 2, 7), cuda_ops.cluster_rows(k, mask, 4, 2, 7))
    keys = keys.repeat_interleave(2, 1)
    tail = cuda_ops.tail(scores, k, v, keys, top, 4)
    refined_results = cuda_ops.refined_clustered(q, k, v, mask, 3, 2, 4, 1, 2, 7, scale, 8, [9, 5, 3, 2, 7])
    grad = torch.randn(q.shape).to(dtype)

    def leaf(x: Tensor) -> Tensor:
        return x.detach().clone().requires_grad_(requires_grad)

    qkv = leaf(q), leaf(k), leaf(v)
    return {
        "hash_vectors": (q, planes, mask),
        "cluster_codes": (codes, mask, 67, 3, 2),
        "group_mean": (leaf(q), assignment, 3, scale),
        "centroid_scores": (leaf(means), leaf(k), mask),
        "top_keys": (scores, mask, 2),
        "centroid_attention": (leaf(scores), leaf(v), mask, top),
        "exact_attention": (*qkv, assignment, top, leaf(top_mass), scale),
        "group_scatter": (leaf(rest), assignment),
        "full_attention": (*qkv, mask, scale),
        "clustered": (*qkv, mask, planes, 3, 2, scale, 8),
        "improved_clustered": (*qkv, mask, planes, 3, 2, 2, scale, 8),
        "cluster_rows": (q, mask, 4, 2, 7),
        "tail": (leaf(scores.masked_fill(scores.isinf(), 0)), *qkv[1:], keys, top, 4),
        "refined_attention": (*qkv, mask, leaf(means), scores, *map(leaf, tail), queries, keys, top, 1, scale),
        "refined_clustered": (*qkv, mask, 3, 2, 4, 1, 2, 7, scale, 8, [9, 5, 3, 2, 7]),
        "refined_clustered_backward": (grad, q, k, v, mask, *refined_results, 3, 4, 1, scale, 8, [9, 5, 3, 2, 7]),
        "clustered_backward": (grad, q, k, v, mask, *clustered, 3, scale, 8),
        "improved_clustered_backward": (grad, q, k, v, mask, *improved, 3, scale, 8),
        "full_attention_backward": (grad, q, k, v, mask, *full, scale),
    }


FORWARD = ["full_attention", "clustered", "improved_clustered", "refined_clustered"]
STAGES = ["hash_vectors", "cluster_codes", "group_mean", "centroid_scores", "top_keys"]
STAGES += ["centroid_attention", "exact_attention", "group_scatter", "cluster_rows", "tail", "refined_attention"]
OPERATORS = sorted([*STAGES, *FORWARD, *(f"{name}_backward" for name in FORWARD)])


def test_every_operator_is_listed(all_operators: list[str]) -> None:
    assert all_operators == OPERATORS == sorted(operator_arguments())


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str) -> None:
    operator = getattr(torch.ops.cuda_ops, name).default
    results = torch.library.opcheck(operator, operator_arguments()[name])
    assert set(results.values()) == {"SUCCESS"} and len(results) == 4


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck_without_a_mask(name: str) -> None:
    if "mask" not in str(getattr(torch.ops.cuda_ops, name).default._schema):
        return
    operator = getattr(torch.ops.cuda_ops, name).default
    arguments = [None if isinstance(x, Tensor) and x.dtype == torch.bool else x for x in operator_arguments()[name]]
    torch.library.opcheck(operator, tuple(arguments), test_utils=("test_schema", "test_faketensor"))


def as_tuple(x: object) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_fake_results_have_the_real_layout(name: str, dtype: torch.dtype) -> None:
    """Shape, dtype and strides: a compiler plans the memory by them."""
    operator = getattr(torch.ops.cuda_ops, name)
    arguments = operator_arguments(dtype, requires_grad=False)[name]
    real = as_tuple(operator(*arguments))
    with FakeTensorMode() as mode:
        fake = as_tuple(operator(*(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in arguments)))
    for one, other in zip(real, fake, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (tuple(other.shape), other.dtype, other.stride())


@pytest.mark.parametrize("operator", ["improved", "clustered", "full"])
@pytest.mark.parametrize(("B", "N"), [(2, 13), (1, 13), (2, 1), (1, 1), (2, 0)])
def test_outputs_are_laid_out_tokens_before_heads(operator: str, B: int, N: int) -> None:
    """(B, N, H, D) in memory, whatever the layout of q: transformers wants it so, and nothing needs copying."""
    inputs = Case(B=B, N=N).inputs()
    inside = inputs.q.transpose(1, 2).contiguous().transpose(1, 2)
    for q in (inputs.q, inside):
        out, *others = getattr(inputs.changed(q=q), operator)()
        assert out.transpose(1, 2).is_contiguous() and out.stride() == torch.empty(B, N, 3, 7).transpose(1, 2).stride()
        assert all(x.is_contiguous() for x in others)


# torch.compile


def example_of(operator: str) -> Inputs | Refined:
    """Inputs that have a method of this name; refined_clustered's is called run."""
    return refined() if operator == "run" else Case().inputs()


def attend(inputs: Inputs | Refined, operator: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def function(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        out = getattr(inputs.changed(q=2 * q, k=k, v=v, mask=mask), operator)()[0]
        return out.transpose(1, 2).flatten(2) + 1

    return function


@pytest.mark.parametrize("operator", ["improved", "clustered", "full", "run"])
def test_compile_in_one_graph_with_any_length(operator: str) -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    function = attend(example_of(operator), operator)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    for N in (13, 29, 31, 7):
        inputs = Case(N=N).inputs()
        arguments = inputs.q, inputs.k, inputs.v, inputs.mask
        assert_same_bits(f"N={N}", compiled(*arguments), function(*arguments))
    assert len(graphs) == 1, "a new length compiled a new graph"
    assert any("cuda_ops" in str(node.target) for node in graphs[0].graph.nodes)


@pytest.mark.parametrize("operator", ["improved", "clustered", "full", "run"])
def test_compile_gradients(operator: str) -> None:
    """Through AOTAutograd: the fake kernels of the backward operators are used, and lengths stay dynamic."""
    torch._dynamo.reset()
    function = attend(example_of(operator), operator)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for N in (13, 31):
        inputs = Case(N=N).inputs()
        results = []
        for run in (function, compiled):
            leaves = [x.clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
            run(*leaves, inputs.mask).square().sum().backward()
            results.append([x.grad for x in leaves])
        for one, other in zip(*results, strict=True):
            assert_close("gradient", other, one.double())


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # inductor's own imports
def test_compile_with_inductor() -> None:
    """Inductor checks the strides of what an operator returns against its fake kernel's."""
    torch._dynamo.reset()
    inputs = Case(B=1).inputs()

    def function(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return inputs.changed(q=q, k=k, v=v, mask=mask).improved()[0].transpose(1, 2)

    arguments = inputs.q, inputs.k, inputs.v, inputs.mask
    assert_same_bits("out", torch.compile(function, fullgraph=True)(*arguments), function(*arguments))


def test_inputs_are_not_written() -> None:
    """No operator writes to its inputs."""
    for name, arguments in operator_arguments(requires_grad=False).items():
        before = [x.clone() if isinstance(x, Tensor) else x for x in arguments]
        getattr(torch.ops.cuda_ops, name)(*arguments)
        for one, other in zip(arguments, before, strict=True):
            if isinstance(one, Tensor):
                assert_same_bits(name, one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    """The inputs' dtype decides what is computed in; autocast must not lower the products inside."""
    batch = random_batch(dtype, N=31, H=4, H_kv=2, D=19, exact_below=12)
    expected = run_forward(batch.inputs) | run_backward(batch.inputs, batch.grad)
    with torch.autocast("cpu", torch.bfloat16):
        results = run_forward(batch.inputs) | run_backward(batch.inputs, batch.grad)
    for name, result in results.items():
        assert_same_bits(name, result, expected[name])


@pytest.mark.parametrize("name", OPERATORS)
def test_meta_tensors_have_shapes(name: str) -> None:
    arguments = operator_arguments(requires_grad=False)[name]
    operator = getattr(torch.ops.cuda_ops, name)
    meta = as_tuple(operator(*(x.to("meta") if isinstance(x, Tensor) else x for x in arguments)))
    for one, other in zip(as_tuple(operator(*arguments)), meta, strict=True):
        assert other.is_meta
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
