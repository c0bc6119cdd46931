"""Lists the lines of kernels that planted_main.cpp never reaches; fails if there are any.

    make cuda-coverage

The program under AddressSanitizer is compiled with gcov's counters as well; test_sanitizers.py runs it and asks the same.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests" / "cuda"):
    sys.path.insert(0, str(folder))

import host_program  # noqa: E402

COUNTS = host_program.BUILD / "address"
PROGRAM = "planted_main.cpp"


def forget() -> None:
    """Sets all counters to zero."""
    for old in COUNTS.rglob("*.gcda"):
        old.unlink()


def missing_lines() -> list[str]:
    """Lines that were not executed since the counters were zero, with their places."""
    gcov = shutil.which("gcov")
    assert gcov is not None, "There is no gcov. It comes with g++: install it."
    counted = [str(path) for path in COUNTS.rglob("*.gcda")]
    assert counted, f"There are no counts in {COUNTS}: the program has not run."
    made = subprocess.run([gcov, "--json-format", "--stdout", *counted], check=True, capture_output=True, text=True)
    missing = never_executed((json.loads(line) for line in made.stdout.splitlines()), host_program.KERNELS)
    missing = [place for place in missing if place[0] != PROGRAM]  # some of its lines are for other callers
    text = {name: (host_program.KERNELS / name).read_text(encoding="utf-8").splitlines() for name, _ in missing}
    return [f"{name}:{number}: {text[name][number - 1].strip()}" for name, number in missing]


def never_executed(reports: Iterable[dict[str, Any]], folder: Path) -> list[tuple[str, int]]:
    """Files of a folder, and lines of which no report of gcov counts an execution."""
    counts: dict[tuple[str, int], int] = {}
    for report in reports:
        for file in report["files"]:
            path = Path(report["current_working_directory"], file["file"]).resolve()
            if path.parent == folder:
                for line in file["lines"]:
                    key = (path.name, line["line_number"])
                    counts[key] = counts.get(key, 0) + line["count"]
    return sorted(key for key, count in counts.items() if not count)


def main() -> None:
    parts = list(host_program.objects("address").values())
    forget()
    program = host_program.link("address", parts, COUNTS / "program")
    result = host_program.run(program, 0)
    if result.returncode:
        sys.exit(result.stderr)
    if missing := missing_lines():
        sys.exit("\n".join([*missing, "These lines were never executed."]))
    print("every line of the kernels was executed")


if __name__ == "__main__":
    main()
