"""The operators against PyTorch's exact attention on this machine: correct first, then timed.

    python benchmarks/operators.py [--tokens 512 2048] [--shape 1 12 64] [--dtype float32] [--padding 0] [--threads 2]
    python benchmarks/operators.py --suite --output benchmarks/results/operators-cpu.json
    python benchmarks/operators.py --device cuda --suite --output benchmarks/results/operators-cuda.json

One layer on standard normal inputs. Each method is first compared with exact attention where it must equal it (all valid
keys exact); a wrong result is not timed. Then the methods take turns, and medians, quartiles, extremes, ratios to
`torch.nn.functional.scaled_dot_product_attention` and the memory of one call are written down with the machine, the
versions and the command. --suite adds the cases that docs/speed.md has: padding, other heads, other types, one head,
AVX2. idiap's pytorch-fast-transformers is timed beside ours where it can be imported.

On a GPU (--device cuda; bfloat16 unless --dtype says otherwise) times are those of CUDA graphs, by events, with eager calls
beside them; SDPA has its best backend. --suite adds the cases of docs/cuda.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import operators_gpu
import torch
from machine import command, environment, summary, take_turns
from operator_memory import extra_memory
from operator_methods import IDIAP_PACKAGE, SDPA, TOLERANCES, budgets, check, idiap_missing, idiap_version, methods_for
from timed_cases import GPU_LENGTHS, LENGTHS, Case, gpu_suite, suite

import cuda_ops

INSTRUCTION_SET = "CUDA_OPS_INSTRUCTION_SET"  # cuda_ops reads it once, when it is imported


def measured(case: Case, seconds: float) -> dict[str, Any]:
    """A case's description and, by length and method, times and memory: checked first, printed length by length."""
    threads, backend = torch.get_num_threads(), cuda_ops.backend_for(case.device, getattr(torch, case.dtype))
    torch.set_num_threads(case.threads)
    rows = {}
    try:
        with torch.inference_mode():
            check(case)
            print_header(case, backend)
            for tokens in case.tokens:
                rows[str(tokens)] = measured_at(case, tokens, seconds)
                print_rows(tokens, rows[str(tokens)])
    finally:
        torch.set_num_threads(threads)
    return {**case.described(), "backend": backend, "tokens": rows}


def measured_at(case: Case, tokens: int, seconds: float) -> dict[str, dict[str, float | None]]:
    """Times, in turns, and memory of every method at one length."""
    if case.device == "cuda":
        return operators_gpu.measured_at(case, tokens, seconds)
    inputs, methods = case.inputs(tokens), methods_for(case)
    times = summary(take_turns({name: method(inputs, None) for name, method in methods.items()}, seconds), SDPA)
    memory = extra_memory(case, list(methods), tokens)
    return {name: {**row, "extra_memory_mib": memory[name]} for name, row in times.items()}


def print_header(case: Case, backend: str) -> None:
    shape = f"B={case.batch}, H={case.heads}, D={case.head_size}, {case.dtype}"
    threads = f"{case.threads} threads, " if case.device == "cpu" else ""
    print(f"\n{case.name}: {shape}, {case.padding:.0%} padding, {threads}operators {backend}")
    print(f"{'tokens':>7}  {'method':<40}{'median ms':>11}{'least':>10}{'most':>10}{'× SDPA':>8}{'extra MiB':>11}")


def print_rows(tokens: int, rows: dict[str, dict[str, float | None]]) -> None:
    for name, row in rows.items():
        memory = "–" if row["extra_memory_mib"] is None else f"{row['extra_memory_mib']:,.1f}"
        title = f"{name} ({row['backend']})" if "backend" in row else name
        print(
            f"{tokens:>7}  {title:<40}{row['median_ms']:>11,.3f}{row['least_ms']:>10,.3f}{row['most_ms']:>10,.3f}"
            f"{row['times_sdpa']:>8.2f}{memory:>11}",
            flush=True,
        )


def instruction_set_missing(name: str) -> str | None:
    """Why a process of this Python cannot use the operators' code for an instruction set; None if it can."""
    done = subprocess.run(
        [sys.executable, "-c", "import cuda_ops"],
        env={**os.environ, INSTRUCTION_SET: name},
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stderr.strip().splitlines() or ["it failed"])[-1] if done.returncode else None


