"""docs/budgets.md and its plot, from benchmarks/results/budgets.json.

    python benchmarks/budgets_page.py    # write both again from what is kept

No number is typed by hand: a test compares the page with what this script makes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from readme_tables import RESULTS, ROOT, between_marks, kept_results_of, shown_difference

from bert_cluster import ClusterConfig

PAGE = ROOT / "docs" / "budgets.md"
PLOT = ROOT / "docs" / "images" / "budgets.png"
FILE = RESULTS / "budgets.json"
NAME = "budgets"
FULL = "full"
DEFAULT = ClusterConfig(**ClusterConfig().for_layer(0).budgets_at(512))  # type: ignore[arg-type]
PAPER = ClusterConfig(method="improved-clustered").with_defaults()
LETTERS = {"clusters": "C", "topk": "K", "key_clusters": "M", "band": "W"}
SHOWN = ("clusters", "topk", "key_clusters", "band", "rounds", "sample")
TICKS = (0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
MARKERS = {"refined-clustered": ("#1f77b4", "o"), "improved-clustered": ("#8a8f98", "s")}
NAMED = {"refined-clustered": "refined", "improved-clustered": "improved"}


def label(config: ClusterConfig) -> str:
    """A budget's name: refined C=25 K=64 M=32 W=4 rounds=3 sample=256, improved C=25 K=32."""
    budgets = config.for_layer(0).budgets()
    values = [f"{LETTERS.get(name, name)}={budgets[name]}" for name in SHOWN if name in budgets]
    return " ".join([NAMED[config.method], *values])


def microseconds(point: dict[str, Any], head_size: int = 64) -> float:
    """Of the budget's operator, per token and head."""
    return float(point["microseconds"][str(head_size)][point["name"]])


