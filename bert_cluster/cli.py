"""The command `bert-cluster`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from bert_cluster.calibration.command import add_calibrate, calibrate_saved
from bert_cluster.config import CONFIG_KEY, METHODS, ClusterConfig
from bert_cluster.errors import BertClusterError, ConfigError
from bert_cluster.hub.command import add_push, push_saved
from bert_cluster.loading import network_errors, optional_file


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = new_parser().parse_args(arguments)
    calibrating = options.command == "calibrate"
    try:
        if calibrating:
            calibrate_saved(options)
        elif options.command == "push":
            push_saved(options)
        else:
            print(describe(options.model, revision=options.revision, token=options.token))
    except BertClusterError as error:
        print(f"bert-cluster: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        stored = " What is measured is stored: the same command continues." if calibrating else ""
        print(f"bert-cluster: {' '.join(str(error).split()).rstrip('.')}.{stored}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        told = getattr(error, "__notes__", ["Nothing was changed."])
        sentences = ["The same command continues where it stopped."] if calibrating else told
        print(f"bert-cluster: interrupted. {' '.join(sentences)}", file=sys.stderr)
        return 130
    return 0


def new_parser() -> argparse.ArgumentParser:
    """The parser of the command and its subcommands."""
    parser = argparse.ArgumentParser(prog="bert-cluster", description="Clustered attention for pretrained encoders.")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser(
        "info",
        help="print the settings that a saved model carries, without loading its weights",
    )
    info.add_argument("model", help="folder or Hub repository with a config.json")
    info.add_argument("--revision", help="branch, tag or commit on the Hub")
    info.add_argument("--token", help="Hub token; default: HF_TOKEN or the stored login")
    add_push(commands)
    add_calibrate(commands)
    return parser


def describe(model: str, *, revision: str | None = None, token: str | None = None) -> str:
    """The settings in the config.json of a folder or a repository, as text. No weights are read.

    Raises:
        ConfigError: there is no readable config.json, or its settings cannot be read.
        LoadError: the connection to the Hub broke.
        OSError: no such repository or revision, in transformers' words.
    """
    path = Path(model) / "config.json"
    if Path(model).is_file():
        raise ConfigError(
            f"{model} is a file. Give the folder of a saved model, {Path(model).parent}, or its repository."
        )
    if not Path(model).is_dir():
        with network_errors(model):
            path = optional_file(model, "config.json", {"revision": revision, "token": token}) or path
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if constants.HF_HUB_OFFLINE and not Path(model).is_dir():
            raise ConfigError(
                f"{model} is no folder, and its config.json is not in the cache. The Hub was not asked, for the environment says to "
                f"stay offline (HF_HUB_OFFLINE=1). Unset it to reach the Hub."
            ) from error
        raise ConfigError(f"{model} has no config.json. Give the folder or the repository of a saved model.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a JSON object, got {type(data).__name__}.")
    if data.get(CONFIG_KEY) is None:
        return f"{model}: a {data.get('model_type', 'model')} without settings of clustered attention (exact as it is)"
    config = ClusterConfig.from_dict(data[CONFIG_KEY])
    lines = [f"{model}: a {data.get('model_type', 'model')} with {config.method} attention"]
    shown = config.for_layer(-1)
    lines += [f"  {name} = {getattr(shown, name)}" for name in (*METHODS[config.method], "exact_below", "seed")]
    lines += [
        f"  layer {index}: {' '.join(f'{k}={v}' for k, v in own.items())}" for index, own in config.layers.items()
    ]
    if "library_version" in data[CONFIG_KEY]:
        lines.append(f"  saved by bert-cluster {data[CONFIG_KEY]['library_version']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
