"""The operators' gradients. Decisions (codes, clusters, top keys) are constants, and log masses have no gradient.

The stages' gradients are written in differentiable PyTorch. The fused operators' are operators themselves, whose own
gradient raises: without one, PyTorch would return zeros.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cuda_ops import reference_backward, reference_refined_backward
from cuda_ops.reference_parts import without_autocast
from cuda_ops.reference_refined_parts import Decisions, Tail
from cuda_ops.schemas import LIBRARY, NAMESPACE

Context = Any
Optional = Tensor | None


def _register(
    operator: str, setup_context: Callable[[Context, tuple[Any, ...], Any], None], backward: Callable[..., Any]
) -> None:
    torch.library.register_autograd(f"{NAMESPACE}::{operator}", backward, setup_context=setup_context, lib=LIBRARY)


def _register_decision(operator: str) -> None:
    """Give an operator whose outputs are all decisions no gradient at all."""

    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))
        ctx.inputs = len(inputs)

    def backward(ctx: Context, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * ctx.inputs

    _register(operator, setup_context, backward)


for _operator in ("hash_vectors", "cluster_codes", "cluster_rows", "top_keys"):
    _register_decision(_operator)


_group_mean_backward = without_autocast(reference_backward.group_mean_backward)
_centroid_scores_backward = without_autocast(reference_backward.centroid_scores_backward)
_centroid_attention_backward = without_autocast(reference_backward.centroid_attention_backward)
_exact_attention_backward = without_autocast(reference_backward.exact_attention_backward)
_group_scatter_backward = without_autocast(reference_backward.group_scatter_backward)
_refined_attention_backward = without_autocast(reference_refined_backward.refined_attention_backward)


def _group_mean_context(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, assignment, _, ctx.scale = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(assignment)


def _group_mean_gradient(ctx: Context, grad: Tensor) -> tuple[Optional, ...]:
    (assignment,) = ctx.saved_tensors
    return (_group_mean_backward(grad, assignment, ctx.scale).to(ctx.dtype), None, None, None)


def _centroid_scores_context(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _centroid_scores_gradient(ctx: Context, grad: Tensor) -> tuple[Optional, ...]:
    centroids, k, mask = ctx.saved_tensors
    dcentroids, dk = _centroid_scores_backward(grad, centroids, k, mask)
    return dcentroids, dk.to(k.dtype), None


def _centroid_attention_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.mark_non_differentiable(output[2])


def _centroid_attention_gradient(
    ctx: Context, grad_rest: Tensor, grad_mass: Tensor, grad_log_mass: Optional
) -> tuple[Optional, ...]:
    scores, v, mask, top_keys = ctx.saved_tensors
    dscores, dv = _centroid_attention_backward(grad_rest, grad_mass, scores, v, mask, top_keys)
    return dscores, dv.to(v.dtype), None, None


def _exact_attention_context(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _exact_attention_gradient(ctx: Context, grad: Tensor) -> tuple[Optional, ...]:
    q, k, v, assignment, top_keys, top_mass = ctx.saved_tensors
    dq, dk, dv, dmass = _exact_attention_backward(grad, q, k, v, assignment, top_keys, top_mass, ctx.scale)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, dmass, None


def _group_scatter_context(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, assignment = inputs
    ctx.clusters = values.shape[2]
    ctx.save_for_backward(assignment)


def _group_scatter_gradient(ctx: Context, grad: Tensor) -> tuple[Optional, ...]:
    (assignment,) = ctx.saved_tensors
    return _group_scatter_backward(grad, assignment, ctx.clusters), None


def _tail_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.count = inputs
    ctx.save_for_backward(*tensors)


@without_autocast
def _tail_gradient_of(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    others, rest = arguments[:3], arguments[3:]
    return reference_refined_backward.tail_backward(Tail(grad, *others), *rest)


def _tail_gradient(ctx: Context, *grads: Tensor) -> tuple[Optional, ...]:
    scores, k, v, key_clusters, top_keys = ctx.saved_tensors
    dscores, dk, dv = _tail_gradient_of(*grads, scores, k, v, key_clusters, top_keys, ctx.count)
    return dscores, dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _refined_attention_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.band, ctx.scale = inputs
    ctx.save_for_backward(*tensors)
    ctx.mark_non_differentiable(output[1])


def _refined_attention_gradient(ctx: Context, grad: Tensor, grad_log_mass: Optional) -> tuple[Optional, ...]:
    q, k, v, mask, centroids, scores, *others = ctx.saved_tensors
    tails, decisions = Tail(*others[:4]), Decisions(*others[4:])
    dq, dk, dv, dcentroids, dscores, dtails = _refined_attention_backward(
        grad, q, k, v, mask, centroids, scores, tails, decisions, ctx.band, ctx.scale
    )
    return (
        *(x.to(q.dtype) for x in (dq, dk, dv)),
        None,
        dcentroids,
        dscores,
        *dtails,
        *(None,) * 5,
    )


_register("group_mean", _group_mean_context, _group_mean_gradient)
_register("centroid_scores", _centroid_scores_context, _centroid_scores_gradient)
_register("centroid_attention", _centroid_attention_context, _centroid_attention_gradient)
_register("exact_attention", _exact_attention_context, _exact_attention_gradient)
_register("group_scatter", _group_scatter_context, _group_scatter_gradient)
_register("tail", _tail_context, _tail_gradient)
_register("refined_attention", _refined_attention_context, _refined_attention_gradient)


def _save(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep q, k, v, mask and all outputs; only the first output has a gradient."""
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.mark_non_differentiable(*output[1:])


