"""The replay against what a phone's engine counted, and against every row that its project published."""

import polars as pl
import pytest

from moe_beyond.simulator.bounds import BeladyForced
from moe_beyond.simulator.budget import Budget
from moe_beyond.simulator.policies.base import Policy
from moe_beyond.simulator.policies.on_demand import LayerLfu, LayerLru, Lfu, Lru
from moe_beyond.simulator.replay import replay
from moe_beyond.simulator.results import MIB
from tests.simulator.phone_traces import phone_events, shared

# the project's names; its engine loads what it uses, so its Belady may not bypass
POLICIES: dict[str, Policy] = {
    "lru": Lru(),
    "belady": BeladyForced(),
    "lfu": Lfu(),
    "layer": LayerLru(),
    "layerlfu": LayerLfu(),
}


@pytest.fixture(scope="module", params=["qwen", "gptoss"])
def recording(request):
    return request.param, phone_events(request.param)


@pytest.mark.parametrize(("name", "budget_mib", "hit_percent"), [("qwen", 4000, 74.9), ("gptoss", 3000, 32.4)])
def test_the_engines_own_hit_rate(name, budget_mib, hit_percent):
    summary = shared("bigmoe-on-edge", f"{name}.metrics").read_text().splitlines()[-1]
    assert f"cache_hit_pct={hit_percent}" in summary
    events = phone_events(name)
    result = replay(events, Lru(), Budget.bytes(events.metadata, budget_mib * MIB), overrun=True)
    assert 100 * result.total.hit_rate == pytest.approx(hit_percent, abs=0.05)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_row_of_the_published_curves(recording, policy):
    name, events = recording
    rows = pl.read_csv(shared("bigmoe-on-edge", f"{name}-curve.csv")).filter(pl.col("policy") == policy)
    assert rows.height == 11
    chosen = POLICIES[policy]
    for row in rows.iter_rows(named=True):
        budget = Budget.bytes(events.metadata, row["budget_mib"] * MIB, per_layer=chosen.per_layer)
        result = replay(events, chosen, budget, overrun=True)
        assert 100 * result.total.hit_rate == pytest.approx(row["hit_pct_cum"], abs=0.0006)
        assert 100 * result.decode.hit_rate == pytest.approx(row["hit_pct_decode"], abs=0.0006)
        assert result.total.bytes_moved / MIB == pytest.approx(row["read_mib"], abs=0.06)