def exact_microseconds(results: dict[str, Any], head_size: int = 64) -> float:
    """Of PyTorch's attention, which ran beside every budget: the median of its medians."""
    found = sorted(point["microseconds"][str(head_size)][FULL] for point in results["points"])
    return float(found[len(found) // 2])


def on_front(points: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the points that no other beats, from the fastest on: none is as fast and more exact, or faster and as exact."""
    found: list[str] = []
    least = float("inf")
    for point in sorted(points, key=lambda one: (microseconds(one), one["error"]["mean"])):
        if point["error"]["mean"] < least:
            least = point["error"]["mean"]
            found.append(point["name"])
    return found


def remark(name: str) -> str:
    """Which of the two named budgets a point is."""
    return {label(DEFAULT): "**the default**", label(PAPER): "**the paper's**"}.get(name, "")


def section(results: dict[str, Any] | None) -> str:
    """What stands between the marks of the page."""
    if results is None:
        return "Not measured yet: `make budgets` fills this in."
    front = on_front(results["points"])
    chosen = [point for point in results["points"] if point["name"] in front or remark(point["name"])]
    chosen.sort(key=microseconds)
    with_squad = any(point["squad"] for point in chosen)
    header = ["method", "C", "K", "M", "W", "rounds", "sample", "error", "µs, D=64", "times SDPA", "µs, D=32"]
    header += ["same answers", "F1", "difference to full [95 %]"] if with_squad else []
    header += ["on the front", ""]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 3) + "---|---|"]
    for point in chosen:
        cells = [*budget_cells(point), *(squad_cells(point) if with_squad else [])]
        lines.append(
            "| " + " | ".join([*cells, "yes" if point["name"] in front else "no", remark(point["name"])]) + " |"
        )
    picture = "![Error of the last hidden state against microseconds, by budget](images/budgets.png)"
    return "\n".join([*lines, "", caption(results, len(front)), "", picture])


def budget_cells(point: dict[str, Any]) -> list[str]:
    """Method, budgets, error and times of one point."""
    time = microseconds(point)
    return [
        f"`{point['method']}`",
        *(str(point.get(name, "–")) for name in SHOWN),
        f"{point['error']['mean']:.3f}",
        f"{time:.2f}",
        f"{point['microseconds']['64'][FULL] / time:.1f}",
        f"{microseconds(point, 32):.2f}",
    ]


def squad_cells(point: dict[str, Any]) -> list[str]:
    """SQuAD's part of a row."""
    squad = point["squad"]
    if squad is None:
        return ["–", "–", "–"]
    same, difference = 100 * squad["same_answers"], shown_difference(squad["difference_to_full"])
    return [f"{same:.1f} %", f"{squad['f1']:.1f}", difference]


def caption(results: dict[str, Any], front: int) -> str:
    """Command, date, machine, and what was run."""
    shape = results["shape"]
    sentences = [
        f"`{results['command']}` on {results['date']}: {results['machine']}, {results['threads']} threads, "
        f"{shape['dtype']}, torch {results['versions']['torch']}, operators {results['operators']}.",
        f"{len(results['points'])} budgets, {front} of them on the front. Errors are means of {results['texts']} texts of "
        f"{shape['N']} tokens; times are microseconds per token and head of the fused operator, medians of "
        f"{results['passes']} passes of {results['turns']} turns, B={shape['B']}, H={shape['H']}, N={shape['N']}; PyTorch's attention takes "
        f"{exact_microseconds(results):.2f} (D=64) and {exact_microseconds(results, 32):.2f} (D=32).",
    ]
    if results["squad_questions"]:
        sentences.append(f"SQuAD v1.1: {results['squad_questions']:,} random questions, one window of 384 tokens.")
    return " ".join(sentences)


def draw(results: dict[str, Any], path: Path) -> None:
    """Error against microseconds: every budget, the front, and the two named budgets."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = {point["name"]: (microseconds(point), point["error"]["mean"]) for point in results["points"]}
    front = [points[name] for name in on_front(results["points"])]
    exact = exact_microseconds(results)
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for method, (colour, marker) in MARKERS.items():
        own = [points[one["name"]] for one in results["points"] if one["method"] == method]
        if own:
            axis.scatter(*zip(*own, strict=True), s=24, c=colour, marker=marker, alpha=0.6, linewidths=0, label=method)
    axis.plot(*zip(*front, strict=True), color="#d95f02", linewidth=1.3, label="no budget is faster and more exact")
    axis.axvline(exact, color="#333333", linestyle="--", linewidth=1, label=f"exact attention (SDPA): {exact:.2f} µs")
    for config, text in ((DEFAULT, "the default"), (PAPER, "the paper's budget")):
        if label(config) in points:
            _name_point(axis, points[label(config)], f"{text}\n{label(config).split(' ', 1)[1].split(' rounds')[0]}")
    axis.set_yscale("log")
    axis.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axis.set_ylim(min(TICKS[0], 0.8 * front[-1][1]), TICKS[-1])
    axis.set_xlim(0, max(1.3 * exact, *(1.05 * time for time, _ in points.values())))
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    axis.set_xlabel("microseconds per token and head, one layer of 512 tokens, D=64")
    axis.set_ylabel("relative error of the last hidden state")
    axis.legend(fontsize=8, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _name_point(axis: Any, position: tuple[float, float], text: str) -> None:
    """A circle around a point, and a text beside it that covers what lies behind."""
    axis.scatter(*position, s=90, facecolors="none", edgecolors="black", linewidths=1.4, zorder=4)
    axis.annotate(
        text,
        position,
        (26, 22),
        textcoords="offset points",
        fontsize=9,
        zorder=5,
        bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "#bbbbbb", "alpha": 0.9},
        arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 0.8, "shrinkB": 5},
    )


def updated(page: str, results: dict[str, Any] | None) -> str:
    """The page's text with its section made anew."""
    return between_marks(page, NAME, section(results))


def kept_results() -> dict[str, Any] | None:
    """The content of the results file; None before the first measurement."""
    return kept_results_of(FILE)


def main() -> None:
    results = kept_results()
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    if results is not None:
        draw(results, PLOT)


if __name__ == "__main__":
    main()
