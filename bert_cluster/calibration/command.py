"""`bert-cluster calibrate`: settings for a saved model from a file of texts."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from bert_cluster.calibration.api import DEFAULT_TARGETS, calibrate
from bert_cluster.calibration.files import SUFFIXES, read_texts
from bert_cluster.calibration.metrics import METRICS, check_target
from bert_cluster.calibration.result import CONFIG_FILE
from bert_cluster.devices import choose_device
from bert_cluster.errors import CalibrationError
from bert_cluster.loading import ADAPTER_CONFIG, MERGE_FIRST, class_of

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def add_calibrate(commands: Any) -> None:
    """Add the command to the subparsers of `bert-cluster`."""
    parser = commands.add_parser(
        "calibrate",
        help="choose the settings of each layer on texts of your own",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument(
        "--texts", required=True, metavar="FILE", help=f"{', '.join(SUFFIXES)}; .txt has one text a line"
    )
    parser.add_argument("--text_column", default="text", help="column of the text in JSON, CSV and TSV")
    parser.add_argument("--second_text_column", help="column of the second text, for models of pairs")
    parser.add_argument("--max_texts", type=int, default=32, help="the first so many texts; 0: all")
    parser.add_argument("--max_tokens", type=int, help="longer texts are cut; default: what the model can read")
    defaults = ", ".join(f"{value} for {name}" for name, value in DEFAULT_TARGETS.items())
    parser.add_argument("--metric", choices=METRICS, default="hidden", help="what the error is")
    parser.add_argument("--target", type=float, help=f"bound of the metric; default: {defaults}")
    parser.add_argument("--output_dir", required=True, help="results; the same command again continues there")
    parser.add_argument("--seed", type=int, default=0, help="of the split into calibration and held-out texts")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:INDEX or mps")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights; auto: the checkpoint's")
    parser.add_argument("--no_plot", action="store_true", help="draw no curve.png (it needs matplotlib)")
    parser.add_argument("--disable_tqdm", action="store_true", help="no progress bar")


def calibrate_saved(options: argparse.Namespace) -> None:
    """Run the command with its parsed flags.

    Raises:
        BertClusterError: what the user can put right.
    """
    check_target(options.metric, DEFAULT_TARGETS[options.metric] if options.target is None else options.target)
    output = Path(options.output_dir)
    if output.exists() and not output.is_dir():
        raise CalibrationError(f"--output_dir {output} is a file. Give a folder.")
    if options.max_texts < 0:
        raise CalibrationError(f"--max_texts must be at least 0, got {options.max_texts}.")
    texts = read_texts(options.texts, options.text_column, options.second_text_column, options.max_texts or None)
    model, tokenizer = load(options.model, options.dtype, options.device, head=options.metric != "hidden")
    calibrate(
        model,
        tokenizer,
        texts,
        target=options.target,
        metric=options.metric,
        max_tokens=options.max_tokens,
        seed=options.seed,
        output_dir=output,
        plot=not options.no_plot,
        progress=not options.disable_tqdm,
    )
    print(
        f"To use it: bert_cluster.patch(model, ClusterConfig.load({str(output / CONFIG_FILE)!r})); to measure it: squad-eval or "
        f"glue-eval with --cluster_config.",
        file=sys.stderr,
    )


def load(place: str, dtype: str, device: str, *, head: bool) -> tuple[Any, Any]:
    """Model, with the head that it was saved with, and tokenizer.

    Raises:
        DeviceError: no such device here.
        CalibrationError: nothing that can be loaded, a PEFT adapter, or missing weights where the head counts.
    """
    if (Path(place) / ADAPTER_CONFIG).exists():
        raise CalibrationError(f"{place} {MERGE_FIRST}")
    chosen_device = choose_device(device)
    try:
        kind = class_of(AutoConfig.from_pretrained(place))
        chosen = "auto" if dtype == "auto" else getattr(torch, dtype)
        model, found = kind.from_pretrained(place, dtype=chosen, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(place)
        model.to(chosen_device)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CalibrationError(f"{place} cannot be loaded: {first}") from error
    if head and found["missing_keys"]:
        raise CalibrationError(
            f"{place} lacks the weights {', '.join(sorted(found['missing_keys']))}: outputs of a random head mean nothing. "
            f"Give a model that was fine-tuned, or --metric hidden."
        )
    return model, tokenizer
