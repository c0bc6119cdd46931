"""The eval_loss of run_glue, against torch."""

import numpy as np
import pytest
import torch

from glue_eval.outcome import cross_entropy


def test_cross_entropy_is_torchs_and_outputs_that_share_a_label_add_up() -> None:
    random = np.random.RandomState(0)
    logits, labels = 30 * random.standard_normal((9, 3)), random.randint(0, 3, 9)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    assert cross_entropy(logits, labels, (0, 1, 2)) == pytest.approx(expected)
    mapped = torch.nn.functional.cross_entropy(torch.tensor(logits[:, [2, 0, 1]]), torch.tensor(labels)).item()
    assert cross_entropy(logits, labels, (1, 2, 0)) == pytest.approx(mapped)
    shared = torch.tensor(logits).softmax(1)
    two = torch.stack([shared[:, 0], shared[:, 1] + shared[:, 2]], 1)
    expected = -two.gather(1, torch.tensor(np.minimum(labels, 1))[:, None]).log().mean().item()
    assert cross_entropy(logits, np.minimum(labels, 1), (0, 1, 1)) == pytest.approx(expected)
