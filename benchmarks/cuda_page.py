"""docs/cuda.md: the design on paper from cuda_costs.py, and what operators.py measured on a GPU beside it.

    python benchmarks/cuda_page.py    # write both again

No number is typed by hand: a test compares the page with what this script makes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cuda_costs
import operators_page
from cuda_costs import CARDS, METHODS, SIZES, Stage
from operators_page import table
from readme_tables import RESULTS, ROOT, between_marks, kept_results_of

PAGE = ROOT / "docs" / "cuda.md"
FILE = RESULTS / "operators-cuda.json"
NAME = "cuda"
SHOWN = (1, 8192)
"""The size whose bytes and operations the tables of stages have."""

Results = Mapping[str, Any]


def size_title(B: int, N: int) -> str:
    return f"{N:,}" if B == 1 else f"{B} × {N:,}"


def microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f}"


def stages_table(method: str) -> list[str]:
    """Each stage of a method: what it asks for at one size, and microseconds at all of them on the first card."""
    by_size = [METHODS[method](cuda_costs.layer_of(method, B, N)) for B, N, _ in SIZES]
    shown = METHODS[method](cuda_costs.layer_of(method, *SHOWN))
    rows = []
    for place, stage in enumerate(shown):
        times = [microseconds(stages[place].seconds(CARDS[0])) for stages in by_size]
        rows.append([f"`{stage.name}`", *asked(stage), stage.limit(CARDS[0]), *times])
    sums = [microseconds(cuda_costs.seconds(stages, CARDS[0])) for stages in by_size]
    total = Stage(
        "",
        cuda_costs.launches(shown),
        **{name: sum(getattr(one, name) for one in shown) for name in ("memory", "cache", "flop", "tensor")},
    )
    rows.append(["**all**", *asked(total), "", *(f"**{one}**" for one in sums)])
    header = [
        "stage",
        "launches",
        "MB",
        "MB asked of the cache",
        "GFLOP, FMA",
        "GFLOP, tensor cores",
        "limited by",
        *(f"{size_title(B, N)}" for B, N, _ in SIZES),
    ]
    return table(header, rows, texts=1)


def asked(stage: Stage) -> list[str]:
    return [
        str(stage.launches),
        *(f"{value:,.1f}" for value in (stage.memory / 1e6, stage.cache / 1e6, stage.flop / 1e9, stage.tensor / 1e9)),
    ]


def goals_table() -> list[str]:
    """Every method and size against exact attention and the goal, on every card."""
    rows = []
    for method, stages_of in METHODS.items():
        for B, N, goal in SIZES:
            layer = cuda_costs.layer_of(method, B, N)
            stages, exact = stages_of(layer), cuda_costs.sdpa_seconds(layer)
            row = [f"`{method}`", size_title(B, N), microseconds(exact)]
            for card in CARDS:
                ours = cuda_costs.seconds(stages, card)
                row.append(f"{microseconds(ours)} ({exact / ours:.1f}×)")
            floors = [microseconds(cuda_costs.floor_seconds(stages, card)) for card in CARDS]
            rows.append([*row, f"{goal:g}×", " / ".join(floors)])
    names = [card.name for card in CARDS]
    return table(
        [
            "method",
            "tokens",
            "SDPA, µs",
            *(f"{name}, µs" for name in names),
            "goal",
            f"bytes alone ({' / '.join(names)}), µs",
        ],
        rows,
        texts=1,
    )


def design() -> str:
    """What stands between the marks of the design."""
    lines = ["**Against the goals**, microseconds of one layer:", "", *goals_table(), ""]
    for method in METHODS:
        title = f"**`{method}`**: what {size_title(*SHOWN)} tokens ask for, and microseconds on an {CARDS[0].name} by tokens:"
        lines += [title, "", *stages_table(method), ""]
    return "\n".join(lines)


def times_faster(ratio: float) -> str:
    """One decimal, or two where it is slower."""
    return f"{ratio:.{1 if ratio >= 1 else 2}f}×"


def crossovers(results: Results, names: Sequence[str]) -> str:
    """The first measured length of the base case from which on each method stays faster than exact attention."""
    found = []
    for name in names:
        lengths = sorted(map(int, results["tokens"]))
        slower = [n for n in lengths if results["tokens"][str(n)][name]["times_sdpa"] <= 1]
        faster = [n for n in lengths if n > max(slower, default=0)]
        found.append(f"{operators_page.title(name)} {f'{faster[0]:,}' if faster else 'none'}")
    return f"**Crossover**: the first of these lengths of the base case from which on a method stays the faster one: {', '.join(found)}."


def measured(results: Results | None) -> str:
    """What stands between the marks of the measurements."""
    if results is None:
        return (
            "**Nothing is measured: no GPU has run these kernels.** "
            "`python benchmarks/operators.py --device cuda --suite --output benchmarks/results/operators-cuda.json` writes the figures."
        )
    names = [operators_page.SDPA, *results["budgets"]]
    rows = []
    for case, tokens, row in operators_page.rows_of(results):
        exact = row[operators_page.SDPA]
        cells = [f"{1000 * exact['median_ms']:,.1f} ({exact['backend']}; eager {1000 * exact['eager_median_ms']:,.1f})"]
        for name in names[1:]:
            ours = row[name]
            cells.append(
                f"{1000 * ours['median_ms']:,.1f} **{times_faster(ours['times_sdpa'])}** (eager {1000 * ours['eager_median_ms']:,.1f})"
            )
        clocks = exact["card"]
        cells.append(f"{clocks['clocks.sm']} / {clocks['clocks.mem']}" if clocks else "–")
        rows.append([case, tokens, *cells])
    lines = [
        "**Measured**, one layer, medians in microseconds of a graph's replay and of an eager call, and times SDPA:",
        "",
    ]
    lines += table(["case", "tokens", *map(operators_page.title, names), "SM / memory MHz"], rows, texts=1)
    return "\n".join([*lines, "", crossovers(results, names[1:]), "", f"{operators_page.source(results)}."])


def updated(page: str, results: Results | None) -> str:
    """The page's text with its sections made anew."""
    return between_marks(between_marks(page, "cuda-design", design()), NAME, measured(results))


def kept_results() -> Results | None:
    """The content of the results file; None before the first measurement."""
    return kept_results_of(FILE)


def main() -> None:
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), kept_results()), encoding="utf-8")


if __name__ == "__main__":
    main()
