"""The command: flags, data, windows, all methods, answers, scores, files."""

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_cluster.evaluation import options as flags
from bert_cluster.evaluation.bootstrap import Difference, paired_differences
from bert_cluster.evaluation.checkpoints import Checkpoint, find_checkpoint
from bert_cluster.evaluation.command import (
    check_options,
    evaluate_and_push,
    metrics_of,
    print_notes,
    run_command,
    write_metrics,
    write_results,
)
from bert_cluster.evaluation.compare import Comparison, Question, compare
from bert_cluster.evaluation.errors import OptionError
from bert_cluster.evaluation.methods import Method, choose_methods
from bert_cluster.evaluation.models import load_model
from bert_cluster.evaluation.processes import Processes
from bert_cluster.evaluation.publishing import add_push_options, method_to_push, push_method
from bert_cluster.evaluation.results import Agreement, MethodResult, Results, describe_data, finite
from bert_cluster.evaluation.runner import MethodRun
from bert_cluster.evaluation.store import write_json
from bert_cluster.lengths import longest_input
from squad_eval.answers import Answers, choose_answers
from squad_eval.data import SquadData, load_file, load_hub
from squad_eval.scores import example_scores, squad_v1_scores, squad_v2_scores
from squad_eval.windows import Window, make_windows


def new_parser() -> argparse.ArgumentParser:
    """The flags of squad_eval: those of transformers' run_qa, and ours."""
    parser = flags.new_parser("squad-eval", "Evaluate a question answering model on SQuAD, by attention method.")
    flags.add_model_options(parser)
    flags.add_data_options(parser, max_seq_length=384)
    group = parser.add_argument_group("question answering")
    group.add_argument("--doc_stride", type=flags.positive, default=128, help="tokens that windows of a context share")
    group.add_argument("--max_windows", type=flags.positive, help="first windows of each question only; 1: truncation")
    group.add_argument("--n_best_size", type=flags.positive, default=20, help="candidate answers kept")
    group.add_argument("--max_answer_length", type=flags.positive, default=30, help="longest answer in tokens")
    group.add_argument("--version_2_with_negative", action="store_true", help="some questions have no answer")
    group.add_argument(
        "--null_score_diff_threshold",
        type=flags.number,
        default=0.0,
        help="null answer where it scores this much higher",
    )
    flags.add_attention_options(parser)
    flags.add_run_options(parser)
    add_push_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = new_parser().parse_args(argv)
    return run_command("squad-eval", options, lambda: evaluate(options))


@dataclass(frozen=True)
class Answered:
    """One method's answers and how it came to them."""

    method: Method
    run: MethodRun
    answers: Answers
    scores: dict[str, float]


def evaluate(options: argparse.Namespace) -> None:
    """Everything that the flags ask for."""
    check_options(options)
    evaluate_and_push(options, _evaluate)


def _evaluate(options: argparse.Namespace, processes: Processes) -> Callable[[], None]:
    """Everything but the push; returns what pushes the results, which does nothing where nothing is to be pushed."""
    data = load_data(options, processes)
    with processes.main_first():
        checkpoint = find_checkpoint(options, "QUESTION_ANS")
    methods = choose_methods(options, checkpoint.stored)
    pushed = method_to_push(options, methods, processes)
    length = longest_input(checkpoint.config, checkpoint.tokenizer, options.max_seq_length)
    if processes.is_main:
        print_notes(_notes(options, data, length))
    windows = make_windows(
        data.examples,
        checkpoint.tokenizer,
        max_seq_length=length,
        doc_stride=options.doc_stride,
        max_windows=options.max_windows,
    )
    question = Question(
        command="squad_eval",
        settings=_settings(options, length),
        parts=[[window.inputs for window in windows]],
        outputs=("start_logits", "end_logits"),
        per_token=True,
    )

    def load(dtype: str) -> Any:
        return _load(checkpoint, dtype, processes)

    comparison = compare(options, question, checkpoint, methods, processes, functools.partial(load, options.dtype))
    if processes.is_main:
        answered = [
            _answer(options, data, windows, method, run) for method, run in zip(methods, comparison.runs, strict=True)
        ]
        for one in answered:
            _write_method(options, one, len(windows), comparison)
        results = _results(options, question, data, comparison, answered, length)
        write_results(results, options.output_dir, plot=not options.no_plot)
        if pushed is not None:
            return functools.partial(push_method, options, pushed, checkpoint, load)
    return lambda: None


def load_data(options: argparse.Namespace, processes: Processes) -> SquadData:
    """The examples, cut to --max_eval_samples, checked against --version_2_with_negative."""
    file = options.validation_file or options.test_file
    if not file and not options.dataset_name:
        raise OptionError("There is no data: give --validation_file FILE, --test_file FILE or --dataset_name ID.")
    if file:
        data = load_file(file)
    else:
        split = "test" if options.do_predict else "validation"
        hub = {"cache_dir": options.cache_dir, "token": options.token}
        with processes.main_first():
            data = load_hub(options.dataset_name, options.dataset_config_name, split=split, **hub)
    data = data.head(options.max_eval_samples)
    data.require_version(options.version_2_with_negative)
    return data


