"""From flags, a file and stored settings to methods: what wins, and what is refused."""

import argparse
import dataclasses
from pathlib import Path

import pytest

from bert_cluster import ClusterConfig
from bert_cluster.config import GROWTH, METHODS
from bert_cluster.errors import BertClusterError
from bert_cluster.evaluation.errors import OptionError
from bert_cluster.evaluation.methods import choose_methods
from bert_cluster.evaluation.options import add_attention_options, add_run_options, method_names, new_parser

STORED = ClusterConfig(method="improved-clustered", clusters=7, topk=11, bits=63, iterations=10)


def parse(*arguments: str) -> argparse.Namespace:
    parser = new_parser("test", "")
    add_attention_options(parser)
    add_run_options(parser)
    return parser.parse_args([*arguments, "--output_dir", "out"])


def test_every_field_of_cluster_config_is_a_flag_and_every_method_a_choice() -> None:
    options = vars(parse())
    names = {field.name for field in dataclasses.fields(ClusterConfig)} - {"method"}
    assert names <= set(options)
    assert method_names() == ("full", *(name for name in METHODS if name != "full"))


def test_by_default_full_and_the_default_method() -> None:
    full, clustered = choose_methods(parse(), None)
    assert (full.name, full.config) == ("full", None)
    assert clustered.config == ClusterConfig().with_defaults()
    assert clustered.name == ClusterConfig().method


def test_by_default_full_and_the_stored_settings() -> None:
    full, stored = choose_methods(parse(), STORED)
    assert full.config is None
    assert (stored.config, stored.origin) == (STORED, "checkpoint")


def test_attention_replaces_stored_settings_whole() -> None:
    (method,) = choose_methods(parse("--attention", "improved-clustered"), STORED)
    assert method.config == ClusterConfig(method="improved-clustered").with_defaults()
    assert method.origin == "defaults"


def test_flags_apply_to_the_methods_that_have_the_field() -> None:
    options = parse(
        "--attention", "full", "clustered", "improved-clustered", "--topk", "8", "--clusters", "3", "--seed", "5"
    )
    full, clustered, improved = choose_methods(options, None)
    assert full.config is None
    assert clustered.config == ClusterConfig(method="clustered", clusters=3, seed=5).with_defaults()
    assert improved.config == ClusterConfig(method="improved-clustered", clusters=3, topk=8, seed=5).with_defaults()


def test_a_file_holds_the_settings_of_its_method_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    STORED.save(path)
    _, method = choose_methods(parse("--cluster_config", str(path), "--topk", "4"), None)
    assert method.config == dataclasses.replace(STORED, topk=4)
    assert method.origin == "file and flags"
    for same in ([], ["--topk", "11"]):
        _, method = choose_methods(parse("--cluster_config", str(path), *same), None)
        assert (method.config, method.origin) == (STORED, "file")
    _, method = choose_methods(parse("--seed", "3"), STORED)
    assert (method.config, method.origin) == (dataclasses.replace(STORED, seed=3), "checkpoint and flags")
    _, other, own = choose_methods(
        parse("--cluster_config", str(path), "--attention", "full", "clustered", "improved-clustered"), None
    )
    assert (other.config, own.config) == (ClusterConfig(method="clustered").with_defaults(), STORED)


def test_layers_come_as_json() -> None:
    options = parse("--attention", "improved-clustered", "--layers", '{"0": {"method": "full"}}')
    (method,) = choose_methods(options, None)
    assert method.config is not None
    assert dict(method.config.layers[0]) == {"method": "full"}


def test_settings_are_json(tmp_path: Path) -> None:
    (method,) = choose_methods(parse("--attention", "clustered"), None)
    assert method.settings() == {"cluster_config": ClusterConfig(method="clustered").with_defaults().to_dict()}


@pytest.mark.parametrize(
    "flags", [("--attention", "refined-clustered"), ("--clusters", "9", "--layers", '{"1": {"topk": "auto"}}')]
)
def test_settings_say_what_auto_stands_for(flags: tuple[str, ...]) -> None:
    """Other steps are other results: an output folder of theirs must not go on with these."""
    method = choose_methods(parse(*flags), None)[-1]
    assert method.settings()["auto"] == {str(least): budgets for least, budgets in GROWTH.items()}


def test_budgets_left_open_are_written_out() -> None:
    for method, budgets in METHODS.items():
        config = ClusterConfig(method=method).with_defaults()
        assert {name: getattr(config, name) for name in budgets} == budgets
    assert STORED.with_defaults() == STORED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--attention", "full", "full"), "names full twice"),
        (("--attention", "full", "--topk", "3"), r"--topk changes nothing: none of the methods of this run \(full\)"),
        (("--attention", "clustered", "--topk", "3"), "--topk changes nothing"),
        (("--cluster_config", "missing.json"), "there is no file missing.json"),
        (("--cluster_config", "/"), "--cluster_config / cannot be read: Is a directory. Give a file."),
    ],
)
def test_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        choose_methods(parse(*arguments), None)


def test_impossible_budgets_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises((BertClusterError, ValueError), match="clusters"):
        choose_methods(parse("--attention", "clustered", "--clusters", "0"), None)


def test_a_file_for_a_method_that_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    STORED.save(path)
    with pytest.raises(OptionError, match="is for improved-clustered, which --attention does not name"):
        choose_methods(parse("--cluster_config", str(path), "--attention", "full", "clustered"), None)


@pytest.mark.parametrize("content", ["{", '{"method": "magic"}', '{"version": 99}', "[]"])
def test_a_file_that_is_no_cluster_config_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(content)
    with pytest.raises(OptionError, match=r"settings\.json"):
        choose_methods(parse("--cluster_config", str(path)), None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--attention", "magic"),
        ("--layers", "[1]"),
        ("--layers", "{"),
        ("--per_device_eval_batch_size", "0"),
        ("--clu", "3"),
        ("--seed", "-1"),
        ("--seed", "4294967296"),
    ],
)
def test_flags_that_the_parser_refuses(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*arguments)
    assert arguments[0] in capsys.readouterr().err


def test_settings_that_are_clustered_in_single_layers_only_are_not_taken_for_full() -> None:
    stored = ClusterConfig(method="full", layers={1: {"method": "clustered"}})
    with pytest.raises(OptionError, match=r"method full and other methods for single layers \(1\)"):
        choose_methods(parse(), stored)
    assert [method.name for method in choose_methods(parse(), ClusterConfig(method="full"))] == ["full"]
