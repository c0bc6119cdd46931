"""The operators of the working tree against those of a git ref: instructions and times of one call.

    python benchmarks/compare.py REF [--tokens 512] [--rounds 5] [--output comparison.json]

REF is built in a temporary git worktree, which is removed afterwards. Each side first passes a check; a wrong result is
not compared. Instructions are counted by `valgrind --tool=callgrind`, for two heads, with one thread and the AVX2 code
(valgrind knows no AVX-512, and emulates slowly); times are of twelve heads, medians of processes of both sides in turns. An operator that takes over 10 % more instructions
than REF's is a regression: it is marked, and the exit status is 1. Times are shown only.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from machine import command, environment

ROOT = Path(__file__).resolve().parent.parent
SIDE = Path(__file__).with_name("compare_side.py")
MARKS = Path(__file__).with_name("compare_marks.cpp")
LIBRARY = Path("cuda_ops") / "_C.abi3.so"
BUILD = "python setup.py build_ext --inplace"
LIMIT = 1.1  # times REF's instructions
COUNTED_HEADS, TIMED_HEADS = 2, 12  # heads are alike, and valgrind is slow
LOG_LINES = 30
COUNTED_BY = "desc: Trigger: Client Request: "  # in callgrind's files, followed by the name that end_count gave

Numbers = Mapping[str, float]


def require_programs() -> None:
    """git and valgrind must be there before anything is built."""
    remedies = {
        "git": "The other side comes from a git ref: install git.",
        "valgrind": "It counts the instructions: install it (Debian, Ubuntu: apt install valgrind).",
    }
    for program, remedy in remedies.items():
        if shutil.which(program) is None:
            sys.exit(f"{program} is not on the PATH. {remedy}")


def require_current_library(root: Path) -> None:
    """The working tree's library must be as new as its sources."""
    library = root / LIBRARY
    if not library.exists():
        sys.exit(f"The operators of the working tree are not compiled: {LIBRARY} is missing. Build them: {BUILD}")
    newer = [
        path for path in (root / "cuda_ops" / "csrc").rglob("*.*") if path.stat().st_mtime > library.stat().st_mtime
    ]
    if newer:
        sys.exit(f"{newer[0].relative_to(root)} is newer than {LIBRARY}, which it is part of. Build it: {BUILD}")


def git(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)


def commit_of(ref: str) -> str:
    """The commit that a ref names."""
    if git("rev-parse", "--git-dir").returncode:
        sys.exit(
            "This folder is no git clone, so there is no ref to compare with. Clone the repository, and run it there."
        )
    found = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if found.returncode:
        sys.exit(f"{ref!r} names no commit here. Give a branch, a tag or a commit: git branch -a, git tag, git log.")
    return found.stdout.strip()


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The commit's files in a temporary worktree, which goes whatever happens."""
    with tempfile.TemporaryDirectory(prefix="bert-cluster-", ignore_cleanup_errors=True) as folder:
        tree = Path(folder) / "tree"
        try:
            made = git("worktree", "add", "--detach", tree, commit)
            if made.returncode:
                sys.exit(f"git could not make a worktree of {commit}: {made.stderr.strip()}")
            yield tree
        finally:
            git("worktree", "remove", "--force", tree)


def build(tree: Path, ref: str) -> None:
    """Compile the operators of a worktree."""
    words = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(words, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        log = "\n".join(done.stdout.splitlines()[-LOG_LINES:])
        sys.exit(f"{ref} could not be built (status {done.returncode}). The end of the log:\n{log}")


def compile_marks(folder: Path) -> Path:
    """The library by which a process tells callgrind what to count."""
    compiler = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        sys.exit(
            "There is no C++ compiler (c++, g++ or clang++) on the PATH. Install one (Debian, Ubuntu: apt install g++)."
        )
    library = folder / "marks.so"
    words = [compiler, "-shared", "-fPIC", str(MARKS), "-o", str(library)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            f"{MARKS.name} could not be compiled. Are valgrind's headers installed (Debian, Ubuntu: in valgrind; Fedora: "
            f"valgrind-devel)? The compiler says:\n{done.stderr.strip()}"
        )
    return library


def run_side(root: Path, flags: Sequence[str], variables: Mapping[str, str], before: Sequence[str] = ()) -> str:
    """What compare_side.py prints with the package in `root`; its message ends this process if it fails."""
    words = [*before, sys.executable, str(SIDE), str(root), *flags]
    settings = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "0", **variables}
    done = subprocess.run(words, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"The side in {root} failed (status {done.returncode}):\n{done.stderr.strip()}")
    return done.stdout


def instructions(root: Path, tokens: int, marks: Path, folder: Path) -> dict[str, int]:
    """Instructions of one call of every operator."""
    folder.mkdir()
    valgrind = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder / 'counts'}"]
    variables = {"OMP_NUM_THREADS": "1", "CUDA_OPS_INSTRUCTION_SET": "avx2"}
    flags = ["--tokens", str(tokens), "--heads", str(COUNTED_HEADS), "--marks", str(marks)]
    run_side(root, flags, variables, valgrind)
    return counts(folder)


