"""The command: flags, data, labels, all methods, scores, files."""

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any

from bert_cluster.evaluation import options as flags
from bert_cluster.evaluation.checkpoints import Checkpoint, find_checkpoint
from bert_cluster.evaluation.command import check_options, evaluate_and_push, print_notes, run_command, write_results
from bert_cluster.evaluation.compare import Question, compare
from bert_cluster.evaluation.errors import CheckpointError, OptionError
from bert_cluster.evaluation.methods import choose_methods
from bert_cluster.evaluation.models import load_model
from bert_cluster.evaluation.processes import Processes
from bert_cluster.evaluation.publishing import add_push_options, method_to_push, push_method
from bert_cluster.lengths import longest_input
from bert_cluster.tokenizing import unchanged
from glue_eval.data import GlueData, load_file, load_hub
from glue_eval.labels import LabelMap, map_labels
from glue_eval.outcome import gather_results, predict, write_method
from glue_eval.tasks import HUB_ID, TASKS, Task, get_task, split_of_file


def new_parser() -> argparse.ArgumentParser:
    """The flags of glue_eval: those of transformers' run_glue, and ours."""
    parser = flags.new_parser("glue-eval", "Evaluate a sequence classifier on a GLUE task, by attention method.")
    flags.add_model_options(parser)
    parser.add_argument("--task_name", required=True, help=f"one of {', '.join(TASKS)}")
    flags.add_data_options(parser, max_seq_length=128)
    parser.add_argument(
        "--validation_file_mismatched", help="MNLI: the mismatched file, evaluated beside --validation_file"
    )
    parser.add_argument(
        "--label_map",
        help="dataset labels of the checkpoint's outputs, in their order (entailment,neutral,contradiction) or by their "
        "names (NAME=label,NAME=label)",
    )
    flags.add_attention_options(parser)
    flags.add_run_options(parser)
    add_push_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = new_parser().parse_args(argv)
    return run_command("glue-eval", options, lambda: evaluate(options))


def evaluate(options: argparse.Namespace) -> None:
    """Everything that the flags ask for."""
    check_options(options)
    evaluate_and_push(options, _evaluate)


def _evaluate(options: argparse.Namespace, processes: Processes) -> Callable[[], None]:
    """Everything but the push; returns what pushes the results, which does nothing where nothing is to be pushed."""
    task = get_task(options.task_name)
    parts = load_data(options, task, processes)
    with processes.main_first():
        checkpoint = find_checkpoint(options, "SEQ_CLS")
    names = output_names(checkpoint, task)
    labels = map_labels(names, task, options.label_map)
    methods = choose_methods(options, checkpoint.stored)
    pushed = method_to_push(options, methods, processes)
    length = longest_input(checkpoint.config, checkpoint.tokenizer, options.max_seq_length)
    if processes.is_main:
        print_notes(_notes(options, parts, labels, length))
    question = Question(
        command="glue_eval",
        settings={
            "task_name": task.name,
            "max_seq_length": length,
            "max_eval_samples": options.max_eval_samples,
        },
        parts=[tokenise(part, checkpoint.tokenizer, length) for part in parts],
        outputs=("logits",),
        per_token=False,
    )

    def load(dtype: str) -> Any:
        from transformers import AutoModelForSequenceClassification

        outputs = {number: task.labels[label] for number, label in enumerate(labels.outputs)} or {0: "score"}
        kwargs: dict[str, Any] = {"dtype": dtype, "device": processes.device, "id2label": outputs}
        return load_model(checkpoint, AutoModelForSequenceClassification, **kwargs)

    comparison = compare(options, question, checkpoint, methods, processes, functools.partial(load, options.dtype))
    if processes.is_main:
        predicted = [
            predict(task, parts, labels, method, run) for method, run in zip(methods, comparison.runs, strict=True)
        ]
        for one in predicted:
            write_method(options, task, parts, one, comparison)
        notes = _notes(options, parts, labels, length)
        results = gather_results(options, task, question, parts, labels, comparison, predicted, notes)
        write_results(results, options.output_dir, plot=not options.no_plot)
        if pushed is not None:
            return functools.partial(push_method, options, pushed, checkpoint, load)
    return lambda: None


