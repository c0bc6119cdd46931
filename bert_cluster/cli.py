"""The command `bert-cluster`."""

import argparse
import errno
import json
import sys
from pathlib import Path
from typing import Any

from bert_cluster.calibration.command import add_calibrate, calibrate_saved
from bert_cluster.config import CONFIG_KEY, METHODS, ClusterConfig
from bert_cluster.errors import BertClusterError, ConfigError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = new_parser().parse_args(arguments)
    try:
        if options.command == "calibrate":
            calibrate_saved(options)
        else:
            print(describe(Path(options.folder)))
    except BertClusterError as error:
        print(f"bert-cluster: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        print(f"bert-cluster: {error}. What is measured is stored: the same command continues.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bert-cluster: interrupted. The same command continues where it stopped.", file=sys.stderr)
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
    info.add_argument("folder", help="folder with a config.json")
    add_calibrate(commands)
    return parser


def describe(folder: Path) -> str:
    """The settings in a folder's config.json, as text.

    Raises:
        ConfigError: there is no readable config.json, or its settings cannot be read.
    """
    path = folder / "config.json"
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} has no config.json. Give the folder of a saved model.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a JSON object, got {type(data).__name__}.")
    if CONFIG_KEY not in data:
        return f"{folder}: a {data.get('model_type', 'model')} without settings of clustered attention (exact as it is)"
    config = ClusterConfig.from_dict(data[CONFIG_KEY])
    lines = [f"{folder}: a {data.get('model_type', 'model')} with {config.method} attention"]
    shown = config.for_layer(-1)
    lines += [f"  {name} = {getattr(shown, name)}" for name in (*METHODS[config.method], "exact_below", "seed")]
    lines += [
        f"  layer {index}: {' '.join(f'{k}={v}' for k, v in own.items())}" for index, own in config.layers.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
