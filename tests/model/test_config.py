"""Settings: their limits, their texts, and their way to JSON and back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bert_cluster
from bert_cluster import BertClusterError, ClusterConfig, ConfigError
from bert_cluster.cli import main
from bert_cluster.config import GROWTH, LIMITS, METHODS, LayerSettings

FULL_CONFIG = ClusterConfig(
    method="improved-clustered",
    clusters=9,
    topk=0,
    bits=12,
    iterations=0,
    layers={3: {"method": "clustered", "clusters": 5}, 0: {"method": "full"}, 11: {"exact_below": 7}},
    exact_below=64,
    seed=5,
)


def test_our_defaults() -> None:
    budgets: dict[str, Any] = dict.fromkeys(("clusters", "topk", "key_clusters", "sample"), "auto")
    budgets |= {"band": 4, "rounds": 3}
    assert ClusterConfig().for_layer(0) == LayerSettings("refined-clustered", **budgets)
    assert ClusterConfig().for_layer(0).budgets() == budgets


def test_automatic_budgets_go_by_the_length() -> None:
    settings = ClusterConfig(topk=7).for_layer(0)
    fixed = {"topk": 7, "band": 4, "rounds": 3}
    for tokens in (0, 1, 511, 10**9, *GROWTH, *(least - 1 for least in GROWTH if least)):
        step = max(least for least in GROWTH if least <= tokens)
        assert settings.budgets_at(tokens) == GROWTH[step] | fixed
    names = ("clusters", "topk", "key_clusters", "sample")
    steps = [[least, *((grown | fixed)[name] for name in names)] for least, grown in GROWTH.items() if least]
    assert settings.longer == [number for step in steps for number in step]
    assert list(GROWTH) == sorted(GROWTH) and min(GROWTH) == 0


def test_the_documented_steps_are_the_steps() -> None:
    page = (Path(__file__).parents[2] / "docs" / "long-texts.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith(("| below", "| 768 to", "| 1,536 and more"))]
    documented = [[int(cell.replace(",", "")) for cell in row.split("|")[2:6]] for row in rows]
    assert documented == [list(budgets.values()) for budgets in GROWTH.values()]
    assert list(GROWTH) == [0, 768, 1536]


def test_given_budgets_do_not_grow() -> None:
    settings = ClusterConfig(clusters=25, topk=64, key_clusters=32, sample=256).for_layer(0)
    assert settings.longer == [] and settings.budgets() == settings.budgets_at(10**9)
    paper = ClusterConfig(method="improved-clustered").for_layer(0)
    assert paper.longer == [] and paper.budgets_at(4096)["clusters"] == 25


def test_a_layer_may_fix_what_grows_elsewhere() -> None:
    config = ClusterConfig(clusters="auto", layers={1: {"clusters": 3}, 2: {"method": "improved-clustered"}})
    assert config.for_layer(0).clusters == "auto" and config.for_layer(1).clusters == 3
    assert config.for_layer(2).clusters == 25, "a method without growth keeps its own default"


def test_the_papers_defaults() -> None:
    paper = {"clusters": 25, "bits": 63, "iterations": 10}
    assert ClusterConfig(method="clustered").for_layer(0) == LayerSettings("clustered", **paper)
    improved = ClusterConfig(method="improved-clustered").for_layer(4)
    assert improved == LayerSettings("improved-clustered", topk=32, **paper)
    assert improved.budgets() == {**paper, "topk": 32}
    assert ClusterConfig(method="full").for_layer(0).budgets() == {}


def test_a_layer_has_its_own_values_and_else_the_common_ones() -> None:
    common = {"bits": 12, "iterations": 0, "seed": 5}
    assert FULL_CONFIG.for_layer(1) == LayerSettings("improved-clustered", clusters=9, topk=0, exact_below=64, **common)
    assert FULL_CONFIG.for_layer(3) == LayerSettings("clustered", clusters=5, exact_below=64, **common)
    assert FULL_CONFIG.for_layer(0) == LayerSettings("full", exact_below=64, seed=5)
    assert FULL_CONFIG.for_layer(11).exact_below == 7


@pytest.mark.parametrize(
    "config", [ClusterConfig(), ClusterConfig(clusters="auto"), ClusterConfig(method="clustered", bits=5), FULL_CONFIG]
)
def test_to_json_and_back(config: ClusterConfig, tmp_path: Path) -> None:
    through = json.loads(json.dumps(config.to_dict()))
    assert ClusterConfig.from_dict(through) == config
    config.save(tmp_path / "settings.json")
    assert ClusterConfig.load(tmp_path / "settings.json") == config


def test_json_has_a_version_string_keys_and_no_nulls() -> None:
    assert ClusterConfig().to_dict() == {"version": 1, "method": "refined-clustered", "exact_below": 0, "seed": 0}
    data = FULL_CONFIG.to_dict()
    assert list(data["layers"]) == ["0", "3", "11"]
    assert data["layers"]["3"] == {"method": "clustered", "clusters": 5}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("other", METHODS)
def test_defaults_that_are_written_out_change_no_layer(method: str, other: str) -> None:
    own = {0: {"method": other}, 1: {"exact_below": 7}, 2: {"method": method}}
    for config in (ClusterConfig(method=method, layers=own), replace(FULL_CONFIG, layers={4: {"method": other}})):
        written = config.with_defaults()
        assert [written.for_layer(index) for index in range(6)] == [config.for_layer(index) for index in range(6)]
        assert written.with_defaults() == written == ClusterConfig.from_dict(written.to_dict())


def test_keys_of_layers_become_numbers() -> None:
    config = ClusterConfig.from_dict({"version": 1, "layers": {"1": {"clusters": 3}}})
    assert config.layers == {1: {"clusters": 3}}


def test_changing_the_callers_layers_changes_nothing() -> None:
    layers = {0: {"clusters": 3}}
    config = ClusterConfig(layers=layers)
    layers[0]["clusters"] = 4
    layers[1] = {"clusters": 5}
    assert config.layers == {0: {"clusters": 3}}
    config.to_dict()["layers"]["0"]["clusters"] = 6
    assert config.layers == {0: {"clusters": 3}}


def test_frozen() -> None:
    with pytest.raises(AttributeError, match="cannot assign to field 'clusters'"):
        ClusterConfig().clusters = 3  # type: ignore[misc]


def of(name: str, value: Any) -> ClusterConfig:
    method = next((method for method, budgets in METHODS.items() if name in budgets), "clustered")
    return ClusterConfig(method=method, **{name: value})


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    least, greatest = LIMITS[name]
    assert getattr(of(name, least), name) == least
    assert getattr(of(name, greatest), name) == greatest
    for value in (least - 1, greatest + 1, 2.0, True, "3"):
        auto = " or 'auto'" if name in GROWTH[0] else ""
        message = f"{name} must be a whole number from {least} to {greatest}{auto}, got {value!r}"
        with pytest.raises(ConfigError, match=message) as caught:
            of(name, value)
        assert isinstance(caught.value, BertClusterError)
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "name", ["clusters", "topk", "bits", "iterations", "key_clusters", "band", "rounds", "sample", "exact_below"]
)
def test_limits_of_a_layer(name: str) -> None:
    least, greatest = LIMITS[name]
    for value in (least - 1, greatest + 1, None):
        with pytest.raises(ConfigError, match=rf"layers\[2\] {name} must be a whole number from {least}"):
            ClusterConfig(layers={2: {name: value}})


def test_the_kernels_limits() -> None:
    """What the operators refuse is refused here: 1 to 65536 clusters, up to 256 bits."""
    assert LIMITS["clusters"] == (1, 65536)
    assert LIMITS["bits"] == (1, 256)
    assert LIMITS["topk"][0] == 0
    assert LIMITS["iterations"][0] == 0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"method": "linear"}, f"method must be one of {', '.join(METHODS)}, got 'linear'"),
    ({"method": None}, "method must be one of .* got None"),
    ({"method": ["clustered"]}, r"method must be one of .* got \['clustered'\]"),
    (
        {"method": "improved-clustered", "topk": "auto"},
        r"topk='auto' goes by the text's length in refined-clustered only. Give improved-clustered a whole number, or leave "
        "it out for 32",
    ),
    (
        {"layers": {1: {"method": "clustered", "clusters": "auto"}}},
        r"layers\[1\] clusters='auto' goes by the text's length in refined-clustered only",
    ),
    ({"band": "auto"}, "band must be a whole number from 0 to .*, got 'auto'"),
    ({"method": "full", "clusters": 3}, "clusters=3 means nothing to the method 'full', which has no budgets"),
    ({"method": "clustered", "topk": 3}, "topk=3 means nothing .* has clusters, bits, iterations. Leave it out"),
    ({"layers": [1]}, "layers must map a layer's index to its settings, got list"),
    ({"layers": {-1: {}}}, "layers must have whole numbers from 0 as keys, got -1"),
    ({"layers": {"one": {}}}, "layers must have whole numbers from 0 as keys, got 'one'"),
    ({"layers": {True: {}}}, "layers must have whole numbers from 0 as keys, got True"),
    ({"layers": {1: {}, "1": {}}}, "layers names layer 1 twice"),
    ({"layers": {1: "full"}}, r"layers\[1\] must be a mapping such as .*, got 'full'"),
    ({"layers": {1: {"seed": 3}}}, r"layers\[1\] has no setting 'seed'; known are method, clusters"),
    ({"layers": {1: {"method": "x"}}}, r"layers\[1\]\['method'\] must be one of"),
    ({"layers": {"0": {"method": {}}}}, r"layers\[0\]\['method'\] must be one of .* got {}"),
    (
        {"layers": {1: {"method": "full", "topk": 3}}},
        r"layers\[1\] sets topk, which means nothing to its method 'full'",
    ),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[str(each[0]) for each in WRONG])
def test_what_no_method_can_run_with(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClusterConfig(**values)


def test_a_layer_of_another_method_ignores_common_budgets_it_has_not() -> None:
    config = ClusterConfig(method="improved-clustered", topk=3, layers={1: {"method": "clustered"}})
    assert config.for_layer(1) == LayerSettings("clustered", clusters=25, bits=63, iterations=10)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"version": 2}, "version 2; this bert-cluster reads versions up to 1. Install a newer"),
        ({"version": "1"}, "version '1'; a whole number from 1 is expected"),
        ({"version": True}, "version True"),
        ({"version": 0}, "version 0"),
        ({"version": 1, "colour": 1, "topq": 2}, "Unknown settings colour, topq; known are band, bits, clusters"),
        ([1], "must be a JSON object, got list"),
        (None, "must be a JSON object, got NoneType"),
    ],
)
def test_what_cannot_be_read(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClusterConfig.from_dict(data)


def test_command_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "bert", "clustered_attention": FULL_CONFIG.to_dict()}))
    assert main(["info", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for text in ("a bert with improved-clustered attention", "clusters = 9", "seed = 5", "layer 3: method=clustered"):
        assert text in shown
    config.write_text('{"model_type": "bert"}')
    assert main(["info", str(tmp_path)]) == 0
    assert "a bert without settings of clustered attention" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00"])
def test_a_settings_file_that_is_no_json(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"settings\.json is not JSON: .*\. Give a file that ClusterConfig\.save wrote"
    ):
        ClusterConfig.load(file)
    with pytest.raises(ConfigError, match="is not JSON"):
        bert_cluster.from_pretrained("any/model", file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no config.json. Give the folder or the repository of a saved model"),
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object, got list"),
        ('{"clustered_attention": {"version": 5}}', "version 5"),
    ],
)
def test_command_info_of_a_bad_folder(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert main(["info", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_command_info_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")
    assert main(["info", str(config)]) == 2
    expected = f"bert-cluster: {config} is a file. Give the folder of a saved model, {tmp_path}, or its repository."
    assert expected in capsys.readouterr().err


def test_attention_takes_the_budgets_of_each_rows_length() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 1, 1031, 8, generator=generator)
    mask = torch.arange(1031) < torch.tensor([[1031], [1023]])
    together = bert_cluster.attention(q, k, v, mask)
    for row, tokens in enumerate((1031, 1023)):
        budgets: Any = ClusterConfig().for_layer(0).budgets_at(tokens)
        one = [x[row : row + 1, :, :tokens] for x in (q, k, v)]
        alone = bert_cluster.attention(*one, config=ClusterConfig(**budgets))
        torch.testing.assert_close(together[row : row + 1, :, :tokens], alone, rtol=0, atol=1e-5)
