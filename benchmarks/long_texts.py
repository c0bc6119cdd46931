"""What clustered attention costs and keeps on texts of 512 to 8,192 tokens, by budget, against exact attention.

    python benchmarks/long_texts.py [--shared ../shared] [--part texts answers calibrated] [--output benchmarks/results/long-texts.json]

Part "texts": contracts (CUAD, ContractNLI), each cut to exactly N tokens, read by all-MiniLM-L6-v2 whose 512 positions are tiled, and
by squad-long, the same model trained on 2,048 positions. For each budget: the error of the last hidden states, the cosine of the
mean-pooled embedding, the seconds of the forward pass; and those of one attention layer alone on random inputs. The yardstick is the
error that rounding alone makes: exact attention in bfloat16. Part "answers": SQuAD's questions, each asked of a long stretch of the
article, read by squad-long: the share of answers that stay those of exact attention, F1, the error. Part "calibrated": what `calibrate`
chooses for each layer on other contracts of the same length, and the same measures of the choice.

The data is not in this repository: --shared is the folder that holds data/, adapters/ and tools/. First every operator is compared with
exact attention where it must equal it; then all methods take turns. The file is written after each finished cell, and the same command
continues where it stopped. benchmarks/long_texts_page.py makes docs/long-texts.md of it.
"""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import long_inputs
import torch
from long_calibration import calibrate_and_compare
from long_measures import HEAD_SIZE, HEADS, ROUNDED, Budgets, compare_answers, compare_texts, layer_times
from machine import command, environment
from torch.nn.functional import scaled_dot_product_attention

from bert_cluster import ClusterConfig, attention
from bert_cluster.evaluation.store import write_json

OUTPUT = Path("benchmarks/results/long-texts.json")
PAPER, AUTO = "paper", "auto"
# Budget -> the shortest text that it is for: the paper's (C = 25, K = 32), the default that grows with the text, and refined ones
# as C,K,M,S (S: sample).
BUDGETS = {
    PAPER: 0,
    AUTO: 0,
    "25,64,32,256": 0,
    "25,128,64,512": 0,
    "25,256,128,1024": 0,
    "25,384,128,1024": 0,
    "25,512,64,1024": 0,
    "64,128,64,512": 0,
    "100,128,64,512": 0,
    "150,192,96,1024": 0,
    "200,256,128,1024": 4096,
}
FIELDS = ("clusters", "topk", "key_clusters", "sample", "band", "rounds")


def settings(name: str) -> ClusterConfig | None:
    """The settings of a budget: "paper", "auto", or C,K,M,S and, if given, W (band) and rounds, for the refined method."""
    if name == ROUNDED:
        return None
    if name == PAPER:
        return ClusterConfig(method="improved-clustered", clusters=25, topk=32)
    if name == AUTO:
        return ClusterConfig()
    numbers = [int(number) for number in name.split(",")]
    if not 4 <= len(numbers) <= len(FIELDS):
        raise argparse.ArgumentTypeError(f"A budget is {PAPER}, {AUTO} or C,K,M,S[,W[,rounds]], got {name!r}.")
    return ClusterConfig(**dict(zip(FIELDS, numbers, strict=False)))  # type: ignore[arg-type]


def parse_budget(name: str) -> str:
    try:
        settings(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"A budget is {PAPER}, {AUTO} or C,K,M,S[,W[,rounds]], got {name!r}."
        ) from error
    return name


def budgets_for(options: argparse.Namespace, tokens: int) -> dict[str, ClusterConfig | None]:
    """The budgets of texts of this length, and the yardstick."""
    names = options.budgets or [name for name, least in BUDGETS.items() if tokens >= least]
    return {name: settings(name) for name in (ROUNDED, *names)}


def check(budgets: Budgets) -> None:
    """With every key exact each method must equal exact attention to rounding."""
    q, k, v = torch.randn(3, 1, HEADS, 331, HEAD_SIZE, generator=torch.Generator().manual_seed(1)).unbind()
    for name, config in budgets.items():
        if config is not None:
            exact = ClusterConfig.from_dict({**config.to_dict(), "topk": 331})
            error = (attention(q, k, v, config=exact) - scaled_dot_product_attention(q, k, v)).abs().max().item()
            if not error < 1e-5:
                sys.exit(f"{name} is off by {error:.1e} where it must be exact: nothing is measured.")


