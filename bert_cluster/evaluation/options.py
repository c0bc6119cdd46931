"""Flags that both evaluation commands have, and the `ClusterConfig` fields as flags."""

import argparse
import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable
from typing import Any

from bert_cluster.config import FULL, METHODS, ClusterConfig
from bert_cluster.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
NOT_FLAGS = ("method", "seed")  # --attention names the methods; --seed is a flag of the whole command


def method_names() -> tuple[str, ...]:
    """Everything that `--attention` takes: full, then the methods of `bert_cluster.config.METHODS`."""
    return (FULL, *(name for name in METHODS if name != FULL))


def cluster_fields() -> tuple[dataclasses.Field[Any], ...]:
    """The fields of `ClusterConfig` that are flags of their own."""
    return tuple(field for field in dataclasses.fields(ClusterConfig) if field.name not in NOT_FLAGS)


def new_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser that takes no abbreviations: `--n` must not turn into a launcher's flag."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Flags that say which checkpoint: names and defaults as in transformers' run_qa and run_glue."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_name_or_path", required=True, help="folder, Hub id, or PEFT adapter folder (merged before it runs)"
    )
    group.add_argument("--base_model_name_or_path", help="base model of an adapter, instead of the one it names")
    group.add_argument("--config_name", help="configuration, if it is not the model's own")
    group.add_argument("--tokenizer_name", help="tokenizer, if it is not the model's own")
    group.add_argument("--model_revision", default="main", help="branch, tag or commit on the Hub")
    group.add_argument("--token", help="Hub token; default: HF_TOKEN or the stored login")
    group.add_argument("--cache_dir", help="where downloads are kept")
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights; auto: the checkpoint's")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:INDEX or mps")


def add_attention_options(parser: argparse.ArgumentParser) -> None:
    """`--attention`, `--cluster_config`, and one flag for each field of `ClusterConfig`."""
    group = parser.add_argument_group("attention")
    group.add_argument(
        "--attention",
        nargs="+",
        choices=method_names(),
        help="methods to compare on the same batches; default: full, and the settings stored in the checkpoint or, "
        f"without any, {ClusterConfig().method}",
    )
    group.add_argument("--cluster_config", metavar="FILE", help="JSON of a ClusterConfig: settings of its method")
    hints = typing.get_type_hints(ClusterConfig)
    for field in cluster_fields():
        parse = _parser_of(hints[field.name])
        group.add_argument(f"--{field.name}", type=parse, default=None, help=_help_of(field.name))


def add_data_options(parser: argparse.ArgumentParser, *, max_seq_length: int) -> None:
    """Flags that say which data and how it is tokenised."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset_name", help="dataset on the Hub, or a folder that datasets.load_dataset reads")
    group.add_argument("--dataset_config_name", help="configuration of that dataset")
    group.add_argument("--validation_file", help="local file to evaluate instead")
    group.add_argument("--test_file", help="local file without labels: predictions, agreement and time only")
    group.add_argument(
        "--do_eval", action="store_true", help="accepted as in the examples; evaluating is all this does"
    )
    group.add_argument("--do_predict", action="store_true", help="take the test split instead of the validation split")
    group.add_argument("--max_eval_samples", type=positive, help="evaluate the first so many examples only")
    group.add_argument("--max_seq_length", type=positive, default=max_seq_length, help="longest input in tokens")
    group.add_argument("--pad_to_max_length", action="store_true", help="pad every batch to max_seq_length")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Flags of the run and of what it writes."""
    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", required=True, help="results; the same command again continues there")
    group.add_argument("--overwrite_output_dir", action="store_true", help="forget the results stored in output_dir")
    group.add_argument("--per_device_eval_batch_size", type=positive, default=8, help="inputs per batch and process")
    group.add_argument(
        "--seed", type=seed, help="of the hash planes and of the bootstrap; default: the settings' own, and 0"
    )
    group.add_argument("--bootstrap_samples", type=positive, default=1000, help="resamples for the intervals")
    group.add_argument("--no_plot", action="store_true", help="write no plot.png (it needs matplotlib)")
    group.add_argument("--disable_tqdm", action="store_true", help="no progress bar")


def same_command(options: argparse.Namespace) -> str:
    """The words for the command that continues this one: given again, --overwrite_output_dir would remove what is stored."""
    return "the same command" + (" without --overwrite_output_dir" if options.overwrite_output_dir else "")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def seed(text: str) -> int:
    """A seed, as `ClusterConfig` and numpy take it."""
    try:
        return ClusterConfig(seed=int(text)).seed
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def number(text: str) -> float:
    """A number, or an infinity; NaN is above and below nothing."""
    value = float(text)
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"must be a number, got {text}")
    return value


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'must be a JSON object such as \'{{"0": {{"method": "full"}}}}\', got {text}')
    return value


def _parser_of(hint: Any) -> Callable[[str], Any]:
    """How a flag of this annotated type is read: int, float, str or JSON object, `| None` left aside."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        options = [option for option in typing.get_args(hint) if option is not types.NoneType]
        # such as `int | Literal["auto"] | None`
        return _parser_of(options[0]) if len(options) == 1 else _number_or_word
    if hint in (int, float, str):
        return hint
    return json_object


def _number_or_word(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _help_of(field: str) -> str:
    defaults = [f"{values[field]} for {name}" for name, values in METHODS.items() if field in values]
    if defaults:
        return f"default: {', '.join(defaults)}"
    return {
        "layers": 'settings of single layers as JSON, such as \'{"0": {"method": "full"}}\'',
        "exact_below": "rows with fewer valid tokens are computed exactly",
    }.get(field, f"ClusterConfig.{field}")
