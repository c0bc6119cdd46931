"""What holds for any inputs of the fused operators: decisions are optimal, and values right given the decisions."""

import numpy as np
import oracle
import torch
from operator_cases import Inputs, accumulation, compose, numpy
from tolerance import assert_close
from torch import Tensor

import cuda_ops
from cuda_ops import reference


def exact_rows(inputs: Inputs) -> Tensor:
    """(B,) bool: the batch rows with fewer than exact_below valid tokens."""
    batch, _, tokens, _ = inputs.q.shape
    count = torch.full((batch,), tokens) if inputs.mask is None else inputs.mask.sum(1)
    return count < inputs.exact_below


def check_clusters(inputs: Inputs, assignment: Tensor) -> None:
    """The codes are right to rounding, the clusters what K-means in Hamming space makes of them; exact rows have -1."""
    codes = cuda_ops.hash_vectors(inputs.q, inputs.planes, mask=inputs.mask)
    q, _, _, mask = inputs.numpy()
    slack = q.shape[3] * torch.finfo(accumulation(inputs.q.dtype)).eps
    oracle.check_codes(codes.numpy(), q, numpy(inputs.planes), mask, slack)
    expected, _ = oracle.cluster_codes(codes.numpy(), mask, inputs.planes.shape[0], inputs.clusters, inputs.iterations)
    expected[exact_rows(inputs).numpy()] = -1
    assert assignment.dtype == torch.int32
    np.testing.assert_array_equal(assignment.numpy(), expected)


def check_top_keys(inputs: Inputs, assignment: Tensor, top: Tensor) -> None:
    """Each cluster's keys are its best to a score tolerance of 8 eps |centroid| |key|; -1 in exact rows."""
    q, k, _, mask = inputs.numpy()
    exact = exact_rows(inputs).numpy()
    assert top.dtype == torch.int32 and (top.numpy()[exact] == -1).all()
    centroids = oracle.group_mean(q, assignment.numpy(), inputs.clusters, inputs.scale)
    norms = [np.linalg.norm(np.nan_to_num(x), axis=-1).max(initial=0) for x in (centroids, k)]
    tolerance = 8 * torch.finfo(accumulation(inputs.q.dtype)).eps * norms[0] * norms[1]
    rows = ~exact
    valid = None if mask is None else mask[rows]
    oracle.check_top_keys(
        top.numpy()[rows], oracle.centroid_scores(centroids[rows], k[rows], valid), valid, inputs.topk, tolerance
    )


def same_dtype_reference(inputs: Inputs, assignment: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's result in the inputs' dtype, given the decisions: output and log mass."""
    given = compose(reference, inputs, assignment, top)
    full = reference.full_attention(inputs.q, inputs.k, inputs.v, inputs.mask, inputs.scale)
    exact = exact_rows(inputs)[:, None, None]
    return torch.where(exact[..., None], full[0], given[0]), torch.where(exact, full[1], given[1])


def check_values(inputs: Inputs, out: Tensor, log_mass: Tensor, assignment: Tensor, top: Tensor) -> None:
    assert out.dtype == inputs.q.dtype and out.shape == inputs.q.shape
    assert log_mass.dtype == accumulation(inputs.q.dtype)
    assert out.transpose(1, 2).is_contiguous(), f"the output is not laid out (B, N, H, D): strides {out.stride()}"
    expected = oracle.improved_clustered(
        *inputs.numpy(), assignment.numpy(), top.numpy(), inputs.scale, inputs.exact_below
    )
    same_dtype = same_dtype_reference(inputs, assignment, top)
    assert_close("out", out, expected[0], same_dtype[0])
    assert_close("log mass", log_mass, expected[1], same_dtype[1])
    assert_close("out", out, expected[0])
    assert_close(
        "log mass", log_mass, expected[1], scale=max(1.0, np.abs(expected[1][np.isfinite(expected[1])]).max(initial=0))
    )


def check_improved(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, log_mass, assignment, top = results = inputs.improved()
    check_clusters(inputs, assignment)
    check_top_keys(inputs, assignment, top)
    check_values(inputs, out, log_mass, assignment, top)
    return results


def check_clustered(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    out, log_mass, assignment = results = inputs.clustered()
    check_clusters(inputs, assignment)
    batch, heads = inputs.q.shape[:2]
    check_values(inputs, out, log_mass, assignment, torch.full((batch, heads, inputs.clusters, 0), -1).int())
    return results
