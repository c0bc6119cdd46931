"""Lists the lines of kernels that a short run of every operator on the host never reaches; fails if there are any.

    make cuda-coverage

The library of host_library.py compiled once more with gcov's counters, in a folder of its own, and run in a process of its own.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests", ROOT / "tests" / "ops", ROOT / "tests" / "cuda"):
    sys.path.insert(0, str(folder))

import host_library  # noqa: E402

FOLDER = host_library.BUILD / "coverage"
KERNELS = host_library.CUDA / "kernels"


def build() -> Path:
    return host_library.build(extra=("--coverage", "-O0"), folder=FOLDER)


def run_operators() -> None:
    """In this process, whose end writes the counts."""
    import operator_backend
    import torch
    from operator_cases import Case
    from sanitize import CASES, LONG, run

    definitions = torch.library.Library(host_library.NAMESPACE, "DEF")
    for schema in host_library.SCHEMAS:
        definitions.define(schema)
    torch.ops.load_library(str(build()))
    overrides = operator_backend.substitute(host_library.NAMESPACE, "CPU", "cpu", operator_backend.all_names())
    for case, dtype in zip(CASES, (torch.bfloat16, torch.float32), strict=True):
        run(case, dtype, "cpu")
    run(LONG, torch.bfloat16, "cpu")
    run(Case(B=1, H=1, N=67, D=200, C=5, K=7, P=200, exact_below=12), torch.float16, "cpu")
    del overrides


def never_executed(reports: Iterable[dict[str, Any]]) -> dict[str, list[int]]:
    """By the names of files of kernels: lines of which no report of gcov counts an execution."""
    counts: dict[tuple[str, int], int] = {}
    for report in reports:
        for file in report["files"]:
            path = Path(report["current_working_directory"], file["file"]).resolve()
            if path.parent != KERNELS:
                continue
            for line in file["lines"]:
                key = (path.name, line["line_number"])
                counts[key] = counts.get(key, 0) + line["count"]
    missing: dict[str, list[int]] = {}
    for (name, number), count in sorted(counts.items()):
        if not count:
            missing.setdefault(name, []).append(number)
    return missing


def main() -> None:
    gcov = shutil.which("gcov")
    if gcov is None:
        sys.exit("There is no gcov.")
    build()
    for old in FOLDER.rglob("*.gcda"):
        old.unlink()
    subprocess.run([sys.executable, __file__, "run"], check=True)
    counted = [str(path) for path in FOLDER.rglob("*.gcda")]
    made = subprocess.run([gcov, "--json-format", "--stdout", *counted], check=True, capture_output=True, text=True)
    missing = never_executed(json.loads(line) for line in made.stdout.splitlines())
    for name, numbers in missing.items():
        lines = (KERNELS / name).read_text(encoding="utf-8").splitlines()
        for number in numbers:
            print(f"{name}:{number}: {lines[number - 1].strip()}")
    if missing:
        sys.exit("These lines were never executed.")
    print("every line of the kernels was executed")


if __name__ == "__main__":
    run_operators() if sys.argv[1:] == ["run"] else main()