def measured_elsewhere(case: Case, seconds: float) -> dict[str, Any] | None:
    """`measured` in a process of its own, which has the case's instruction set; None, with a line, where it is missing."""
    assert case.instruction_set is not None
    missing = instruction_set_missing(case.instruction_set)
    if missing:
        print(f"\n{case.name}: left out: {missing}")
        return None
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "case.json"
        shape = [str(size) for size in (case.batch, case.heads, case.head_size)]
        flags = ["--tokens", *map(str, case.tokens), "--shape", *shape, "--dtype", case.dtype]
        flags += ["--padding", str(case.padding), "--threads", str(case.threads), "--seconds", str(seconds)]
        flags += ["--instruction-set", case.instruction_set, "--output", str(output)]
        done = subprocess.run(
            [sys.executable, __file__, *flags], env={**os.environ, INSTRUCTION_SET: case.instruction_set}, check=False
        )
        if done.returncode:
            sys.exit(f"The case {case.name!r} failed with status {done.returncode}; what is above says why.")
        results = json.loads(output.read_text(encoding="utf-8"))
    return {key: results[key] for key in ("shape", "padding", "threads", "backend", "tokens")}


def take_suite(base: Case, lengths: Sequence[int] | None, seconds: float) -> list[dict[str, Any]]:
    """Every further case with its name; all with the given lengths, if there are some."""
    taken = []
    for case in gpu_suite(base) if base.device == "cuda" else suite(base):
        asked = case if lengths is None else replace(case, tokens=tuple(lengths))
        found = measured(asked, seconds) if asked.instruction_set is None else measured_elsewhere(asked, seconds)
        if found is not None:
            taken.append({"name": asked.name, **found})
    return taken


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", help="lengths; with --suite, those of every case")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("B", "H", "D"), default=[1, 12, 64])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(TOLERANCES), help="float32; on a GPU bfloat16")
    parser.add_argument("--padding", type=float, default=0.0, help="fraction of each row's tokens, 0 or more, below 1")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--instruction-set", choices=["portable", "avx2", "avx512", "neon"], help="that our operators use"
    )
    parser.add_argument("--suite", action="store_true", help="the cases of docs/speed.md besides")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each length, at least five turns")
    parser.add_argument("--output", type=Path, help="the results file")
    options = parser.parse_args()
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    if options.device == "cuda":
        require_gpu(parser, getattr(torch, options.dtype))
    if not 0 <= options.padding < 1:
        parser.error(f"--padding is a fraction, 0 or more and below 1, got {options.padding}")
    for name in ("tokens", "shape", "threads"):
        values = getattr(options, name)
        if values is not None and min(values if isinstance(values, list) else [values]) < 1:
            parser.error(f"--{name} takes whole numbers from 1, got {values}")
    return options


def require_gpu(parser: argparse.ArgumentParser, dtype: torch.dtype) -> None:
    """Ends the command where there is no GPU, or where its times would be those of the reference."""
    if not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch sees, and there is none")
    if cuda_ops.backend_for("cuda", dtype) != "cuda":
        parser.error(f"no CUDA operators for {dtype}: python -m cuda_ops tells what was built")


def restart_with(instruction_set: str) -> None:
    """Start this command again for another instruction set: the operators choose theirs when they are imported."""
    missing = instruction_set_missing(instruction_set)
    if missing:
        sys.exit(missing)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, INSTRUCTION_SET: instruction_set})


def main() -> None:
    options = parse()
    if options.instruction_set and options.instruction_set != os.environ.get(INSTRUCTION_SET):
        restart_with(options.instruction_set)
    torch.set_num_threads(options.threads)
    batch, heads, head_size = options.shape
    on_gpu = options.device == "cuda"
    lengths = tuple(options.tokens or (GPU_LENGTHS if on_gpu else LENGTHS))
    shape = (batch, heads, head_size, options.dtype, options.padding)
    base = Case("base", options.threads, lengths, *shape, device=options.device)
    if idiap_missing() and not on_gpu:
        print(f"idiap's {IDIAP_PACKAGE} is left out: it cannot be imported ({idiap_missing()}).")
    results: dict[str, Any] = {"command": command(), "date": date.today().isoformat(), **environment()}
    if on_gpu:
        results["machine"] = operators_gpu.machine()
    elif not idiap_missing():
        results["versions"][IDIAP_PACKAGE] = idiap_version()
    results |= {**measured(base, options.seconds), "budgets": budgets(options.device)}
    results["cases"] = take_suite(base, options.tokens, options.seconds) if options.suite else []
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted: no results file was written.", file=sys.stderr)
        sys.exit(130)
