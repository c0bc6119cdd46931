"""Whole encoders: time, peak memory and how close clustered attention comes to what Amdahl's law allows.

    python benchmarks/model.py --threads 2              # hours; an interruption loses the case that was running, the same command goes on
    python benchmarks/model.py --threads 2 --short      # what patching costs at 16 to 128 tokens
    python benchmarks/model_page.py                     # docs/models.md and its plot from the results

For each shape (BERT-base, XLM-R-large / bge-m3, ModernBERT-base with random weights, and the MiniLM checkpoint), length, batch and padding:
seconds of a forward pass, tokens/s (only tokens that are no padding), attention's share, the ceiling by Amdahl and how much of it is reached
(model_measures.py has the formulas), all methods in turns in one process; and the peak memory above the loaded model, each method in a
process of its own (model_memory.py).

A method whose pass would take longer than --limit, or would not fit into the memory that is free, is not run, and the results say so.
Both are foreseen from the largest smaller case: exact attention grows with N² B, everything else with N B.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import measure
import model_memory
import model_page
import model_short
import torch
from model_measures import expected_growth, expected_seconds, measure_case
from model_shapes import METHODS, PADDINGS, SHAPES, WORDS, Shape, inputs, with_method
from transformers import PreTrainedModel

TOKENS = (512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True)
class Case:
    """One row of the results: a shape at N tokens, B texts, padded ("half") or not ("none")."""

    shape: str
    tokens: int
    batch: int
    padding: str

    @property
    def name(self) -> str:
        """Its key in the results."""
        return f"{self.shape}/{self.tokens}/{self.batch}/{self.padding}"


class Encoders:
    """The encoders of one shape, made when they are first needed: one on its own weights, the others share them."""

    def __init__(self, shape: Shape, tokens: int, layers: int | None):
        self.shape, self.tokens, self.layers = shape, tokens, layers

    @cached_property
    def full(self) -> PreTrainedModel:
        return self.shape.encoder(self.tokens, self.layers)

    @cached_property
    def by_method(self) -> dict[str, PreTrainedModel]:
        return {
            name: self.full if config is None else with_method(self.full, config) for name, config in METHODS.items()
        }


def cases(shape: Shape, options: argparse.Namespace) -> Iterator[Case]:
    """The cases of one shape, shortest texts first, as far as its positions go."""
    for tokens in sorted(options.tokens):
        if not shape.reads(tokens):
            print(f"{shape.name}: no {tokens} tokens, it has {shape.positions} positions.", flush=True)
            continue
        for batch in sorted(options.batches):
            for padding in options.padding:
                yield Case(shape.name, tokens, batch, padding)


def before(case: Case, method: str, cells: Mapping[str, Any]) -> dict[str, Any] | None:
    """The largest measured case of the same shape and padding that is no larger in tokens or batch, where the method ran."""
    found = [
        cell
        for cell in cells.values()
        if (cell.get("kind"), cell["shape"], cell.get("padding")) == ("case", case.shape, case.padding)
        and cell["tokens"] <= case.tokens
        and cell["batch"] <= case.batch
        and "not_run" not in cell["methods"][method]
    ]
    return max(found, key=lambda cell: (cell["tokens"], cell["batch"]), default=None)


def why_not(case: Case, method: str, cells: Mapping[str, Any], limit: float, available: int | None) -> str | None:
    """Why a method is not run, None if it is.

    Args:
        cells: what was measured before.
        limit: seconds that a pass may take.
        available: bytes; None where they are not known.
    """
    known = before(case, method, cells)
    if known is None:
        return None
    row, tokens, batch = known["methods"][method], case.tokens / known["tokens"], case.batch / known["batch"]
    seconds = expected_seconds(row, method, tokens, batch)
    if seconds > limit:
        return f"a pass would take about {seconds:,.0f} s, more than the limit of {limit:g} s"
    growth = expected_growth(row, method, tokens, batch)
    if growth is not None and available is not None and growth > available:
        return f"a pass would need up to {growth / 2**30:,.0f} GiB, and {available / 2**30:,.0f} GiB are free"
    return None


def run_case(case: Case, encoders: Encoders, cells: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One cell of the results. Memory comes first: a pass that does not fit ends a process of its own, not this one."""
    rows: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        reason = why_not(case, method, cells, options.limit, model_memory.available_bytes())
        if reason is None:
            flags = {**asdict(case), "method": method, "threads": options.threads, "layers": options.layers}
            try:
                rows[method] = {"peak_growth_bytes": model_memory.growth(flags)}
            except model_memory.OutOfMemory:
                reason = "there is not enough memory for a pass"
        if reason is not None:
            rows[method] = {"not_run": reason}
            print(f"{case.name}: {method} is not run: {reason}.", flush=True)
    chosen = {name: encoders.by_method[name] for name in METHODS if "not_run" not in rows[name]}
    if not chosen:
        return {"kind": "case", **asdict(case), "methods": rows}
    batch = inputs(encoders.full.config, case.tokens, case.batch, case.padding)
    found = measure_case(chosen, batch, options.seconds)
    methods = {name: {**found["methods"].get(name, {}), **row} for name, row in rows.items()}
    return {"kind": "case", **asdict(case), **found, "methods": methods}