def _full_attention_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs, output)
    ctx.scale = inputs[4]


def _full_attention_gradient(ctx: Context, grad: Tensor, *_: Optional) -> tuple[Optional, ...]:
    gradients = torch.ops.cuda_ops.full_attention_backward(grad, *ctx.saved_tensors, ctx.scale)
    return (*gradients, None, None)


def _clustered_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs, output)
    _, ctx.clusters, _, ctx.scale, ctx.exact_below = inputs[4:]


def _clustered_gradient(ctx: Context, grad: Tensor, *_: Optional) -> tuple[Optional, ...]:
    gradients = torch.ops.cuda_ops.clustered_backward(
        grad, *ctx.saved_tensors, ctx.clusters, ctx.scale, ctx.exact_below
    )
    return (*gradients, *(None,) * 6)


def _improved_clustered_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs, output)
    _, ctx.clusters, _, _, ctx.scale, ctx.exact_below = inputs[4:]


def _improved_clustered_gradient(ctx: Context, grad: Tensor, *_: Optional) -> tuple[Optional, ...]:
    gradients = torch.ops.cuda_ops.improved_clustered_backward(
        grad, *ctx.saved_tensors, ctx.clusters, ctx.scale, ctx.exact_below
    )
    return (*gradients, *(None,) * 7)


def _refined_clustered_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs, output)
    ctx.clusters, _, ctx.key_clusters, ctx.band, _, _, ctx.scale, ctx.exact_below, ctx.longer = inputs[4:]


def _refined_clustered_gradient(ctx: Context, grad: Tensor, *_: Optional) -> tuple[Optional, ...]:
    gradients = torch.ops.cuda_ops.refined_clustered_backward(
        grad, *ctx.saved_tensors, ctx.clusters, ctx.key_clusters, ctx.band, ctx.scale, ctx.exact_below, ctx.longer
    )
    return (*gradients, *(None,) * 10)


_register("full_attention", _full_attention_context, _full_attention_gradient)
_register("clustered", _clustered_context, _clustered_gradient)
_register("improved_clustered", _improved_clustered_context, _improved_clustered_gradient)
_register("refined_clustered", _refined_clustered_context, _refined_clustered_gradient)


def _register_no_second_derivative(operator: str) -> None:
    """Let the gradient of a gradient raise."""

    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    def backward(ctx: Context, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"{operator} has no second derivative: expected gradients without create_graph=True, got a gradient of a "
            "gradient. Use torch's scaled_dot_product_attention for this layer, or compose the stage operators."
        )

    _register(f"{operator}_backward", setup_context, backward)


for _operator in ("full_attention", "clustered", "improved_clustered", "refined_clustered"):
    _register_no_second_derivative(_operator)
