"""Improved clustered attention as dense float64 PyTorch, given the decisions.

The source of the expected gradients: autograd differentiates the paper's formula, written densely.

Its values are checked against the oracle, its gradients against finite differences of the oracle (test_gradients.py).
"""

import torch
from operator_cases import Inputs
from torch import Tensor


def masked_softmax(logits: Tensor, keep: Tensor) -> Tensor:
    """Softmax over the places kept; 0 everywhere where there are none."""
    logits = logits.masked_fill(~keep, -torch.inf)
    highest = logits.detach().amax(-1, keepdim=True)
    weights = (logits - torch.where(highest.isfinite(), highest, 0)).exp()
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)


def improved_clustered(
    q: Tensor, k: Tensor, v: Tensor, inputs: Inputs, assignment: Tensor, top: Tensor, detach_mass: bool = False
) -> Tensor:
    """Output (B, H, N, D) in float64 for float64 q, k, v; masks and settings come from ``inputs``.

    ``detach_mass`` holds the mass of the top keys constant, which is a defect of idiap's implementation.
    """
    batch, heads, tokens, _ = q.shape
    groups = heads // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    mask = torch.ones(batch, tokens, dtype=torch.bool) if inputs.mask is None else inputs.mask
    keys = mask[:, None, None, :]

    members = torch.nn.functional.one_hot((assignment + 1).long(), inputs.clusters + 1)[..., 1:].double()
    centroids = inputs.scale * (members.mT @ q) / members.sum(2)[..., None].clamp(min=1)
    attention = masked_softmax(centroids @ k.mT, keys)

    slots = torch.where(top >= 0, top, tokens).long()
    in_top = torch.zeros(*top.shape[:3], tokens + 1, dtype=torch.bool).scatter(3, slots, True)[..., :tokens]
    mass = (attention * in_top).sum(-1, keepdim=True)
    if detach_mass:
        mass = mass.detach()
    own_top = (members @ in_top.double()) > 0
    exact = masked_softmax(inputs.scale * (q @ k.mT), own_top) @ v
    out = (members @ mass) * exact + members @ ((attention * ~in_top) @ v)

    full = masked_softmax(inputs.scale * (q @ k.mT), keys) @ v * mask[:, None, :, None]
    exact_row = (mask.sum(1) < inputs.exact_below)[:, None, None, None]
    return torch.where(exact_row, full, out)


def gradients(
    inputs: Inputs, grad: Tensor, assignment: Tensor, top: Tensor, detach_mass: bool = False
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v in float64 for the gradient ``grad`` of the output."""
    leaves = [x.detach().double().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    return torch.autograd.grad(improved_clustered(*leaves, inputs, assignment, top, detach_mass), leaves, grad.double())
