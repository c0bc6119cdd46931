"""What both commands do around their own task: errors in one sentence, and the files that users of the examples know."""

import argparse
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bert_cluster.errors import BertClusterError
from bert_cluster.evaluation.errors import OptionError
from bert_cluster.evaluation.lock import sole_run
from bert_cluster.evaluation.options import same_command
from bert_cluster.evaluation.plot import draw, require_matplotlib
from bert_cluster.evaluation.processes import Processes, join_processes
from bert_cluster.evaluation.report import markdown, terminal
from bert_cluster.evaluation.results import Results, finite
from bert_cluster.evaluation.runner import MethodRun
from bert_cluster.evaluation.store import REPORT, has_finished_chunks, write_json, write_text
from bert_cluster.hub.results import FILE, PLOT


def run_command(name: str, options: argparse.Namespace, run: Callable[[], None]) -> int:
    """Call `run`; turn the user's mistakes into one line on stderr and exit status 2."""
    try:
        run()
    except BertClusterError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        advice = f" What is finished is stored: {same_command(options)} continues." if _is_begun(options) else ""
        print(f"{name}: error: {error}.{advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        continues = f"{same_command(options)} continues where it stopped."
        told = " ".join(["interrupted.", *getattr(error, "__notes__", []), continues[0].upper() + continues[1:]])
        print(f"{name}: {told}", file=sys.stderr)
        return 130
    return 0


def _is_begun(options: argparse.Namespace) -> bool:
    try:
        return has_finished_chunks(options.output_dir)
    except OSError:
        return False


def check_options(options: argparse.Namespace) -> None:
    """Everything about the shared flags that can be refused before data or model are touched."""
    if options.validation_file and options.test_file:
        raise OptionError("--validation_file and --test_file are both given. Evaluate them one after the other.")
    if options.dataset_name and (options.validation_file or options.test_file):
        raise OptionError("--dataset_name and a local file are both given. Choose one.")
    if options.do_eval and options.do_predict:
        raise OptionError(
            "--do_eval and --do_predict are both given, and a run takes one split. Run the command once with each, into an "
            "--output_dir of its own."
        )
    if options.do_predict and options.validation_file:
        raise OptionError(
            "--do_predict takes the test split, and --validation_file is given. Give the file as --test_file, or leave "
            "--do_predict out."
        )
    _check_output(options.output_dir)
    if not options.no_plot:
        require_matplotlib()


def _check_output(given: str) -> None:
    if not given:
        raise OptionError("--output_dir is empty. Give a folder.")
    try:
        if not stat.S_ISDIR(Path(given).stat().st_mode):
            raise OptionError(f"--output_dir {given} is a file. Give a folder.")
    except FileNotFoundError:
        return
    except OSError as error:
        raise OptionError(f"--output_dir {given} cannot be a folder: {error.strerror}. Give another.") from error


def evaluate_and_push(
    options: argparse.Namespace, evaluate: Callable[[argparse.Namespace, Processes], Callable[[], None]]
) -> None:
    """Call `evaluate` in every process of the launch, and what it returns, which pushes the results, after all have ended.

    The main process keeps other runs out of OUTPUT_DIR until the results are pushed.
    """
    with ExitStack() as held:
        with join_processes(options.device) as processes:
            if processes.is_main:
                held.enter_context(sole_run(options.output_dir))
            push = evaluate(options, processes)
        push()  # outside: no other process waits for an upload


def metrics_of(scores: Mapping[str, float], run: MethodRun, part: int, samples: int, batches: int) -> dict[str, Any]:
    """The flat `eval_` keys of transformers' Trainer for one part: scores, samples and speed.

    `eval_runtime` counts forward passes only. `samples` is what Trainer counts: the inputs of the model.
    """
    seconds = run.seconds[part]
    values = {
        **scores,
        "model_preparation_time": round(run.preparation_seconds, 4),
        "runtime": round(seconds, 4),
        "samples": samples,
        "samples_per_second": round(samples / seconds, 3) if seconds else None,
        "steps_per_second": round(batches / seconds, 3) if seconds else None,
    }
    return {f"eval_{name}": value for name, value in values.items()}


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """eval_results.json and all_results.json of one method, as Trainer.save_metrics writes them."""
    for name in ("eval_results.json", "all_results.json"):
        write_json(folder / name, finite(metrics), sort_keys=True)


def write_results(results: Results, output_dir: str | Path, *, plot: bool) -> None:
    """The files that compare the methods, and the table on stdout."""
    folder = Path(output_dir)
    (folder / PLOT).unlink(missing_ok=True)  # an older one, of other results
    write_json(folder / FILE, results.to_dict())
    write_text(folder / REPORT, markdown(results, plot=PLOT if plot else None))
    if plot:
        draw(results, folder / PLOT)
    written = [REPORT, FILE, *([PLOT] if plot else [])]
    print(f"\n{terminal(results)}\nIn {folder}: {', '.join(written)}, and a folder for each method.")


def print_notes(notes: Sequence[str]) -> None:
    """Notes on data and model, before a long run starts."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
