"""`calibrate` on tiny models: the promise, the model afterwards, resuming, texts of every kind."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bert_cluster
from bert_cluster import ClusterConfig
from bert_cluster.calibration import Calibration, Timings, run
from bert_cluster.calibration.laboratory import Laboratory
from bert_cluster.calibration.texts import encode


@pytest.fixture
def calibration(tokenizer: Any, candidates: Any, fast: Callable[..., Timings]) -> Callable[..., Calibration]:
    """calibration(model, texts, **options) with timings by formula."""

    def call(model: nn.Module, texts: Any, **options: Any) -> Calibration:
        given = {"candidates": candidates, "timings": fast(), "progress": False, **options}
        return run(model, tokenizer, texts, **given)

    return call


def hidden_error(model: Any, tokenizer: Any, texts: list[str], config: ClusterConfig) -> float:
    """The mean error by another way than the package's: text by text, patched and not."""
    errors = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            full = model(**inputs).last_hidden_state
            bert_cluster.patch(model, config)
            ours = model(**inputs).last_hidden_state
            bert_cluster.unpatch(model)
        errors.append(float((ours - full).norm() / full.norm()))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("target", [0.003, 0.02, 0.1])
def test_the_target_is_kept(
    target: float, calibration: Callable[..., Calibration], tiny: Any, tokenizer: Any, texts: list[str]
) -> None:
    model = tiny()
    result = calibration(model, texts, target=target)
    assert result.error <= target and result.held_out is not None
    assert result.held_out.low is not None and result.held_out.low <= target and result.held_out.texts == 4
    missed = [note for note in result.notes if "by what the draw of so few texts explains" in note]
    assert bool(missed) == (result.held_out.value > target)
    measured = hidden_error(model, tokenizer, texts, result.config) if result.reached else 0.0
    told = (8 * result.error + 4 * result.held_out.value) / 12
    assert measured == pytest.approx(told, rel=0.05, abs=1e-5)


def test_the_target_is_kept_on_texts_of_tomorrow(
    calibration: Callable[..., Calibration], tiny: Any, tokenizer: Any, texts: list[str]
) -> None:
    model = tiny()
    tomorrow, today = texts[1::3], [text for text in texts if text not in texts[1::3]]
    result = calibration(model, today, target=0.02)
    assert result.reached and hidden_error(model, tokenizer, tomorrow, result.config) <= 0.02


def test_a_generator_of_texts(calibration: Callable[..., Calibration], tiny: Any, texts: list[str]) -> None:
    result = calibration(tiny(), (text for text in texts), target=0.02)
    assert result.config == calibration(tiny(), texts, target=0.02).config
    assert not any("left out" in note for note in result.notes)


def test_a_wider_target_is_not_slower(calibration: Callable[..., Calibration], tiny: Any, texts: list[str]) -> None:
    times = [sum(layer.seconds for layer in calibration(tiny(), texts, target=t).layers) for t in (0.003, 0.03, 0.6)]
    assert times[0] >= times[1] > times[2]


def test_the_same_input_gives_the_same_settings(
    calibration: Callable[..., Calibration], tiny: Any, texts: list[str]
) -> None:
    first, second = (calibration(tiny(), texts, target=0.02) for _ in range(2))
    assert first.config == second.config and first.curve == second.curve and first.held_out == second.held_out


def test_settings_out_of_reach_stay_full(calibration: Callable[..., Calibration], tiny: Any, texts: list[str]) -> None:
    coarse = [{"method": "clustered", "clusters": 1}]
    result = calibration(tiny(), texts, target=1e-4, candidates=coarse, timings=_flat(coarse))
    assert not result.reached and result.config == ClusterConfig(method="full") and result.error == 0
    assert {layer.reason for layer in result.layers} == {"no budget reaches the target"}
    assert "Every layer stays full: there is nothing to patch." in str(result)
    with pytest.raises(bert_cluster.ConfigError, match="leave every layer exact"):
        bert_cluster.patch(tiny(), result.config)


def _flat(candidates: Any) -> Timings:
    from bert_cluster.calibration.candidates import name_of, settings_of

    seconds = {"full": {2: 1.0}, "exact": {2: 0.9}, **{name_of(each): {2: 0.1} for each in settings_of(candidates)}}
    return Timings(seconds, {})


