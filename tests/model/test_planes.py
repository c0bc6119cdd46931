"""The hash planes: frozen, in float32 whatever the model is cast to, and no part of the checkpoint."""

import copy
import hashlib

import numpy as np
import pytest
import torch
from tiny_models import tiny_bert

import bert_cluster
from bert_cluster.planes import random_planes

# sha256 of the little-endian float32 bytes. A change of these numbers changes every published model's decisions.
CHECKSUMS = {
    (63, 64, 0): "d4375a7a34e1dffca081366cc3d1e80ae332a159778ccfe10a94584f52dc1d07",
    (63, 32, 0): "b1cc14641b2a9693ae5ed9d2ddf0bd65526652dad053f57ffa09c0e8c26963b8",
    (256, 128, 4_294_967_295): "525df51e6dada4789b75c5cb03484a0eeacdfaceec7c2cae49f1be071130cc96",
}


def planes_of(model: torch.nn.Module) -> list[torch.Tensor]:
    return [buffer for name, buffer in model.named_buffers() if "planes" in name]


@pytest.mark.parametrize(("bits", "head_size", "seed"), CHECKSUMS)
def test_frozen(bits: int, head_size: int, seed: int) -> None:
    planes = random_planes(bits, head_size, seed)
    assert planes.shape == (bits, head_size)
    assert planes.dtype == torch.float32
    checksum = hashlib.sha256(planes.numpy().astype("<f4").tobytes()).hexdigest()
    assert checksum == CHECKSUMS[bits, head_size, seed]


def test_drawn_in_float64() -> None:
    drawn = np.random.RandomState(5).standard_normal((7, 3))
    assert np.array_equal(random_planes(7, 3, seed=5).numpy(), drawn.astype(np.float32))


def test_more_planes_begin_with_the_fewer() -> None:
    assert torch.equal(random_planes(9, 4)[:5], random_planes(5, 4))


def test_global_random_numbers_play_no_part() -> None:
    np.random.seed(1)
    first = random_planes(5, 4)
    np.random.seed(2)
    torch.manual_seed(2)
    state = np.random.get_state()[1].copy()
    assert torch.equal(random_planes(5, 4), first)
    assert np.array_equal(np.random.get_state()[1], state)


def test_in_a_model_they_are_the_float32_bits() -> None:
    model = bert_cluster.patch(tiny_bert(), method="improved-clustered", bits=10, seed=3)
    planes = planes_of(model)
    assert len(planes) == 2
    assert all(torch.equal(each.view(torch.float32), random_planes(10, 8, seed=3)) for each in planes)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_casting_the_model_leaves_them(cast: str) -> None:
    model = bert_cluster.patch(tiny_bert(), method="improved-clustered", bits=10)
    getattr(model, cast)()
    assert model.encoder.layer[0].attention.self.query.weight.dtype != torch.float32
    assert torch.equal(planes_of(model)[0].view(torch.float32), random_planes(10, 8))


def test_to_a_dtype_leaves_them() -> None:
    model = bert_cluster.patch(tiny_bert(), method="improved-clustered", bits=10).to(torch.bfloat16)
    assert torch.equal(planes_of(model)[0].view(torch.float32), random_planes(10, 8))


def test_copies_have_their_own() -> None:
    model = bert_cluster.patch(tiny_bert(), method="improved-clustered", bits=10)
    other = copy.deepcopy(model)
    assert torch.equal(planes_of(other)[0], planes_of(model)[0])
    assert planes_of(other)[0].data_ptr() != planes_of(model)[0].data_ptr()


def test_no_part_of_the_checkpoint() -> None:
    model = tiny_bert()
    names = list(model.state_dict())
    bert_cluster.patch(model)
    assert list(model.state_dict()) == names


def test_they_follow_the_device() -> None:
    model = bert_cluster.patch(tiny_bert(), method="improved-clustered", bits=10).to("meta")
    assert all(each.is_meta for each in planes_of(model))


def test_unpatched_models_have_none() -> None:
    model = bert_cluster.unpatch(bert_cluster.patch(tiny_bert()))
    assert planes_of(model) == []


def test_exact_layers_have_none() -> None:
    model = bert_cluster.patch(tiny_bert(), method="improved-clustered", layers={0: {"method": "full"}})
    assert len(planes_of(model)) == 1
