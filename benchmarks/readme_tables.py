"""The tables in README.md, made from the files that `make demo`, `make table`, benchmarks/operators.py and benchmarks/model.py wrote.

    python benchmarks/readme_tables.py --take output/demo   # keep the demo's results and plot here, and write the table
    python benchmarks/readme_tables.py                      # write the tables again from what is kept

No number is typed by hand: a test compares the README with what this script makes.
"""

import argparse
import datetime
import json
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
PLOT = ROOT / "docs" / "images" / "demo-squad.png"
TASKS = ("squad", "qnli")
COMMAND = "make demo"
HEADER = (
    "task",
    "attention",
    "score",
    "difference to full [95 %]",
    "same predictions as full",
    "seconds",
    "tokens/s",
    "peak memory",
)

README_METHODS = ("improved-clustered", "refined-clustered", "refined-clustered, C=25 K=64 M=32")
"""Of benchmarks/operators.py; docs/speed.md has all."""


def take(folder: Path, note: str) -> None:
    """Keep the demo's result files and plot: the files as they are, but for paths of the machine, with date and command."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        source = folder / task / "all_results.json"
        results = without_machine_paths(json.loads(source.read_text(encoding="utf-8")))
        date = datetime.date.fromtimestamp(source.stat().st_mtime).isoformat()
        results["recorded"] = {"date": date, "command": COMMAND, "note": note}
        kept = RESULTS / f"demo-{task}.json"
        kept.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "squad" / "plot.png", PLOT)


def kept_results_of(path: Path) -> dict[str, Any] | None:
    """The content of a results file; None before the first measurement."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def without_machine_paths(value: Any) -> Any:
    """The same JSON value with absolute paths cut to what is the same everywhere: from the package or `examples` on."""
    if isinstance(value, dict):
        return {key: without_machine_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_machine_paths(item) for item in value]
    if not isinstance(value, str) or not value.startswith("/"):
        return value
    parts = Path(value).parts
    for anchor, first in (("site-packages", 1), ("examples", 0)):
        if anchor in parts:
            return "/".join(parts[parts.index(anchor) + first :])
    return parts[-1]


def section() -> str:
    """What stands between the two marks in README.md, from the kept files."""
    results = [json.loads((RESULTS / f"demo-{task}.json").read_text(encoding="utf-8")) for task in TASKS]
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|" + "---:|" * (len(HEADER) - 2)]
    lines += ["| " + " | ".join(cells) + " |" for one in results for cells in rows(one)]
    lines += ["", caption(results), "", f"![SQuAD by method: F1, agreement, seconds, memory]({PLOT.relative_to(ROOT)})"]
    return "\n".join(lines)


def rows(results: dict[str, Any]) -> list[list[str]]:
    """One row for each method: the task's first primary score, in points of 100."""
    task = results["task"]
    score, scale = task["primary_scores"][0], 1.0 if task["score_unit"] == "percent" else 100.0
    cells = []
    for name, method in results["methods"].items():
        difference, agreement = "–", "–"
        if method["difference_to_full"]:
            value = {key: scale * number for key, number in method["difference_to_full"][score].items()}
            difference = f"{value['value']:+.1f} [{value['low']:+.1f}, {value['high']:+.1f}]"
            agreement = f"{100 * method['agreement_with_full']['value']:.1f} %"
        memory = method["peak_memory_bytes"]
        cells.append(
            [
                task["title"],
                f"`{name}`",
                f"{score_name(score)} {scale * method['scores'][score]:.1f}",
                difference,
                agreement,
                f"{method['seconds']:.1f}",
                f"{method['tokens_per_second']:,.0f}",
                "–" if memory is None else f"{memory / 2**20:,.0f} MiB",
            ]
        )
    return cells


def caption(results: list[dict[str, Any]]) -> str:
    """Command, date, machine, and what was run."""
    first = results[0]
    for key in ("environment", "recorded"):
        if any(one[key] != first[key] for one in results):
            raise SystemExit(f"The kept results differ in {key!r}: take both from one run of `{COMMAND}`.")
    environment, recorded = first["environment"], first["recorded"]
    data = "; ".join(
        f"{one['task']['title']}: {one['data']['examples']} examples in {one['batches']['inputs']} inputs of "
        f"{one['batches']['tokens'] / one['batches']['inputs']:.0f} tokens on average, at most "
        f"{one['settings']['max_seq_length']}"
        for one in results
    )
    sentences = [
        f"`{recorded['command']}` on {recorded['date']}: {environment['device_name']}, {environment['threads']} threads, "
        f"{first['model']['dtype']}, torch {environment['torch']}, operators {environment['operators']}.",
        f"{data}.",
        "The model is all-MiniLM-L6-v2 (6 layers, 12 heads of 32) with the adapters in `examples/`.",
        "Seconds are forward passes only; brackets are paired bootstrap intervals.",
    ]
    return " ".join(sentences + ([recorded["note"]] if recorded["note"] else []))


