"""The hand-checkable toy of moe-cache-eval (Apache-2.0): event-atomic LRU, two slots in each of three layers."""

import json

import numpy as np
import polars as pl
import pytest

from moe_beyond.simulator.budget import Budget
from moe_beyond.simulator.events import Events
from moe_beyond.simulator.policies.on_demand import LayerLru
from moe_beyond.simulator.replay import replay
from moe_beyond.traces.schema import TraceMetadata
from tests.simulator.phone_traces import shared


@pytest.fixture
def toy():
    manifest = json.loads(shared("conformance", "manifest.json").read_text())
    table = pl.read_csv(shared("conformance", "events.csv"))
    num_layers, num_experts = manifest["model"]["num_layers"], manifest["model"]["num_experts_per_layer"]
    steps = manifest["scheduler_steps"]
    members = [
        [int(expert) + layer * num_experts for expert in wanted.split()]
        for layer, wanted in table.select("layer", "requested_experts").iter_rows()
    ]
    metadata = TraceMetadata(
        model_id="toy",
        layer_numbers=tuple(range(num_layers)),
        num_experts=num_experts,
        top_k=2,
        expert_bytes=(1,) * num_layers,
        source="shijiuzhang/moe-cache-eval",
        licence="Apache-2.0",
    )
    events = Events(
        metadata=metadata,
        members_A=np.concatenate(members).astype(np.int32),
        offsets_N=np.cumsum([0, *map(len, members)]).astype(np.int64),
        layer_N=table["layer"].to_numpy().astype(np.int32),
        step_N=table["scheduler_step"].to_numpy().astype(np.int32),
        prompt_S=np.zeros(steps, np.int32),
        token_S=np.arange(steps, dtype=np.int64),
        prompt_tokens_PF=np.array([[0, steps]]),
    )
    return events, manifest, table


def test_every_expected_count(toy):
    events, manifest, table = toy
    expected = manifest["expected"]
    policy = LayerLru()
    budget = Budget.slots(events.metadata, manifest["capacity_blocks_total"], per_layer=policy.per_layer)
    assert budget.budget_G.tolist() == [manifest["capacity_blocks_per_layer"]] * 3
    result = replay(events, policy, budget)
    total = result.total
    assert (total.accesses, total.hits, total.misses) == (
        expected["total_accesses"],
        expected["hits"],
        expected["misses"],
    )
    assert total.compulsory_misses == expected["compulsory_misses"]
    assert total.misses - total.compulsory_misses == expected["capacity_misses"]
    assert total.evictions == expected["evictions"]
    assert total.loads == expected["cache_insertions"] == expected["transferred_blocks"]
    assert total.loads + total.evictions == expected["cache_churn_blocks"]
    assert total.loads / total.tokens == expected["blocks_per_model_token"]
    assert result.misses_N.tolist() == expected["event_misses"] == table["misses"].to_list()
    per_step = np.bincount(events.step_N, weights=result.misses_N)
    percentiles = [np.percentile(per_step, q, method="higher") for q in (50, 95, 99)]
    assert percentiles == [expected[f"step_miss_p{q}"] for q in (50, 95, 99)]
    assert per_step.max() == expected["max_step_misses"]
