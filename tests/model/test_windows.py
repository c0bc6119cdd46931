"""Layers with a sliding window: exact, without a product or a mask of all pairs."""

import copy
import warnings
from typing import Any

import pytest
import torch
from tiny_models import (
    WINDOWED,
    WORDS,
    LastHidden,
    batch,
    close,
    hidden,
    installed,
    loss_of,
    mask_of,
    on_valid,
    tiny_model,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    create_bidirectional_sliding_window_mask,
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

import bert_cluster
from bert_cluster import dispatch, windows

REACH = 4  # of the tiny ModernBERT
TOKENS = 131  # five blocks of 32 queries, the last one with three


def padding(kind: str, tokens: int = TOKENS) -> Tensor | None:
    """Two texts: padded on the right, on the left, with holes, with more padding than a window between tokens; or none."""
    places = torch.arange(tokens)
    rows = {
        "right": (places < tokens, places < 53),
        "left": (places >= 7, places >= tokens - 3),
        "holes": (places % 3 != 1, places % 7 == 0),
        "islands": ((places < 5) | (places > 101), places == 64),
    }
    return None if kind == "none" else torch.stack(rows[kind]).long()


def blocked(mask: Tensor | None, tokens: int, reach: int, rows: int = 2) -> Tensor:
    window = sliding_window_bidirectional_mask_function(reach)
    return windows.blocked_mask(window, mask, rows, tokens, reach, torch.device("cpu"))


def whole(mask: Tensor | None, tokens: int, reach: int, rows: int = 2) -> Tensor:
    """The mask that transformers gives SDPA."""
    window = sliding_window_bidirectional_mask_function(reach)
    mask = None if mask is None else mask.bool()
    made = sdpa_mask(
        rows, tokens, tokens, mask_function=window, attention_mask=mask, local_size=reach, allow_is_causal_skip=False
    )
    assert made is not None
    return made


def long_batch(kind: str = "right") -> dict[str, Tensor]:
    words = torch.randint(4, WORDS, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    mask = padding(kind)
    return {"input_ids": words, "attention_mask": torch.ones_like(words) if mask is None else mask}


@pytest.mark.parametrize("kind", ["none", "right", "left", "holes", "islands"])
@pytest.mark.parametrize("tokens", [103, TOKENS, 128])
@pytest.mark.parametrize("reach", [1, 4, 31, 37])
def test_a_mask_in_blocks_shows_the_same_pairs(reach: int, tokens: int, kind: str) -> None:
    mask = padding(kind, tokens)
    expected = whole(mask, tokens, reach)
    found = blocked(mask, tokens, reach)
    assert torch.equal(windows.whole_mask(found, tokens), expected)
    seen = expected.sum()
    behind = found.shape[1] * found.shape[3] - tokens  # queries behind the end see what the last one sees
    assert found.sum() == seen + behind * expected[:, 0, -1].sum()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **named: Any) -> Tensor:
    module = nn.Module()
    module.num_key_value_groups = q.shape[1] // k.shape[1]
    return windows.windowed_attention(module, q, k, v, mask, **named)[0].transpose(1, 2)


def oracle(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Float64, all pairs; 0 where nothing is seen."""
    q, k, v = q.double(), *(each.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
    weights = torch.softmax((scaling * q @ k.transpose(2, 3)).masked_fill(~mask, float("-inf")), -1)
    return weights.nan_to_num(0.0) @ v


@pytest.mark.parametrize("kind", ["none", "right", "left", "holes", "islands"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("reach", [4, 37])
def test_attention_in_blocks_is_exact(reach: int, dtype: torch.dtype, bound: float, kind: str) -> None:
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(2, 6, TOKENS, 7, generator=generator).to(dtype)
    k, v = (torch.randn(2, 3, TOKENS, 7, generator=generator).to(dtype) for _ in range(2))
    mask = padding(kind)
    out = attend(q, k, v, blocked(mask, TOKENS, reach), scaling=0.6)
    expected = oracle(q, k, v, whole(mask, TOKENS, reach), 0.6)
    seen = whole(mask, TOKENS, reach).any(-1).expand(2, 6, TOKENS)  # a query that sees nothing is one of padding
    assert out.dtype == dtype and out.isfinite().all()
    assert (out.double() - expected)[seen].abs().max() <= bound * expected.abs().max()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["none", "right", "left", "holes"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_attention_in_blocks_on_a_gpu(dtype: torch.dtype, bound: float, kind: str) -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 6, TOKENS, 64, generator=generator).to("cuda", dtype) for _ in range(3))
    mask = padding(kind)
    out = attend(q, k, v, blocked(mask, TOKENS, 37).to("cuda"), scaling=0.125)
    pairs = whole(mask, TOKENS, 37).to("cuda")
    expected = oracle(q, k, v, pairs, 0.125)
    seen = pairs.any(-1).expand(2, 6, TOKENS)
    assert (out.double() - expected)[seen].abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize("kind", ["none", "right", "islands"])
def test_gradients_in_blocks(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    leaves = [torch.randn(2, 3, TOKENS, 7, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3)]
    weights = torch.randn(2, 3, TOKENS, 7, dtype=torch.float64, generator=generator)
    mask = padding(kind)
    if mask is not None:
        weights = weights * mask[:, None, :, None]
    found = torch.autograd.grad((attend(*leaves, blocked(mask, TOKENS, 5), scaling=0.6) * weights).sum(), leaves)
    pairs = whole(mask, TOKENS, 5)
    # The oracle's gradient is no number where nothing is seen; its weight is 0.
    pairs = pairs | ~pairs.any(-1, keepdim=True)
    expected = torch.autograd.grad((oracle(*leaves, pairs, 0.6) * weights).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        assert one.isfinite().all() and torch.allclose(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("family", WINDOWED)
def test_a_model_of_long_texts_is_what_it_was(family: str, kind: str) -> None:
    if not installed(family):
        pytest.skip(f"the installed transformers has no {family}")
    inputs, model = long_batch(kind), tiny_model(family, max_position_embeddings=TOKENS)
    exact = copy.deepcopy(model)
    bert_cluster.patch(model, topk=TOKENS)
    assert close(on_valid(hidden(model, inputs), inputs), on_valid(hidden(exact, inputs), inputs))
    for index, layer in enumerate(bert_cluster.info(model).layers):
        assert layer.calls["exact"] == (index in WINDOWED[family])
    bert_cluster.unpatch(model)
    assert torch.equal(hidden(model, inputs), hidden(exact, inputs))


def test_no_mask_of_all_pairs_is_made() -> None:
    model = bert_cluster.patch(tiny_model("modernbert", max_position_embeddings=1024), topk=8, clusters=3)
    numbers = []
    for tokens in (512, 1024):
        words = torch.randint(4, WORDS, (1, tokens))
        mask = mask_of(model, "layers.1.attn", {"input_ids": words, "attention_mask": torch.ones_like(words)})
        assert mask is not None
        numbers.append(mask.numel())
    assert numbers == [512 * (32 + 2 * REACH), 1024 * (32 + 2 * REACH)]


@pytest.mark.parametrize(("tokens", "axes"), [(50, 4), (51, 5)])
def test_short_texts_keep_the_mask_and_the_bits_of_sdpa(tokens: int, axes: int) -> None:
    words = torch.randint(4, WORDS, (2, tokens), generator=torch.Generator().manual_seed(4))
    inputs = {"input_ids": words, "attention_mask": (torch.arange(tokens) < torch.tensor([[tokens], [9]])).long()}
    model = tiny_model("modernbert", global_attn_every_n_layers=2)
    expected = mask_of(model, "layers.1.attn", inputs)
    found = mask_of(bert_cluster.patch(model, topk=8), "layers.1.attn", inputs)
    assert expected is not None and found is not None and found.dim() == axes
    assert torch.equal(found if axes == 4 else windows.whole_mask(found, tokens), expected)


def test_attention_weights_of_a_window() -> None:
    inputs, model = long_batch(), tiny_model("modernbert", max_position_embeddings=TOKENS)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    expected = eager(**inputs, output_attentions=True).attentions
    found = bert_cluster.patch(model, topk=8)(**inputs, output_attentions=True).attentions
    for one, other in zip(found, expected, strict=True):
        assert one.shape == (2, 4, TOKENS, TOKENS)
        assert close(
            one.transpose(1, 2)[inputs["attention_mask"].bool()], other.transpose(1, 2)[inputs["attention_mask"].bool()]
        )


def test_training_with_a_window() -> None:
    inputs, model = long_batch(), tiny_model("modernbert", max_position_embeddings=TOKENS)
    exact = copy.deepcopy(model)
    bert_cluster.patch(model, topk=TOKENS)
    for each in (model, exact):
        loss_of(each, inputs).backward()
    for one, other in zip(model.parameters(), exact.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert (one.grad - other.grad).norm() <= 1e-4 * other.grad.norm() + 1e-7


def test_one_compiled_graph_for_every_long_text() -> None:
    model = bert_cluster.patch(tiny_model("modernbert", max_position_embeddings=256), topk=256, clusters=3)
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for tokens in (61, 128, 131, 250):
        inputs = batch(2, tokens)
        assert close(on_valid(hidden(compiled, inputs), inputs), on_valid(hidden(model, inputs), inputs))
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1


@pytest.mark.parametrize("strict", [False, True])
def test_one_exported_program_for_every_text(strict: bool) -> None:
    """Long and short ones: an exported program has SDPA's mask at every length."""
    model = bert_cluster.patch(tiny_model("modernbert", max_position_embeddings=256), topk=256, clusters=3)
    rows, tokens = Dim("rows", min=1, max=64), Dim("tokens", min=2, max=256)
    shapes = {name: {0: rows, 1: tokens} for name in ("words", "mask")}
    program = torch.export.export(LastHidden(model), tuple(batch(3, 67).values()), dynamic_shapes=shapes, strict=strict)
    for count, length in ((3, 67), (1, 14), (2, 50), (4, 128), (2, 251)):
        inputs = batch(count, length)
        out = program.module()(*inputs.values())
        assert close(on_valid(out, inputs), on_valid(hidden(model, inputs), inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    inputs, model = long_batch(), tiny_model("modernbert", max_position_embeddings=TOKENS)
    expected = on_valid(hidden(model, inputs), inputs)
    exact = on_valid(hidden(copy.deepcopy(model).to(dtype), inputs), inputs).float()
    found = on_valid(hidden(bert_cluster.patch(model.to(dtype), topk=TOKENS), inputs), inputs).float()
    assert (found - expected).norm() <= 1.5 * (exact - expected).norm()


def test_autocast() -> None:
    """Rotary positions leave queries and keys in float32, values are bfloat16."""
    inputs, model = long_batch(), tiny_model("modernbert", max_position_embeddings=TOKENS)
    expected = on_valid(hidden(model, inputs), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        exact = on_valid(hidden(model, inputs), inputs)
        found = on_valid(hidden(bert_cluster.patch(model, topk=TOKENS), inputs), inputs)
    assert (found - expected).norm() <= 1.5 * (exact - expected).norm()


def test_dropout_and_checkpoints_in_training() -> None:
    model = tiny_model("modernbert", max_position_embeddings=TOKENS, global_attn_every_n_layers=2)
    bert_cluster.patch(model, topk=TOKENS)
    inputs, module = long_batch(), model.layers[1].attn
    expected = torch.autograd.grad(loss_of(model, inputs), module.Wqkv.weight)[0]
    with warnings.catch_warnings():  # 5.24 has a newer name for it, which 5.17 does not know
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        model.gradient_checkpointing_enable()
    found = torch.autograd.grad(loss_of(model.train(), inputs), module.Wqkv.weight)[0]
    assert torch.equal(found, expected)
    x, mask = torch.randn(2, 4, TOKENS, 8), blocked(None, TOKENS, REACH)
    kept = dispatch.clustered_attention(module, x, x, x, mask, scaling=0.5)[0]
    torch.manual_seed(0)
    dropped = [dispatch.clustered_attention(module, x, x, x, mask, scaling=0.5, dropout=0.5)[0] for _ in range(200)]
    assert not torch.equal(dropped[0], kept)
    assert (torch.stack(dropped).mean(0) - kept).norm() <= 0.2 * kept.norm()


def test_biased_scores_are_of_all_pairs() -> None:
    module = bert_cluster.patch(tiny_model("modernbert"), topk=8).layers[1].attn
    x, bias, valid = torch.randn(2, 4, TOKENS, 8), torch.randn(1, 4, TOKENS, TOKENS), padding("right")
    assert valid is not None
    mask = blocked(valid, TOKENS, REACH)
    out = dispatch.clustered_attention(module, x, x, x, mask, scaling=0.5, position_bias=bias)[0]
    scores = (0.5 * x @ x.transpose(2, 3) + bias).masked_fill(~windows.whole_mask(mask, TOKENS), float("-inf"))
    expected = (torch.softmax(scores, -1).nan_to_num(0.0) @ x).transpose(1, 2)
    assert torch.allclose(out[valid.bool()], expected[valid.bool()], atol=1e-5)


def our_mask(**named: Any) -> Tensor | None:
    sizes = {
        "batch_size": 2,
        "q_length": TOKENS,
        "kv_length": TOKENS,
        "local_size": REACH,
        "allow_is_causal_skip": False,
    }
    return dispatch.clustered_mask(**{**sizes, "allow_is_bidirectional_skip": True, **named})


def test_only_windows_to_both_sides_are_blocked() -> None:
    window = sliding_window_bidirectional_mask_function(REACH)
    found = our_mask(mask_function=window)
    assert found is not None and windows.is_blocked(found)
    causal = sliding_window_causal_mask_function(REACH)
    others: list[dict[str, Any]] = [
        {"mask_function": causal, "allow_is_bidirectional_skip": False},
        {"mask_function": and_masks(window, bidirectional_mask_function), "allow_is_bidirectional_skip": False},
        {"mask_function": window, "local_size": None, "allow_is_bidirectional_skip": False},
        {"mask_function": window, "q_offset": 1},
        {"mask_function": window, "kv_length": TOKENS + 2},
        {"mask_function": window, "attention_mask": torch.ones(2, TOKENS + 2, dtype=torch.bool)},
    ]
    for named in others:
        mask = our_mask(**named)
        assert mask is not None and mask.shape == (2, 1, TOKENS, named.get("kv_length", TOKENS)), named


def test_a_mask_that_the_caller_adds_is_kept_whole() -> None:
    """Pairs that such a function allows may be farther apart than the window."""
    model = bert_cluster.patch(tiny_model("modernbert"), topk=8)
    states = torch.zeros(1, TOKENS, 32)
    far = create_bidirectional_sliding_window_mask(
        model.config, states, None, or_mask_function=lambda row, head, query, key: key == 0
    )
    assert far is not None and far.shape == (1, 1, TOKENS, TOKENS) and far[..., 0].all()
