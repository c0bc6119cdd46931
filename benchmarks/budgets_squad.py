"""SQuAD with several budgets of one method: the same questions, full attention run once."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import measure
from budgets_page import label
from questions import draw_questions

from bert_cluster import ClusterConfig
from bert_cluster.evaluation.store import CHUNKS, write_json

TOKENS = 384


def measure_squad(configs: list[ClusterConfig], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Name of each budget -> same answers as full, F1 and its difference to full with its interval, in percent.

    Args:
        options: shared, base_model_name_or_path, output_dir, squad (questions), threads, overwrite_output_dir.
    """
    folder = options.output_dir / f"squad-{options.squad}"
    if options.overwrite_output_dir:
        shutil.rmtree(folder, ignore_errors=True)
    source = json.loads((options.shared / "data/squad/dev-v1.1-half.json").read_text(encoding="utf-8"))
    write_json(folder / "questions.json", draw_questions(source, options.squad))
    shared = ["--model_name_or_path", str(options.shared / "adapters" / "squad")]
    shared += ["--base_model_name_or_path", str(options.base_model_name_or_path)]
    shared += ["--validation_file", str(folder / "questions.json"), "--max_seq_length", str(TOKENS)]
    shared += ["--max_windows", "1", "--no_plot", "--disable_tqdm"]
    measure.evaluate(
        "squad_eval", [*shared, "--attention", "full", "--output_dir", str(folder / "full")], options.threads
    )
    found = {}
    for config in configs:
        own = folder / label(config).replace(" ", "_").replace("=", "")
        share_full_attention(folder / "full", own)
        config.save(own / "cluster_config.json")
        flags = [*shared, "--attention", "full", config.method, "--cluster_config", str(own / "cluster_config.json")]
        results = measure.evaluate("squad_eval", [*flags, "--output_dir", str(own)], options.threads)
        method = results["methods"][config.method]
        found[label(config)] = {
            "same_answers": method["agreement_with_full"]["value"],
            "f1": method["scores"]["f1"],
            "difference_to_full": method["difference_to_full"]["f1"],
            "questions": results["data"]["examples"],
        }
    return found


def share_full_attention(source: Path, target: Path) -> None:
    """Give a folder of squad_eval the finished chunks of full attention of another with the same settings.

    squad_eval reads them as its own and compares the settings, so nothing is mixed; it keeps one set of settings for each method, so
    budgets of one method need folders of their own.
    """
    if not (target / CHUNKS).exists():
        shutil.copytree(source / CHUNKS, target / f".{CHUNKS}", dirs_exist_ok=True)
        (target / f".{CHUNKS}").rename(target / CHUNKS)
