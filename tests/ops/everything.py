"""All operators on the same inputs, and the part of a batch's results that must equal those of one sequence alone."""

from dataclasses import dataclass

import torch
from operator_cases import Case, Inputs, spread
from torch import Tensor

import cuda_ops

TOKEN, CLUSTER, SCORE, POSITION = "token", "cluster", "score", "position"
"""What a result is about: (B, H, N, ...), (B, H, C, ...), (B, H, C, N), and (B, H, C, K) positions of tokens."""

KINDS = {
    "codes": TOKEN,
    "cluster_codes.assignment": TOKEN,
    "cluster_codes.centroids": CLUSTER,
    "group_mean": CLUSTER,
    "centroid_scores": SCORE,
    "top_keys": POSITION,
    "centroid_attention.rest": CLUSTER,
    "centroid_attention.top_mass": CLUSTER,
    "centroid_attention.log_mass": CLUSTER,
    "exact_attention": TOKEN,
    "group_scatter": TOKEN,
    "improved_clustered.out": TOKEN,
    "improved_clustered.log_mass": TOKEN,
    "improved_clustered.assignment": TOKEN,
    "improved_clustered.top_keys": POSITION,
    "clustered.out": TOKEN,
    "clustered.log_mass": TOKEN,
    "clustered.assignment": TOKEN,
    "full_attention.out": TOKEN,
    "full_attention.log_mass": TOKEN,
}
GRADIENTS = [
    f"{operator}.grad_{x}" for operator in ("improved_clustered", "clustered", "full_attention") for x in "qkv"
]


def run_forward(inputs: Inputs) -> dict[str, Tensor]:
    """Every stage and every fused operator; the stages feed each other."""
    q, k, v, mask, C = inputs.q, inputs.k, inputs.v, inputs.mask, inputs.clusters
    codes = cuda_ops.hash_vectors(q, inputs.planes, mask=mask)
    clusters = cuda_ops.cluster_codes(
        codes, mask=mask, bits=inputs.planes.shape[0], clusters=C, iterations=inputs.iterations
    )
    means = cuda_ops.group_mean(q, clusters[0], clusters=C, scale=inputs.scale)
    scores = cuda_ops.centroid_scores(means, k, mask=mask)
    top = cuda_ops.top_keys(scores, mask=mask, topk=inputs.topk)
    attention = cuda_ops.centroid_attention(scores, v, mask=mask, top_keys=top)
    exact = cuda_ops.exact_attention(q, k, v, clusters[0], top, attention[1], inputs.scale)
    scattered = cuda_ops.group_scatter(attention[0], clusters[0])
    results = [
        codes,
        *clusters,
        means,
        scores,
        top,
        *attention,
        exact,
        scattered,
        *inputs.improved(),
        *inputs.clustered(),
        *inputs.full(),
    ]
    return dict(zip(KINDS, results, strict=True))


def run_backward(inputs: Inputs, grad: Tensor) -> dict[str, Tensor]:
    """Gradients of q, k, v through every fused operator, for the gradient ``grad`` of its output."""
    results = []
    for operator in ("improved", "clustered", "full"):
        leaves = [x.detach().clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
        out = getattr(inputs.changed(q=leaves[0], k=leaves[1], v=leaves[2]), operator)()[0]
        results += torch.autograd.grad(out, leaves, grad)
    return dict(zip(GRADIENTS, results, strict=True))


@dataclass
class Sequence:
    """One batch row: its valid tokens only, (1, H, n, D), and the gradient of its output."""

    inputs: Inputs
    grad: Tensor

    @property
    def tokens(self) -> int:
        return self.inputs.q.shape[2]

    def padded(self, mask: Tensor) -> "Sequence":
        """The sequence at the valid places of mask (N,), NaN everywhere else."""
        q, k, v, grad = (spread(x, mask) for x in (self.inputs.q, self.inputs.k, self.inputs.v, self.grad))
        return Sequence(self.inputs.changed(q=q, k=k, v=v, mask=mask[None]), grad)


def batch_of(sequences: list[Sequence], kind: str, extra: int) -> Sequence:
    """The sequences as one padded batch: each row's valid tokens left, right or with holes, NaN elsewhere."""
    tokens = max(sequence.tokens for sequence in sequences) + extra
    rows = []
    for seed, sequence in enumerate(sequences):
        mask = torch.zeros(tokens, dtype=torch.bool)
        order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
        places = {
            "left": slice(tokens - sequence.tokens, None),
            "right": slice(sequence.tokens),
            "holes": order[: sequence.tokens],
        }
        mask[places[kind]] = True
        rows.append(sequence.padded(mask))
    q, k, v, mask = (torch.cat([getattr(row.inputs, name) for row in rows]) for name in ("q", "k", "v", "mask"))
    return Sequence(rows[0].inputs.changed(q=q, k=k, v=v, mask=mask), torch.cat([row.grad for row in rows]))


def of_one_row(results: dict[str, Tensor], row: int, mask: Tensor) -> dict[str, Tensor]:
    """The part of a batch's results that belongs to one row's valid tokens, as that sequence alone would give it."""
    valid = mask[row].nonzero().flatten()
    rank = torch.full((mask.shape[1],), -2, dtype=torch.int32)
    rank[valid] = torch.arange(len(valid), dtype=torch.int32)
    parts = {}
    for name, result in results.items():
        part, kind = result[row : row + 1], KINDS.get(name, TOKEN)
        if kind == TOKEN:
            part = part[:, :, valid]
        elif kind == SCORE:
            part = part[..., valid]
        elif kind == POSITION:
            assert (part[..., len(valid) :] == -1).all(), f"{name}: more keys than valid tokens"
            part = part[..., : len(valid)]
            part = torch.where(part >= 0, rank[part.clamp(min=0).long()], part)
        parts[name] = part
    return parts


def sequence(tokens: int, dtype: torch.dtype, seed: int, **settings: int) -> Sequence:
    inputs = Case(B=1, N=tokens, mask=None, **settings).inputs(dtype, seed)
    return Sequence(inputs, torch.randn(inputs.q.shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def random_batch(dtype: torch.dtype, seed: int = 0, **settings: int) -> Sequence:
    """Six rows, each masked in its own way."""
    inputs = Case(B=6, **settings).inputs(dtype, seed)
    return Sequence(inputs, torch.randn(inputs.q.shape, generator=torch.Generator().manual_seed(seed)).to(dtype))