def _load(checkpoint: Checkpoint, dtype: str, processes: Processes) -> Any:
    from transformers import AutoModelForQuestionAnswering

    return load_model(checkpoint, AutoModelForQuestionAnswering, dtype=dtype, device=processes.device)


def _settings(options: argparse.Namespace, length: int) -> dict[str, Any]:
    """The flags that decide what the model computes. Those that only choose answers may change between runs."""
    return {
        "max_seq_length": length,
        "doc_stride": options.doc_stride,
        "max_windows": options.max_windows,
        "max_eval_samples": options.max_eval_samples,
    }


def _notes(options: argparse.Namespace, data: SquadData, length: int) -> list[str]:
    notes = list(data.notes)
    if length < options.max_seq_length:
        notes.append(
            f"The model reads at most {length} tokens; --max_seq_length {options.max_seq_length} is cut to that."
        )
    return notes


def _answer(
    options: argparse.Namespace, data: SquadData, windows: Sequence[Window], method: Method, run: MethodRun
) -> Answered:
    answers = choose_answers(
        data.examples,
        windows,
        run.outputs[0]["start_logits"],
        run.outputs[0]["end_logits"],
        n_best_size=options.n_best_size,
        max_answer_length=options.max_answer_length,
        version_2_with_negative=options.version_2_with_negative,
        null_score_diff_threshold=options.null_score_diff_threshold,
    )
    if not data.labelled:
        scores: dict[str, float] = {}
    elif options.version_2_with_negative:
        scores = squad_v2_scores(data.examples, answers.texts, answers.null_odds, spans=answers.spans)
    else:
        scores = squad_v1_scores(data.examples, answers.texts)
    return Answered(method, run, answers, scores)


def _write_method(options: argparse.Namespace, one: Answered, windows: int, comparison: Comparison) -> None:
    """OUTPUT_DIR/METHOD: the files of run_qa."""
    folder = Path(options.output_dir) / one.method.name
    write_json(folder / "eval_predictions.json", one.answers.texts)
    write_json(folder / "eval_nbest_predictions.json", finite(one.answers.nbest))
    if one.answers.null_odds is not None:
        write_json(folder / "eval_null_odds.json", finite(one.answers.null_odds))
    write_metrics(folder, metrics_of(one.scores, one.run, 0, windows, len(comparison.plan.batches)))


def _results(
    options: argparse.Namespace,
    question: Question,
    data: SquadData,
    comparison: Comparison,
    answered: Sequence[Answered],
    length: int,
) -> Results:
    names = ("exact", "f1") if options.version_2_with_negative else ("exact_match", "f1")
    full = next((one for one in answered if one.method.config is None), None)
    return Results(
        command="squad_eval",
        task={
            "name": "squad_v2" if options.version_2_with_negative else "squad",
            "title": "SQuAD v2.0" if options.version_2_with_negative else "SQuAD v1.1",
            "primary_scores": ["f1"] if data.labelled else [],
            "score_unit": "percent",
        },
        model=comparison.model,
        data=describe_data([(data.source, len(data.examples), data.labelled)]),
        settings={
            **question.settings,
            "per_device_eval_batch_size": options.per_device_eval_batch_size,
            "n_best_size": options.n_best_size,
            "max_answer_length": options.max_answer_length,
            "null_score_diff_threshold": options.null_score_diff_threshold,
        },
        batches=comparison.batches(),
        environment=comparison.environment,
        methods=[_compared(options, data, one, full, names) for one in answered],
        bootstrap={"samples": options.bootstrap_samples, "level": 0.95, "seed": options.seed or 0},
        notes=[*_notes(options, data, length), *comparison.notes],
    )


def _compared(
    options: argparse.Namespace, data: SquadData, one: Answered, full: Answered | None, names: tuple[str, str]
) -> MethodResult:
    differences, agreement = None, None
    if full is not None and full is not one:
        same = [one.answers.texts[example.id] == full.answers.texts[example.id] for example in data.examples]
        agreement = Agreement("same predictions", float(np.mean(same)))
        if data.labelled:
            differences = _differences(options, data, one, full, names)
    scores = {name: one.scores[name] for name in names} if one.scores else {}
    return MethodResult(one.method, one.run, scores, differences, agreement, one.answers.not_finite)


def _differences(
    options: argparse.Namespace, data: SquadData, one: Answered, full: Answered, names: tuple[str, str]
) -> dict[str, Difference]:
    """Intervals over the questions: both scores are means over them."""

    def scorer(answers: Answers) -> Any:
        each = 100 * example_scores(data.examples, answers.texts, options.version_2_with_negative)
        return lambda indices: dict(zip(names, each[indices].mean(axis=0).tolist(), strict=True))

    return paired_differences(
        scorer(one.answers),
        scorer(full.answers),
        len(data.examples),
        samples=options.bootstrap_samples,
        seed=options.seed or 0,
    )
