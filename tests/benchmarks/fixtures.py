"""Small results files, as the long measurements write them. The numbers are made up."""

from typing import Any

from budgets_page import DEFAULT, FULL, PAPER, label

from bert_cluster import ClusterConfig

HEAD = {
    "command": "python benchmarks/some.py --shared ../shared",
    "date": "2026-01-02",
    "machine": "Some Processor",
    "threads": 2,
    "operators": "cpu-avx512",
    "versions": {"torch": "2.13.0"},
}


def method(score: str, value: float, difference: tuple[float, float, float] | None, same: float) -> dict[str, Any]:
    """One method of one task of fidelity.json; without a difference it is full attention."""
    own = None if difference is None else dict(zip(("value", "low", "high"), difference, strict=True))
    return {
        "scores": {score: {"value": value, "difference_to_full": own}},
        "agreement_with_full": None if own is None else {"kind": "same predictions", "value": same},
        "hidden_state_error": None if own is None else {"mean": 0.0123, "most": 0.05, "texts": 64},
        "seconds": 12.34,
        "peak_memory_bytes": 600 * 2**20,
    }


def task(name: str, title: str, tokens: int, methods: dict[str, Any]) -> dict[str, Any]:
    """One task of fidelity.json."""
    shared = {"data": "all of the development set", "examples": 2000, "inputs": 2000, "mean_tokens": 165.4}
    return {"task": name, "title": title, "tokens": tokens, "dtype": "float32", **shared, "methods": methods}


def fidelity() -> dict[str, Any]:
    """fidelity.json: SQuAD at two lengths and QNLI; CoLA is missing."""
    squad = {"full": method("f1", 64.0, None, 1.0), "refined-clustered": method("f1", 63.9, (-0.1, -0.4, 0.2), 0.985)}
    long = {"full": method("f1", 50.0, None, 1.0), "refined-clustered": method("f1", 50.9, (0.9, 0.1, 2.0), 0.9)}
    qnli = {
        "full": method("accuracy", 81.5, None, 1.0),
        "refined-clustered": method("accuracy", 81.0, (-0.5, -0.9, -0.1), 0.98),
    }
    tasks = [
        task("squad", "SQuAD v1.1", 384, squad),
        task("squad", "SQuAD v1.1", 512, long),
        task("qnli", "QNLI", 128, qnli),
    ]
    command = "python ../shared/tools/train_adapter.py CoLA output/adapters/CoLA"
    return {**HEAD, "batch_size": 8, "tasks": tasks, "missing": [{"task": "CoLA", "command": command}]}


def point(config: ClusterConfig, error: float, time: float, squad: dict[str, Any] | None = None) -> dict[str, Any]:
    """One point of budgets.json."""
    times = {size: {label(config): time, FULL: 0.9} for size in ("64", "32")}
    shared = {"error": {"mean": error, "most": error, "texts": 6}, "microseconds": times, "squad": squad}
    return {"name": label(config), "method": config.method, **config.for_layer(0).budgets(), **shared}


def budgets() -> dict[str, Any]:
    """budgets.json: the two named budgets, one that is worse than the default in both, and one more exact."""
    squad = {
        "same_answers": 0.988,
        "f1": 63.2,
        "difference_to_full": {"value": -0.001, "low": -0.4, "high": 0.3},
        "questions": 1000,
    }
    points = [
        point(DEFAULT, 0.072, 0.5, squad),
        point(PAPER, 0.404, 0.2),
        point(ClusterConfig(clusters=12, topk=64, key_clusters=64), 0.08, 0.6),
        point(ClusterConfig(clusters=50, topk=128, key_clusters=64), 0.03, 0.8),
    ]
    shape = {"B": 1, "H": 12, "N": 512, "dtype": "float32"}
    return {**HEAD, "shape": shape, "passes": 5, "turns": 21, "texts": 6, "squad_questions": 1000, "points": points}


def times(milliseconds: float, memory: float | None, baseline: float) -> dict[str, Any]:
    """One method at one length of operators-cpu.json."""
    near = {"lower_quartile_ms": 0.95 * milliseconds, "upper_quartile_ms": 1.05 * milliseconds}
    spread = {"least_ms": 0.9 * milliseconds, "most_ms": 1.2 * milliseconds, "turns": 7}
    ratio = {"times_sdpa": round(baseline / milliseconds, 2), "extra_memory_mib": memory}
    return {"median_ms": milliseconds, **near, **spread, **ratio}


def operators() -> dict[str, Any]:
    """operators-cpu.json: SDPA grows as N², ours as N; idiap's package takes no bfloat16."""
    rows = {
        str(tokens): {
            "sdpa": times(tokens**2 / 1e5, 1.5, tokens**2 / 1e5),
            "refined-clustered": times(tokens / 300, 12.25, tokens**2 / 1e5),
            "idiap": times(tokens / 10, 40.0, tokens**2 / 1e5),
        }
        for tokens in (128, 512, 2048)
    }
    rounded = {name: row for name, row in rows["512"].items() if name != "idiap"}
    shape = {"B": 1, "H": 12, "D": 64, "dtype": "float32"}
    padded = {"shape": {**shape, "B": 8}, "padding": 0.5, "threads": 2, "backend": "cpu-avx512"}
    return {
        **{key: value for key, value in HEAD.items() if key != "operators"},
        **{"backend": "cpu-avx512", "shape": shape, "padding": 0.0, "tokens": rows},
        "budgets": {"refined-clustered": {"clusters": 25}, "idiap": {"clusters": 25}},
        "cases": [
            {"name": "half the tokens padded", **padded, "tokens": {"512": rows["512"]}},
            {"name": "bfloat16", **padded, "padding": 0.0, "tokens": {"512": rounded, "2048": rounded}},
        ],
    }