def run_short(encoders: Encoders, kept: measure.Kept, options: argparse.Namespace) -> None:
    """The crossover of each method and the cost of patching, for one shape."""
    name, full = encoders.shape.name, encoders.full
    heads = full.config.num_attention_heads
    exact_below = {}
    for method in model_short.PATCHED:
        if options.exact_below is None:
            found = kept.get(
                f"crossover/{name}/{method}",
                lambda method=method: {
                    **{"kind": "crossover", "shape": name, "method": method},
                    **model_short.crossover(method, heads, full.config.hidden_size // heads),
                },
            )
            exact_below[method] = found["exact_below"]
        else:
            exact_below[method] = options.exact_below
    patched = model_short.short_encoders(full, exact_below)
    for tokens in model_short.LENGTHS:
        for batch in options.batches:
            for padding in options.padding:
                case = Case(name, tokens, batch, padding)
                kept.get(
                    f"short/{case.name}",
                    lambda case=case: {
                        **{"kind": "short", **asdict(case), "exact_below": exact_below},
                        "methods": model_short.measure_short(
                            patched, case.tokens, case.batch, case.padding, options.seconds
                        ),
                    },
                )


def new_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--tokens", type=int, nargs="+", default=[*TOKENS])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--padding", nargs="+", choices=PADDINGS, default=[*PADDINGS], help="half: of all tokens")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        help="for each case, and as long for the operators alone; 3 turns at least",
    )
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that one pass may take")
    parser.add_argument("--short", action="store_true", help="the cost of patching at 16 to 128 tokens instead")
    parser.add_argument("--exact_below", type=int, help="with --short: instead of the measured crossover")
    parser.add_argument("--layers", type=int, help="only the first so many layers, to try it out")
    parser.add_argument("--output", type=Path, default=model_page.RESULTS)
    return parser


def keep(options: argparse.Namespace) -> measure.Kept:
    """The results file, for measurements of these settings; the run is written down in it."""
    settings = {
        **measure.machine(),
        "dtype": "float32",
        "layers": options.layers,
        "vocabulary": WORDS,
        "seconds": options.seconds,
        "limit_s": options.limit,
        "methods": {name: config and config.to_dict() for name, config in METHODS.items()},
    }
    advice = "choose another --output, or delete that file to start again"
    kept = measure.Kept(options.output, settings, advice=advice)
    run = {"command": measure.description()["command"], "date": date.today().isoformat()}
    runs = kept.content.setdefault("runs", [])
    if run not in runs:
        runs.append(run)
    return kept


def main(arguments: list[str] | None = None) -> None:
    options = new_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    kept = keep(options)
    cells = kept.content["cells"]
    for shape in (SHAPES[name] for name in options.shapes):
        if not shape.is_here:
            print(f"{shape.name} is left out: it needs pip install {str(shape.package).replace('_', '-')}.", flush=True)
            continue
        longest = max((tokens for tokens in options.tokens if shape.reads(tokens)), default=0)
        encoders = Encoders(shape, max(longest, *model_short.LENGTHS), options.layers)
        with torch.inference_mode():
            if options.short:
                run_short(encoders, kept, options)
                continue
            for case in cases(shape, options):
                kept.get(case.name, lambda case=case, encoders=encoders: run_case(case, encoders, cells, options))


if __name__ == "__main__":
    measure.run(main)