def operators_section() -> str:
    """Times of one layer, from the file of benchmarks/operators.py."""
    results = json.loads((RESULTS / "operators-cpu.json").read_text(encoding="utf-8"))
    lines = ["| tokens | SDPA, ms | " + " | ".join(f"`{method}`, ms" for method in README_METHODS) + " |"]
    lines.append("|---:|---:|" + "---:|" * len(README_METHODS))
    for tokens, row in results["tokens"].items():
        cells = [f"{row[name]['median_ms']:,.1f} ({row[name]['times_sdpa']:.1f} ×)" for name in README_METHODS]
        lines.append(f"| {int(tokens):,} | {row['sdpa']['median_ms']:,.1f} | " + " | ".join(cells) + " |")
    shape = results["shape"]
    lines += [
        "",
        f"`{results['command']}` on {results['date']}: {results['machine']}, {results['threads']} threads, "
        f"{shape['dtype']}, torch {results['versions']['torch']}, operators {results['backend']}; one layer, "
        f"B={shape['B']}, H={shape['H']}, D={shape['D']}, medians; in brackets times SDPA.",
    ]
    return "\n".join(lines)


def models_section(results: dict[str, Any] | None = None) -> str:
    """Times of whole encoders, one text without padding, from the file of benchmarks/model.py or from its content."""
    results = results or json.loads((RESULTS / "model-cpu.json").read_text(encoding="utf-8"))
    methods = README_METHODS[:2]
    lines = ["| encoder | tokens | `full`, s | " + " | ".join(f"`{method}`, s" for method in methods) + " |"]
    lines.append("|---|---:|---:|" + "---:|" * len(methods))
    cells = [cell for cell in results["cells"].values() if cell["kind"] == "case"]
    for cell in sorted(cells, key=lambda cell: (cell["shape"], cell["tokens"])):
        rows = [cell["methods"][name] for name in ("full", *methods)]
        if (cell["batch"], cell["padding"]) != (1, "none") or any("not_run" in row for row in rows):
            continue
        shown = [f"{row['median_s']:.3g} ({row['times_full']:.1f} ×)" for row in rows[1:]]
        start = f"| {cell['shape']} | {cell['tokens']:,} | {rows[0]['median_s']:.3g}"
        lines.append(" | ".join([start, *shown]) + " |")
    settings, dates = results["settings"], sorted({run["date"] for run in results["runs"]})
    lines += [
        "",
        f"`python benchmarks/model.py` on {' and '.join(dates)}: {settings['machine']}, {settings['threads']} threads, {settings['dtype']}, "
        f"torch {settings['versions']['torch']}, operators {settings['operators']}; one text, medians; in brackets times full.",
    ]
    return "\n".join(lines)


def accuracy_section(results: dict[str, Any] | None = None) -> str:
    """What each method changes in each task's score, from the file of benchmarks/fidelity.py or from its content."""
    results = results or json.loads((RESULTS / "fidelity.json").read_text(encoding="utf-8"))
    methods = [name for name in results["tasks"][0]["methods"] if name != "full"]
    lines = ["| task | tokens | `full` | " + " | ".join(f"`{name}`" for name in methods) + " |"]
    lines.append("|---|---:|---:|" + "---:|" * len(methods))
    for task in results["tasks"]:
        score, full = next(iter(task["methods"]["full"]["scores"].items()))
        scores = [task["methods"][name]["scores"][score] for name in methods]
        cells = [shown_difference(one["difference_to_full"]) for one in scores]
        start = f"| {task['title']}, {score_name(score).replace('_', ' ')} | {task['tokens']} | {full['value']:.1f}"
        lines.append(" | ".join([start, *cells]) + " |")
    lines += [
        "",
        f"`{results['command']}` on {results['date']}: all-MiniLM-L6-v2 (6 layers, 12 heads of 32) with one adapter for each task; scores "
        "in points of 100, then differences to full with paired 95 % bootstrap intervals.",
    ]
    return "\n".join(lines)


def score_name(score: str) -> str:
    """A score as the tables name it."""
    return "F1" if score == "f1" else score


def shown_difference(difference: dict[str, float] | None) -> str:
    """A difference in points with its interval; two digits, because the small ones matter."""
    if difference is None:
        return "–"
    # adding 0.0 turns a rounded -0.0 into 0.0
    value, low, high = (round(difference[key], 2) + 0.0 for key in ("value", "low", "high"))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def between_marks(text: str, name: str, made: str) -> str:
    """The text with what stands between the two marks of that name replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise SystemExit(f"The document must have the lines {begin} and {end}. Put them where the table belongs.")
    return f"{before}{begin}\n{made}\n{end}{after}"


def updated(readme: str) -> str:
    """The README's text with its sections made anew; that of `make table` where README.md has the marks for it."""
    if "<!-- fidelity:begin -->" in readme:
        readme = between_marks(readme, "fidelity", accuracy_section())
    readme = between_marks(readme, "demo", section())
    readme = between_marks(readme, "models", models_section())
    return between_marks(readme, "operators", operators_section())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", type=Path, metavar="FOLDER", help="the demo's output folder")
    parser.add_argument("--note", default="", help="a sentence for under the table, such as what else the machine did")
    options = parser.parse_args()
    if options.take is not None:
        take(options.take, options.note)
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
