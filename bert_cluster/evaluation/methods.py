"""From flags and stored settings to the methods that a command compares."""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_cluster.config import AUTO, GROWTH, METHODS, ClusterConfig
from bert_cluster.errors import BertClusterError
from bert_cluster.evaluation.errors import OptionError
from bert_cluster.evaluation.options import FULL, cluster_fields


@dataclass(frozen=True)
class Method:
    """One entry of `--attention`; `config` is None for full attention (the model as it is)."""

    name: str
    config: ClusterConfig | None
    origin: str  # of the settings: "defaults", "flags", "checkpoint", "file", or one of the latter two "and flags"

    def settings(self) -> dict[str, Any]:
        """What identifies this method's results in the output folder: the settings, and what "auto" stands for in them."""
        if self.config is None:
            return {"cluster_config": None}
        settings: dict[str, Any] = {"cluster_config": self.config.to_dict()}
        if json.dumps(AUTO) in json.dumps(settings):  # in the settings of all layers or of one
            settings["auto"] = {str(least): budgets for least, budgets in GROWTH.items()}
        return settings


def choose_methods(options: argparse.Namespace, stored: ClusterConfig | None) -> tuple[Method, ...]:
    """The methods to run, in the order given; by default full and the stored settings, or full and the default method.

    `--attention` replaces stored settings whole, as an explicit argument of `patch` does. Field flags apply to every
    method that has the field.

    Args:
        options: parsed flags of `add_attention_options` and `--seed`.
        stored: settings found in the checkpoint's config.json.
    """
    flags = {field.name: getattr(options, field.name) for field in cluster_fields()}
    flags = {name: value for name, value in flags.items() if value is not None}
    file = None if options.cluster_config is None else read_cluster_config(options.cluster_config)
    names = _names(options.attention, file or stored)
    given = file if file is not None else (stored if options.attention is None else None)
    origin = "file" if file is not None else "checkpoint"
    if file is not None and file.method not in names:
        raise OptionError(
            f"--cluster_config {options.cluster_config} is for {file.method}, which --attention does not name "
            f"({' '.join(names)}). Add it there, or leave --attention out."
        )
    methods = tuple(_method(name, given, origin, flags, options.seed) for name in names)
    _check_flags_used(flags, methods)
    return methods


def read_cluster_config(path: str | Path) -> ClusterConfig:
    """Read `--cluster_config FILE`; errors name the file."""
    try:
        return ClusterConfig.load(path)
    except FileNotFoundError as error:
        raise OptionError(f"--cluster_config: there is no file {path}.") from error
    except OSError as error:
        raise OptionError(f"--cluster_config {path} cannot be read: {error.strerror}. Give a file.") from error
    except (BertClusterError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise OptionError(f"--cluster_config {path}: {error}") from error


def _names(attention: list[str] | None, settings: ClusterConfig | None) -> tuple[str, ...]:
    if attention is None:
        settings = settings or ClusterConfig()
        if settings.method == FULL and settings.layers:
            raise OptionError(
                f"The settings have method {FULL} and other methods for single layers ({', '.join(map(str, settings.layers))}). "
                f"Write the clustered method as `method`, and set the exact layers to {FULL}."
            )
        return (FULL, settings.method) if settings.method != FULL else (FULL,)
    for name in attention:
        if attention.count(name) > 1:
            raise OptionError(
                f"--attention names {name} twice. Each method has one folder in OUTPUT_DIR: name it once."
            )
    return tuple(attention)


def _method(name: str, given: ClusterConfig | None, origin: str, flags: Mapping[str, Any], seed: int | None) -> Method:
    if name == FULL:
        return Method(FULL, None, "defaults")
    from_given = given is not None and given.method == name
    config = given if given is not None and from_given else ClusterConfig(method=name)
    changes = {field: value for field, value in flags.items() if _applies(field, name)}
    if seed is not None:
        changes["seed"] = seed
    if from_given and dataclasses.replace(config, **changes) != config:
        origin = f"{origin} and flags"
    elif not from_given:
        origin = "flags" if changes else "defaults"
    return Method(name, dataclasses.replace(config, **changes).with_defaults(), origin)


def _applies(field: str, method: str) -> bool:
    """Budget fields belong to the methods that have them; fields outside the table (layers, exact_below) to all."""
    return field in METHODS[method] or not any(field in values for values in METHODS.values())


def _check_flags_used(flags: Mapping[str, Any], methods: tuple[Method, ...]) -> None:
    names = [method.name for method in methods if method.name != FULL]
    for field in flags:
        if not any(_applies(field, name) for name in names):
            raise OptionError(
                f"--{field} changes nothing: none of the methods of this run ({', '.join(m.name for m in methods)}) has it."
            )