def counts(folder: Path) -> dict[str, int]:
    """The totals in callgrind's files, by the name that they were written under."""
    found: dict[str, int] = {}
    for path in sorted(folder.glob("counts.*"), key=lambda path: int(path.suffix[1:])):
        lines = path.read_text(encoding="utf-8").splitlines()
        name = next((line.removeprefix(COUNTED_BY) for line in lines if line.startswith(COUNTED_BY)), None)
        if name is not None:
            found[name] = int(next(line for line in lines if line.startswith("totals:")).split()[1])
    return found


def times(sides: Mapping[str, Path], tokens: int, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one call by side and operator: the median of the rounds, in which the sides take turns."""
    taken: dict[str, list[Numbers]] = {side: [] for side in sides}
    flags = ["--tokens", str(tokens), "--heads", str(TIMED_HEADS)]
    for number in range(rounds):
        for side in list(sides)[:: 1 if number % 2 else -1]:
            printed = run_side(sides[side], flags, {"OMP_NUM_THREADS": str(threads)})
            taken[side].append(json.loads(printed))
    return {
        side: {name: statistics.median(one[name] for one in every) for name in every[0]}
        for side, every in taken.items()
    }


def rows(counted: Mapping[str, Numbers], timed: Mapping[str, Numbers]) -> dict[str, dict[str, Any]]:
    """By operator of either side: numbers before and now, their ratio, and whether it is a regression."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys([*counted["before"], *counted["now"]]):
        row: dict[str, Any] = {}
        for unit, numbers in (("instructions", counted), ("milliseconds", timed)):
            before, now = numbers["before"].get(name), numbers["now"].get(name)
            ratio = None if before is None or now is None else round(now / before, 3)
            row[unit] = {"before": before, "now": now, "ratio": ratio}
        ratio = row["instructions"]["ratio"]
        found[name] = {**row, "regression": ratio is not None and ratio > LIMIT}
    return found


def table(compared: Mapping[str, Mapping[str, Any]], ref: str) -> list[str]:
    """The comparison for a terminal; "–" where a side lacks an operator."""
    lines = [f"{'':<36}{f'10⁶ instructions, {COUNTED_HEADS} heads':>32}{f'ms, {TIMED_HEADS} heads':>30}"]
    lines.append(
        f"{'operator':<36}" + f"{ref[:11]:>12}{'now':>11}{'ratio':>9}" + f"{ref[:9]:>12}{'now':>10}{'ratio':>8}"
    )
    for name, row in compared.items():
        counted, timed = row["instructions"], row["milliseconds"]
        cells = [
            _cell(counted["before"], 12, 1e6),
            _cell(counted["now"], 11, 1e6),
            _cell(counted["ratio"], 9, digits=3),
        ]
        cells += [_cell(timed["before"], 12), _cell(timed["now"], 10), _cell(timed["ratio"], 8)]
        lines.append(f"{name:<36}" + "".join(cells) + ("  REGRESSION" if row["regression"] else ""))
    return lines


def _cell(number: float | None, width: int, unit: float = 1, digits: int = 2) -> str:
    return f"{'–':>{width}}" if number is None else f"{number / unit:>{width},.{digits}f}"


def compare(ref: str, tokens: int, rounds: int, threads: int) -> dict[str, Any]:
    """Both sides, built, checked, counted and timed."""
    commit = commit_of(ref)
    require_current_library(ROOT)
    with checked_out(commit) as tree, tempfile.TemporaryDirectory(prefix="bert-cluster-") as folder:
        marks = compile_marks(Path(folder))
        print(f"Building {ref} ({commit[:10]}), which takes minutes …", flush=True)
        build(tree, ref)
        sides, counted = {"before": tree, "now": ROOT}, {}
        for side, root in sides.items():
            print(f"Counting instructions: {ref if side == 'before' else 'the working tree'} …", flush=True)
            counted[side] = instructions(root, tokens, marks, Path(folder) / side)
        print("Timing both in turns …", flush=True)
        timed = times(sides, tokens, rounds, threads)
    settings = {"tokens": tokens, "rounds": rounds, "counted_heads": COUNTED_HEADS, "timed_heads": TIMED_HEADS}
    return {"ref": ref, "commit": commit, **settings, "operators": rows(counted, timed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref", metavar="REF", help="a branch, tag or commit")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="processes of each side that are timed")
    parser.add_argument("--threads", type=int, default=1, help="of what is timed")
    parser.add_argument("--output", type=Path, help="a JSON file with the numbers, the machine and the command")
    options = parser.parse_args()
    require_programs()
    try:
        compared = compare(options.ref, options.tokens, options.rounds, options.threads)
    except KeyboardInterrupt:
        print("\nInterrupted: nothing was compared, and the temporary worktree is removed.", file=sys.stderr)
        sys.exit(130)
    print("\n".join(["", *table(compared["operators"], options.ref)]))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        head = {"command": command(), "date": date.today().isoformat(), **environment(), "threads": options.threads}
        options.output.write_text(json.dumps({**head, **compared}, indent=2) + "\n", encoding="utf-8")
    if any(row["regression"] for row in compared["operators"].values()):
        print(f"\nMarked: more than {LIMIT - 1:.0%} more instructions than {options.ref}.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
