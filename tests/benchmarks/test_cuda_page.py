"""The design on paper: what the stages cost, and the page made from that and from measurements."""

import cuda_costs
import cuda_page
import pytest
from cuda_costs import CARDS, METHODS, Card, Layer, Stage

FAST = Card("fast", memory=1e12 / cuda_costs.MEMORY_SHARE, float32=1e12 / cuda_costs.FLOAT_SHARE)


def test_a_stage_takes_its_launches_and_what_limits_it() -> None:
    stage = Stage("some", 2, memory=3e6, flop=5e6)
    assert stage.limit(FAST) == "FMA"
    assert stage.seconds(FAST) == pytest.approx(2 * cuda_costs.LAUNCH + 5e-6)
    assert Stage("some", 0, memory=7e6, flop=5e6).seconds(FAST) == pytest.approx(7e-6)


def test_few_blocks_have_a_part_of_the_card() -> None:
    assert Stage("some", 0, 0, flop=5e6, blocks=33).seconds(FAST) == pytest.approx(20e-6)


def test_waiting_comes_on_top_of_work() -> None:
    assert Stage("some", 0, 7e6, waits=2e-6).seconds(FAST) == pytest.approx(9e-6)
    assert Stage("some", 0, 0, trips=10, waits=2e-6).seconds(FAST) == pytest.approx(10 * cuda_costs.FAST_TRIP + 2e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_costs_grow_linearly(method: str, card: Card) -> None:
    """Twice the tokens: twice the bytes, FLOP and integers, but for rounding and what does not depend on them."""
    long, twice = (METHODS[method](cuda_costs.layer_of(method, 1, N)) for N in (65_536, 131_072))
    for name in ("memory", "cache", "tensor", "integer"):
        one, other = (sum(getattr(stage, name) for stage in stages) for stages in (long, twice))
        assert 1.9 < other / one < 2.1
    assert cuda_costs.seconds(long, card) > cuda_costs.floor_seconds(long, card)


def test_exact_attention_is_quadratic() -> None:
    short, long = (cuda_costs.sdpa_seconds(Layer(B=1, N=N)) - cuda_costs.LAUNCH for N in (1024, 4096))
    assert long == pytest.approx(16 * short)


def test_the_design_has_every_size_and_stage() -> None:
    text = cuda_page.design()
    assert text.count("| `improved-clustered` |") == text.count("| `refined-clustered` |") == len(cuda_costs.SIZES)
    for stage in METHODS["refined-clustered"](Layer(B=1, N=2048)):
        assert f"| `{stage.name}` |" in text


def row(milliseconds: float, times: float) -> dict[str, object]:
    spread = {"least_ms": milliseconds, "most_ms": milliseconds, "extra_memory_mib": 0.1, "turns": 5}
    return {"median_ms": milliseconds, "times_sdpa": times, "eager_median_ms": 2 * milliseconds, **spread}


def test_measurements() -> None:
    exact = row(0.52, 1.0) | {"backend": "cudnn", "card": {"clocks.sm": "1980", "clocks.mem": "2619"}}
    results = {
        "command": "python benchmarks/operators.py --device cuda",
        "date": "2026-01-02",
        "machine": "NVIDIA H100",
        "versions": {"torch": "2.13.0"},
        "budgets": {"refined-clustered": {}},
        "tokens": {"8192": {"sdpa": exact, "refined-clustered": row(0.13, 4.0)}},
        "cases": [
            {"name": "2 rows", "tokens": {"8192": {"sdpa": exact | {"card": {}}, "refined-clustered": row(0.26, 2.0)}}},
            {"name": "short", "tokens": {"512": {"sdpa": exact, "refined-clustered": row(13.0, 0.04)}}},
        ],
    }
    lines = cuda_page.measured(results).splitlines()
    assert "| base | 8,192 | 520.0 (cudnn; eager 1,040.0) | 130.0 **4.0×** (eager 260.0) | 1980 / 2619 |" in lines
    assert "| 2 rows | 8,192 | 520.0 (cudnn; eager 1,040.0) | 260.0 **2.0×** (eager 520.0) | – |" in lines
    assert any("13,000.0 **0.04×** (eager 26,000.0)" in line for line in lines)
    assert lines[-1].startswith("`python benchmarks/operators.py --device cuda` on 2026-01-02: NVIDIA H100")
    assert "milliseconds" not in "\n".join(lines)
    assert "no GPU has run these kernels" in cuda_page.measured(None)


def test_crossovers_are_where_a_method_stays_faster() -> None:
    """Not where it is the faster one by chance among shorter texts."""
    times = {"512": 1.3, "1024": 0.9, "2048": 1.0, "4096": 1.1, "16384": 3.0}
    results = {"tokens": {tokens: {"some": row(1, ratio), "other": row(1, 0.5)} for tokens, ratio in times.items()}}
    assert cuda_page.crossovers(results, ["some"]).endswith("stays the faster one: `some` 4,096.")
    assert cuda_page.crossovers(results, ["some", "other"]).endswith("`some` 4,096, `other` none.")
