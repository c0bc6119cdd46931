"""Batches: sorted, whole, padded right or left, and the share of padding."""

import pytest
import torch

from bert_cluster.evaluation.batches import Batch, Collator, plan_batches

LENGTHS = [[5, 9, 3, 9, 1, 7, 2], [4, 4, 8]]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("chunk_tokens", [1, 20, 10_000])
def test_every_input_runs_once_and_neighbours_are_alike(batch_size: int, chunk_tokens: int) -> None:
    plan = plan_batches(LENGTHS, batch_size, chunk_tokens=chunk_tokens)
    seen = sorted((batch.part, index) for batch in plan.batches for index in batch.indices)
    assert seen == [(part, index) for part, lengths in enumerate(LENGTHS) for index in range(len(lengths))]
    for batch in plan.batches:
        own = [LENGTHS[batch.part][index] for index in batch.indices]
        assert own == sorted(own, reverse=True)
        assert (batch.length, batch.tokens) == (max(own), sum(own))
    assert all(len({batch.part for batch in chunk}) == 1 for chunk in plan.chunks)
    assert plan.tokens == sum(map(sum, LENGTHS))


def test_sorting_saves_padding_and_the_share_is_counted() -> None:
    plan = plan_batches([[2, 10, 2, 10]], 2)
    assert plan.padded_share == 0.0
    assert plan_batches([[2, 10]], 2).padded_share == pytest.approx(8 / 20)
    fixed = plan_batches([[2, 10]], 2, pad_to=16)
    assert fixed.padded_tokens == 32
    assert fixed.padded_share == pytest.approx(20 / 32)
    assert plan_batches([[]], 2).padded_share == 0.0


def test_chunks_close_when_they_hold_enough_tokens() -> None:
    plan = plan_batches([[10] * 8], 2, chunk_tokens=40)
    assert [len(chunk) for chunk in plan.chunks] == [2, 2]


class Padder:
    pad_token_id, pad_token_type_id = 9, 7

    def __init__(self, side: str):
        self.padding_side = side


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_goes_to_the_tokenizers_side(side: str) -> None:
    inputs = [{"input_ids": [1, 2, 3], "token_type_ids": [0, 0, 1]}, {"input_ids": [4], "token_type_ids": [0]}]
    batch = Collator(Padder(side), [inputs])(Batch(0, (0, 1), 4, 4))
    if side == "right":
        expected = {"input_ids": [[1, 2, 3, 9], [4, 9, 9, 9]], "attention_mask": [[1, 1, 1, 0], [1, 0, 0, 0]]}
    else:
        expected = {"input_ids": [[9, 1, 2, 3], [9, 9, 9, 4]], "attention_mask": [[0, 1, 1, 1], [0, 0, 0, 1]]}
    for name, rows in expected.items():
        assert torch.equal(batch[name], torch.tensor(rows))
    assert (batch["token_type_ids"] == 7).sum() == 4
