"""NaN, infinities, garbage: in padded places they reach nothing, in valid ones they stay in their (batch, head)."""

import numpy as np
import pytest
import torch
from everything import KINDS, Sequence, random_batch, run_backward, run_forward
from operator_cases import DTYPES, Case, pad_with
from tolerance import assert_same_bits
from torch import Tensor

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.instruction_path]
NAN, INF = torch.nan, torch.inf


def run(sequence: Sequence) -> dict[str, Tensor]:
    return run_forward(sequence.inputs) | run_backward(sequence.inputs, sequence.grad)


def with_padding(batch: Sequence, value: float) -> Sequence:
    q, k, v, grad = (
        pad_with(x, batch.inputs.mask, value) for x in (batch.inputs.q, batch.inputs.k, batch.inputs.v, batch.grad)
    )
    return Sequence(batch.inputs.changed(q=q, k=k, v=v), grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, "largest"], ids=str)
def test_padding_reaches_nothing(garbage: float | str, dtype: torch.dtype) -> None:
    batch = random_batch(dtype, N=29, H=4, H_kv=2, D=19, exact_below=12)
    value = torch.finfo(dtype).max if garbage == "largest" else float(garbage)
    expected = run(with_padding(batch, 0.0))
    for name, result in run(with_padding(batch, value)).items():
        assert_same_bits(name, result, expected[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_is_zero_in_outputs_and_gradients(dtype: torch.dtype) -> None:
    batch = with_padding(random_batch(dtype, N=29, H=4, H_kv=2, D=19, exact_below=12), NAN)
    padded = ~batch.inputs.mask
    for name, result in run(batch).items():
        if KINDS.get(name) in ("cluster", "score", "position"):
            continue
        rows = result.transpose(1, 2)[padded]
        expected = -INF if "log_mass" in name else -1 if "assignment" in name else 0
        assert (rows == expected).all(), f"{name} is not {expected} on padding"


@pytest.mark.parametrize("where", ["q", "k", "v", "grad"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bad_values_stay_in_their_batch_and_head(where: str, value: float, dtype: torch.dtype) -> None:
    batch = random_batch(dtype, N=31, H=4, H_kv=2, D=19, exact_below=22)
    valid = batch.inputs.mask[1].nonzero().flatten()
    tensors = {"q": batch.inputs.q, "k": batch.inputs.k, "v": batch.inputs.v, "grad": batch.grad}
    changed = tensors | {where: tensors[where].clone()}
    changed[where][1, 1, valid[3], 5] = value
    changed[where][0, 0, batch.inputs.mask[0].nonzero()[1], 2] = value
    grad = changed.pop("grad")
    results, expected = run(Sequence(batch.inputs.changed(**changed), grad)), run(batch)
    for name in expected:
        own = torch.zeros(expected[name].shape[:2], dtype=torch.bool)
        by_query_head = expected[name].shape[1] == 4
        # Key head 0 serves query heads 0 and 1, key head 1 serves 2 and 3, and gets their gradients.
        for b, h in ((1, 1), (0, 0)):
            key_head = h if where in "kv" else h // 2
            own[b, slice(2 * key_head, 2 * key_head + 2) if by_query_head else key_head] = True
            if where in ("q", "grad") and by_query_head:
                own[b] = False
                own[b, h] = True
        assert_same_bits(name, results[name][~own], expected[name][~own])
        if KINDS.get(name) == "position" or "assignment" in name:
            assert results[name].min() >= -1
            assert results[name].max() < (31 if KINDS[name] == "position" else batch.inputs.clusters)


def test_nan_is_not_swallowed() -> None:
    """What depends on the NaN is NaN: a query's own row, every row for a key, a component of every row for a value."""
    inputs = Case(B=1, H=1, N=23, D=5, K=4, mask="holes").inputs()
    valid = inputs.mask[0].nonzero().flatten()

    def broken(name: str) -> list[Tensor]:
        x = getattr(inputs, name).clone()
        x[0, 0, valid[4], 2] = NAN
        changed = inputs.changed(**{name: x})
        return [changed.improved()[0][0, 0], changed.clustered()[0][0, 0], changed.full()[0][0, 0]]

    for out in broken("q"):
        assert out[valid[4]].isnan().all()
    assert broken("q")[2].isnan().any(1).sum() == 1
    for out in broken("k"):
        assert out[valid].isnan().all()
    for out in broken("v"):
        assert out[valid][:, 2].isnan().all() and not out[:, [0, 1, 3, 4]].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [NAN, INF, -INF, "random bits"], ids=str)
def test_nothing_but_garbage_ends_with_indices_in_range(value: float | str, dtype: torch.dtype) -> None:
    batch = random_batch(dtype, N=41, H=2, D=9, K=7, exact_below=8)

    def garbage(x: Tensor) -> Tensor:
        if value != "random bits":
            return torch.full_like(x, float(value))
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
        limits = torch.iinfo(integer)
        return (
            torch.from_numpy(np.random.RandomState(3).randint(limits.min, limits.max, tuple(x.shape)))
            .to(integer)
            .view(x.dtype)
        )

    inputs = batch.inputs.changed(q=garbage(batch.inputs.q), k=garbage(batch.inputs.k), v=garbage(batch.inputs.v))
    results = run(Sequence(inputs, garbage(batch.grad)))
    for name in ("top_keys", "improved_clustered.top_keys"):
        for b in range(6):
            valid = set(inputs.mask[b].nonzero().flatten().tolist())
            exact = name != "top_keys" and len(valid) < 8
            for row in results[name][b].flatten(0, 1).tolist():
                taken = [j for j in row if j != -1]
                assert (
                    len(taken) == (0 if exact else min(7, len(valid)))
                    and taken == sorted(set(taken))
                    and set(taken) <= valid
                )
    for name in ("cluster_codes.assignment", "improved_clustered.assignment", "clustered.assignment"):
        assignment = results[name].transpose(1, 2)
        assert (assignment[~inputs.mask] == -1).all() and assignment.max() < 5
        if name == "cluster_codes.assignment":
            assert (assignment[inputs.mask] >= 0).all()


def test_garbage_in_the_planes() -> None:
    """A NaN product is not above 0: the bit is 0, and everything else is as usual."""
    inputs = Case(B=6, N=29, P=67).inputs()
    planes = inputs.planes.clone()
    planes[5], planes[66] = NAN, NAN
    zeroed = planes.clone()
    zeroed[5], zeroed[66] = 0, 0
    for name, one, other in zip(
        ("out", "log mass", "assignment", "top keys"),
        inputs.changed(planes=planes).improved(),
        inputs.changed(planes=zeroed).improved(),
        strict=True,
    ):
        assert_same_bits(name, one, other)