class Store:
    """The results file: what is there stays, what is missing is measured, and it is written after each cell."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        self.path = path
        fixed = {
            **environment(),
            "shape": {"B": 1, "H": HEADS, "D": HEAD_SIZE, "dtype": "float32"},
            "asked": {"texts": options.texts, "stretches": options.stretches},
        }
        self.data: dict[str, Any] = {**fixed, "runs": [], "budgets": {}, "layer": {}, "texts": {}, "answers": {}}
        if path.exists():
            self.data = json.loads(path.read_text(encoding="utf-8"))
            for key, value in fixed.items():
                if self.data[key] != value:
                    sys.exit(
                        f"{path} was measured with {key} {self.data[key]}, now it is {value}. Choose another --output."
                    )
        self.run = {"command": command(), "date": date.today().isoformat()}

    def fill(self, place: tuple[str, ...], budgets: Budgets, measure: Callable[[Budgets], dict[str, Any]]) -> None:
        """Measure what a cell lacks. A second measurement of exact attention, for comparison only, is not kept."""
        cell = self.data
        for key in place:
            cell = cell.setdefault(key, {})
        kept = cell.setdefault("methods", {})
        missing = {name: config for name, config in budgets.items() if name not in kept}
        if not missing:
            return
        print(f"{' '.join(place)}: {len(missing)} budgets", flush=True)
        found = measure(missing)
        for name, row in found.pop("methods").items():
            kept.setdefault(name, row)
            print(f"  {name:18}", {key: value for key, value in row.items() if not isinstance(value, list)}, flush=True)
        cell.update(found)
        for name, config in missing.items():
            self.data["budgets"][name] = {} if config is None else config.with_defaults().to_dict()
        self.write()

    def fill_calibrated(self, model: str, tokens: int, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a calibration that is not there yet."""
        cells = self.data.setdefault("calibrated", {}).setdefault(model, {})
        if str(tokens) not in cells:
            print(f"calibrated {model} {tokens}", flush=True)
            cells[str(tokens)] = found = measure()
            print(f"  {found.get('error', 0.0)}, {[layer['method'] for layer in found['layers']]}", flush=True)
            self.write()

    def write(self) -> None:
        """The file, with this run among its commands."""
        if self.run not in self.data["runs"]:
            self.data["runs"].append(self.run)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.data)


def measure_texts(options: argparse.Namespace, store: Store) -> None:
    contracts = long_inputs.documents(options.shared)
    models = {
        long_inputs.SENTENCES: long_inputs.sentence_encoder(max(options.tokens)),
        long_inputs.ANSWERS: long_inputs.question_answering(options.shared),
    }
    for tokens in options.tokens:
        budgets = budgets_for(options, tokens)
        clustered = {name: config for name, config in budgets.items() if config is not None}
        store.fill(
            ("layer", str(tokens)),
            clustered,
            lambda missing, n=tokens: {"methods": layer_times(n, missing, options.seconds)},
        )
        texts = long_inputs.stretches_of_text(contracts, tokens, options.texts)
        for name, model in models.items():
            if texts and tokens <= model.config.max_position_embeddings:
                store.fill(
                    ("texts", name, str(tokens)),
                    budgets,
                    lambda missing, model=model, texts=texts: {
                        "texts": len(texts),
                        "methods": compare_texts(model, texts, missing),
                    },
                )


def measure_answers(options: argparse.Namespace, store: Store) -> None:
    model, tokenizer = long_inputs.question_answering(options.shared), long_inputs.tokenizer()
    positions = long_inputs.TRAINED_POSITIONS[long_inputs.ANSWERS]
    for tokens in options.stretch_tokens:
        examples = long_inputs.stretches_of_articles(options.shared, tokens, options.stretches)
        store.fill(
            ("answers", str(tokens)),
            budgets_for(options, tokens),
            lambda missing, examples=examples: compare_answers(
                model, tokenizer, examples, missing, positions=positions
            ),
        )


def measure_calibrated(options: argparse.Namespace, store: Store) -> None:
    """squad-long within its 2,048 trained positions, the sentence encoder with tiled ones beyond."""
    contracts, tokenizer = long_inputs.documents(options.shared), long_inputs.tokenizer()
    models = {
        long_inputs.ANSWERS: long_inputs.question_answering(options.shared),
        long_inputs.SENTENCES: long_inputs.sentence_encoder(max(options.calibrated_tokens)),
    }
    for tokens in options.calibrated_tokens:
        name = next(name for name, model in models.items() if tokens <= model.config.max_position_embeddings)
        texts = long_inputs.stretches_of_text(contracts, tokens, options.texts + options.known)
        unknown, known = texts[: options.texts], texts[options.texts :]
        store.fill_calibrated(
            name,
            tokens,
            lambda model=models[name], known=known, unknown=unknown: calibrate_and_compare(
                model, tokenizer, known, unknown, target=options.target
            ),
        )


PARTS = {"texts": measure_texts, "answers": measure_answers, "calibrated": measure_calibrated}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder of data/, adapters/ and tools/")
    parser.add_argument("--part", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--texts", type=int, default=8, help="contracts for each length")
    parser.add_argument("--stretches", type=int, default=60, help="questions for each length of stretch")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument(
        "--stretch_tokens", type=int, nargs="+", default=[900, 1900], help="of the stretches of articles"
    )
    parser.add_argument("--calibrated_tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--known", type=int, default=12, help="contracts of each length that calibration gets, at most")
    parser.add_argument("--target", type=float, default=0.03, help="of calibration: error of the last hidden states")
    parser.add_argument(
        "--budgets", nargs="+", type=parse_budget, metavar="C,K,M,S", help=f"or {PAPER}; default: {' '.join(BUDGETS)}"
    )
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="for the layer alone, each length; at least three turns"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    store = Store(options.output, options)
    with torch.inference_mode():
        check(budgets_for(options, max(options.tokens)))
        for part in options.part:
            PARTS[part](options, store)


if __name__ == "__main__":
    main()