def test_exact_below_is_the_crossover(
    calibration: Callable[..., Calibration], tiny: Any, texts: list[str], fast: Any
) -> None:
    result = calibration(tiny(), texts, target=0.9, timings=fast(exact=0.02))
    (chosen,) = {layer.exact_below for layer in result.layers}
    assert chosen in (50, 51)  # 0.02 n n = n at 50
    assert result.config.exact_below == chosen and not result.config.layers


def test_texts_below_the_crossover_have_no_error(
    calibration: Callable[..., Calibration], tiny: Any, texts: list[str], fast: Any
) -> None:
    some, every = (calibration(tiny(), texts, target=0.9, timings=fast(exact=exact)) for exact in (0.02, 0.9))
    assert some.texts["shortest"] < some.config.exact_below < some.texts["longest"]
    assert 0 < some.error < 0.95 * every.error
    alone = [(ours.error, theirs.error) for ours, theirs in zip(some.layers, every.layers, strict=True)]
    assert all(ours and theirs and ours < 0.95 * theirs for ours, theirs in alone)


def test_texts_too_short_to_cluster_run_exact(
    calibration: Callable[..., Calibration], tiny: Any, texts: list[str], fast: Any
) -> None:
    result = calibration(tiny(), texts, target=0.05, timings=fast(exact=1e-4))
    assert result.config.exact_below > 72 and result.error < 1e-5 and result.reached
    assert "No text is clustered: up to 72 tokens" in str(result)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that calibration could leave behind."""
    tensors = {name: each.clone() for name, each in [*model.named_parameters(), *model.named_buffers()]}
    configs = [
        (id(each.config), copy.deepcopy(vars(each.config))) for each in model.modules() if "config" in vars(each)
    ]
    layers = [vars(each).get("clustered_attention") for each in model.modules()]
    flags = [each.training for each in model.modules()]
    calls = [None if each is None else dict(each.calls) for each in layers]
    return {
        "tensors": tensors,
        "configs": configs,
        "layers": [id(each) for each in layers],
        "calls": calls,
        "flags": flags,
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before["tensors"].keys() == after["tensors"].keys()
    assert all(torch.equal(each, after["tensors"][name]) for name, each in before["tensors"].items())
    assert {**before, "tensors": 0} == {**after, "tensors": 0}


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("patched", [False, True])
def test_the_model_is_what_it_was(
    patched: bool,
    failure: type[BaseException] | None,
    calibration: Callable[..., Calibration],
    tiny: Any,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny()
    if patched:
        bert_cluster.patch(model, method="improved-clustered", clusters=3, layers={1: {"method": "full"}})
        model(torch.arange(5, 12)[None])
    else:
        model.config.clustered_attention = ClusterConfig(topk=3).to_dict()  # stored, not in force
    model.train()
    model.encoder.layer[1].eval()
    before = state_of(model)
    if failure is None:
        calibration(model, texts)
    else:
        measure, count = Laboratory._measure, iter(range(100))

        def failing(self: Laboratory, part: str, choice: Any) -> Any:
            if next(count) == 3:
                raise failure("in the middle")
            return measure(self, part, choice)

        monkeypatch.setattr(Laboratory, "_measure", failing)
        with pytest.raises(failure, match="in the middle"):
            calibration(model, texts)
    assert_same(before, state_of(model))


def test_an_interruption_loses_one_run(
    calibration: Callable[..., Calibration],
    tiny: Any,
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = calibration(tiny(), texts, target=0.02)
    measure, ran = Laboratory._measure, []

    def interrupted(self: Laboratory, part: str, choice: Any) -> Any:
        if len(ran) == 5:
            raise KeyboardInterrupt
        ran.append(choice)
        return measure(self, part, choice)

    monkeypatch.setattr(Laboratory, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibration(tiny(), texts, target=0.02, output_dir=tmp_path)
    again: list[Any] = []

    def counted(self: Laboratory, part: str, choice: Any) -> Any:
        again.append(choice)
        return measure(self, part, choice)

    monkeypatch.setattr(Laboratory, "_measure", counted)
    resumed = calibration(tiny(), texts, target=0.02, output_dir=tmp_path)
    assert resumed.config == whole.config and resumed.held_out == whole.held_out
    assert not [choice for choice in again if choice in ran]
    assert any("5 measurements were taken over" in note for note in resumed.notes)


def test_a_finished_calibration_is_read_back(
    calibration: Callable[..., Calibration], tiny: Any, texts: list[str], tmp_path: Path, forwards: list[int]
) -> None:
    first = calibration(tiny(), texts, output_dir=tmp_path)
    assert forwards
    forwards.clear()
    second = calibration(tiny(), texts, output_dir=tmp_path)
    assert not forwards
    assert second.config == first.config and second.model_seconds == first.model_seconds


@pytest.mark.parametrize("changed", ["weights", "texts"])
def test_another_input_starts_anew(
    changed: str,
    calibration: Callable[..., Calibration],
    tiny: Any,
    texts: list[str],
    tmp_path: Path,
    forwards: list[int],
) -> None:
    calibration(tiny(), texts, output_dir=tmp_path)
    forwards.clear()
    model = tiny()
    if changed == "weights":
        model.encoder.layer[0].output.dense.bias.data[0] += 1
    result = calibration(model, texts if changed == "weights" else texts[1:], output_dir=tmp_path)
    assert forwards
    assert any("everything was measured anew" in note for note in result.notes)


def test_texts_of_any_kind(calibration: Callable[..., Calibration], tiny: Any, texts: list[str]) -> None:
    mixed = ["", "w7", ("w8 w9", texts[0][:60]), " ".join(texts), *texts]
    result = calibration(tiny(), mixed, target=0.05)
    assert result.texts["shortest"] == 2 and result.texts["longest"] == 80
    assert result.texts["calibration"] + result.texts["held_out"] == 16
    assert result.held_out is not None and result.held_out.value <= 0.05


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (2, 1), (3, 1)])
def test_few_texts(
    count: int, held_out: int, calibration: Callable[..., Calibration], tiny: Any, texts: list[str]
) -> None:
    result = calibration(tiny(), texts[:count], target=0.05)
    assert result.texts["held_out"] == held_out and (result.held_out is None) == (held_out == 0)
    assert any("say little about others" in note for note in result.notes)


@pytest.mark.parametrize("kind", ["classifier", "qa"])
@pytest.mark.parametrize(("metric", "target"), [("agreement", 0.9), ("kl", 0.001)])
def test_heads(
    kind: str, metric: str, target: float, calibration: Callable[..., Calibration], tiny: Any, texts: list[str]
) -> None:
    result = calibration(
        tiny(kind, num_labels=2) if kind == "classifier" else tiny(kind), texts, metric=metric, target=target
    )
    assert result.held_out is not None
    assert result.error >= 0.9 if metric == "agreement" else result.error <= 0.001
    assert any(point.chosen for point in result.curve)


def test_layers_that_share_a_module_share_settings(
    tokenizer: Any, candidates: Any, fast: Any, texts: list[str]
) -> None:
    from transformers import AlbertConfig, AlbertModel

    torch.manual_seed(7)
    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "embedding_size": 16,
    }
    model = AlbertModel(AlbertConfig(**sizes, num_hidden_layers=3, max_position_embeddings=80, pad_token_id=1)).eval()
    result = run(model, tokenizer, texts, target=0.2, candidates=candidates, timings=fast(), progress=False)
    assert [layer.layer for layer in result.layers] == [None] and not result.config.layers
    bert_cluster.patch(model, result.config)


def test_what_is_written_is_accepted(
    tokenizer: Any,
    candidates: Any,
    fast: Any,
    tiny: Any,
    texts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from bert_cluster.evaluation.methods import read_cluster_config

    model = tiny()
    options = {"target": 0.02, "candidates": candidates, "timings": fast(), "progress": False}
    config = bert_cluster.calibrate(model, tokenizer, texts, output_dir=tmp_path, **options)
    assert read_cluster_config(tmp_path / "cluster_config.json") == config
    bert_cluster.patch(model, ClusterConfig.load(tmp_path / "cluster_config.json"))
    tiny().save_pretrained(tmp_path / "model")
    loaded = bert_cluster.from_pretrained(tmp_path / "model", tmp_path / "cluster_config.json")
    assert str(bert_cluster.info(loaded)) == str(bert_cluster.info(model))
    stored = json.loads((tmp_path / "calibration.json").read_text())
    assert stored["schema_version"] == 1 and stored["config"] == config.to_dict()
    assert Timings.from_dict(stored["timings"]) == fast()
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "layer  method" in printed and "target <= 0.02" in printed and "4 held-out texts:" in printed


def test_a_head_that_reads_several_texts(calibration: Callable[..., Calibration], tiny: Any, texts: list[str]) -> None:
    plain, found = (calibration(tiny(kind), texts, target=0.02) for kind in ("encoder", "choice"))
    assert found.reached and found.config == plain.config


def test_a_configuration_that_is_no_object(
    calibration: Callable[..., Calibration], tiny: Any, texts: list[str]
) -> None:
    outer = torch.nn.ModuleDict({"encoder": tiny()})
    outer.config = {"labels": 3}  # type: ignore[assignment]
    assert calibration(outer, texts, target=0.02).reached and outer.config == {"labels": 3}


def test_times_are_measured_where_none_are_given(
    calibration: Callable[..., Calibration], tiny: Any, texts: list[str], compiled: None
) -> None:
    result = calibration(tiny(), texts, timings=None)
    measured = result.timings.seconds
    assert set(measured["full"]) == {32, 64, 72} and set(measured["exact"]) >= {32, 64, 72}
    assert all(value > 0 for own in measured.values() for value in own.values())
    assert result.timings.machine["head_size"] == 8 and result.timings.machine["heads"] == 4


def test_packages_around_a_model(
    calibration: Callable[..., Calibration], tiny: Any, tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    packages = pytest.importorskip("sentence_transformers")
    plain = calibration(tiny(), texts, target=0.02)
    tiny().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    outer = packages.SentenceTransformer(str(tmp_path), device="cpu")
    found = calibration(outer, texts, target=0.02)
    assert found.config == plain.config and found.error == plain.error
    assert not bert_cluster.info(outer).layers
    bert_cluster.patch(outer, found.config)


def test_cross_encoders_read_pairs(
    calibration: Callable[..., Calibration], tiny: Any, tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    packages = pytest.importorskip("sentence_transformers")
    pairs = [(text[: len(text) // 3].strip(), text[len(text) // 3 :].strip()) for text in texts]
    plain = calibration(tiny("classifier", num_labels=1), pairs, target=0.02)
    tiny("classifier", num_labels=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    outer = packages.CrossEncoder(str(tmp_path), device="cpu")
    found = calibration(outer, pairs, target=0.02)
    assert found.reached and found.config == plain.config and found.error == plain.error
    bert_cluster.patch(outer, found.config)


def test_layers_with_a_sliding_window_are_no_choice(
    tokenizer: Any, candidates: Any, fast: Any, texts: list[str]
) -> None:
    """They stay exact whatever the settings are: only the global layers are calibrated."""
    from transformers import ModernBertConfig, ModernBertModel

    torch.manual_seed(7)
    sizes: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    special = {"pad_token_id": 1, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    config = ModernBertConfig(
        **sizes, **special, num_hidden_layers=4, global_attn_every_n_layers=3, local_attention=16, initializer_range=0.2
    )
    model = ModernBertModel(config).eval()
    result = run(model, tokenizer, texts, target=0.2, candidates=candidates, timings=fast(), progress=False)
    assert [layer.layer for layer in result.layers] == [0, 3]
    assert result.reached and result.error <= 0.2
    bert_cluster.patch(model, result.config)
    model(**tokenizer(texts[-1], return_tensors="pt"))
    clustered = [sum(layer.calls.values()) - layer.calls["exact"] for layer in bert_cluster.info(model).layers]
    chosen = {each.layer for each in result.layers if each.method != "full"}
    assert chosen and [bool(calls) for calls in clustered] == [layer in chosen for layer in range(4)]


def test_adapters_are_part_of_the_model(calibration: Callable[..., Calibration], tiny: Any, texts: list[str]) -> None:
    peft = pytest.importorskip("peft")
    outer = peft.get_peft_model(tiny("classifier"), peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False))
    found = calibration(outer, texts, target=0.001, metric="kl")
    assert found.reached and found.error <= 0.001
    bert_cluster.patch(outer, found.config)


def test_the_tokenizer_is_saved_as_it_was(tokenizer: Any, texts: list[str]) -> None:
    """Somebody who calibrates pushes the model next."""
    before = tokenizer.backend_tokenizer.to_str()
    assert {len(tokens["input_ids"]) for tokens in encode(tokenizer, texts, 16)} == {16}
    assert tokenizer.backend_tokenizer.to_str() == before
