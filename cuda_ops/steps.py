"""Budgets that depend on the length of a row: the argument `longer` of `refined_clustered`.

In the schema it is a flat list, five numbers a step. A batch row takes the last step whose `tokens` it reaches, by its
own valid tokens, so that neither the batch nor its padding changes anything.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """The budgets of rows with at least `tokens` valid tokens."""

    tokens: int
    clusters: int
    topk: int
    key_clusters: int
    sample: int


def steps_of(clusters: int, topk: int, key_clusters: int, sample: int, longer: Sequence[int]) -> list[Step]:
    """All steps, ascending; the first from 0 tokens on."""
    width = len(Step._fields)
    return [
        Step(0, clusters, topk, key_clusters, sample),
        *(Step(*longer[i : i + width]) for i in range(0, len(longer), width)),
    ]


def largest(steps: Sequence[Step]) -> Step:
    """Of each budget the largest: the shape of the decisions."""
    return Step(*(max(values) for values in zip(*steps, strict=True)))