def load_data(options: argparse.Namespace, task: Task, processes: Processes) -> list[GlueData]:
    """The parts to evaluate, each cut to --max_eval_samples: one, or two for MNLI. From GLUE on the Hub by default."""
    files = [
        file for file in (options.validation_file or options.test_file, options.validation_file_mismatched) if file
    ]
    if options.validation_file_mismatched and not (options.validation_file and task.name == "mnli"):
        raise OptionError("--validation_file_mismatched belongs to --task_name mnli with --validation_file.")
    if files:
        splits = [split_of_file(task, files[0]), *(task.evaluation_splits[1:] if len(files) > 1 else ())]
        parts = [load_file(file, task, split) for file, split in zip(files, splits, strict=True)]
        if len(parts) > 1 and parts[0].split.suffix == parts[1].split.suffix:
            raise OptionError(
                f"--validation_file {files[0]} is the mismatched file by its name. Exchange the two files."
            )
    else:
        hub = {"cache_dir": options.cache_dir, "token": options.token}
        name, configuration = options.dataset_name or HUB_ID, options.dataset_config_name
        splits = list(task.test_splits if options.do_predict else task.evaluation_splits)
        with processes.main_first():
            parts = [
                load_hub(task, split, dataset_name=name, dataset_config_name=configuration, **hub) for split in splits
            ]
    return [part.head(options.max_eval_samples) for part in parts]


def output_names(checkpoint: Checkpoint, task: Task) -> dict[int, str]:
    """Names of the checkpoint's outputs. An adapter's configuration does not carry them: they are its base's where that
    has names of its own for as many outputs as the adapter's head, else unknown (LABEL_0, ...).

    Raises:
        CheckpointError: the adapter's head has another number of outputs than the task.
    """
    own = {int(number): str(name) for number, name in (checkpoint.config.id2label or {}).items()}
    if checkpoint.adapter is None or checkpoint.adapter.outputs is None:
        return own
    outputs = checkpoint.adapter.outputs
    named = any(name.upper() != f"LABEL_{number}" for number, name in own.items())
    if named and len(own) == outputs:
        return own
    expected = ("score",) if task.is_regression else task.labels
    if outputs != len(expected):
        raise CheckpointError(
            f"{checkpoint.name}: its head has {outputs} outputs, {task.title} needs {len(expected)} "
            f"({', '.join(expected)}). It was trained for another task: check --task_name."
        )
    return {number: f"LABEL_{number}" for number in range(outputs)}


def tokenise(data: GlueData, tokenizer: Any, max_seq_length: int) -> list[dict[str, list[int]]]:
    """Model inputs of every row, truncated, unpadded.

    Raises:
        OptionError: no room beside the special tokens; the tokenizer would cut nothing then.
    """
    if not len(data):
        return []
    columns = [list(column) for column in zip(*data.texts, strict=True)]
    special = tokenizer.num_special_tokens_to_add(pair=len(columns) > 1)
    if max_seq_length <= special:
        raise OptionError(
            f"--max_seq_length {max_seq_length} leaves no room for text: every input has {special} special tokens. "
            f"Raise it to {special + 1} or more."
        )
    with unchanged(tokenizer):
        encoded = tokenizer(*columns, truncation=True, max_length=max_seq_length, padding=False)
    names = list(encoded.keys())
    return [dict(zip(names, values, strict=True)) for values in zip(*(encoded[name] for name in names), strict=True)]


def _notes(options: argparse.Namespace, parts: Sequence[GlueData], labels: LabelMap, length: int) -> list[str]:
    notes = [note for part in parts for note in part.notes]
    notes.append(labels.note)
    if length < options.max_seq_length:
        notes.append(
            f"The model reads at most {length} tokens; --max_seq_length {options.max_seq_length} is cut to that."
        )
    return notes
