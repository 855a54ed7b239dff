from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.errors import InputError
from moe_beyond.simulator.bounds.split import fit_split, layer_curves_LD
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.on_demand import LayerLru
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import make_trace, traces


@given(traces(), st.booleans(), st.data())
def test_curves_say_what_a_replay_of_the_split_hits(trace, keep_warm, data):
    meta, events = trace.metadata, events_of(trace)
    slots_L = [data.draw(st.integers(1, meta.num_experts)) for _ in range(meta.num_layers)]
    budget = Budget.weighted(meta, sum(slots_L), slots_L)
    assert budget.budget_G.tolist() == slots_L
    hits_LD = layer_curves_LD(events, keep_warm=keep_warm)
    predicted = sum(int(hits_LD[layer, slots]) for layer, slots in enumerate(slots_L))
    assert replay(events, LayerLru(), budget, keep_warm=keep_warm).total.hits == predicted


@given(traces(), st.booleans(), st.data())
def test_no_split_within_the_budget_saves_more(trace, in_bytes, data):
    meta = trace.metadata
    size_L = np.asarray(meta.expert_bytes) if in_bytes else np.ones(meta.num_layers, np.int64)
    total = data.draw(st.integers(int(size_L.max()), int(size_L.sum()) * meta.num_experts))
    hits_LD = layer_curves_LD(events_of(trace))
    slots_L = fit_split(meta, hits_LD, total, in_bytes=in_bytes)
    assert slots_L @ size_L <= total

    def saved(split):
        return sum(int(hits_LD[layer, slots] * size_L[layer]) for layer, slots in enumerate(split))

    every = product(range(meta.num_experts + 1), repeat=meta.num_layers)
    assert saved(tuple(slots_L)) == max(saved(split) for split in every if np.dot(split, size_L) <= total)


def test_bytes_beyond_any_grid_are_rounded_to_the_safe_side():
    meta = make_trace(0, num_layers=2, expert_bytes=(1_000_003, 999_983)).metadata
    hits_LD = np.array([[0, 5, 9, 12, 14, 15], [0, 4, 8, 10, 11, 11]])
    slots_L = fit_split(meta, hits_LD, 4_100_000, in_bytes=True)
    assert slots_L.tolist() == [2, 2]
    assert slots_L @ np.asarray(meta.expert_bytes) <= 4_100_000
    # a layer that gains nothing gets nothing
    assert fit_split(meta, np.array([[0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]]), 4).tolist() == [0, 4]


def test_a_budget_below_one_expert_is_refused():
    meta = make_trace(0, num_layers=2, expert_bytes=(100, 300)).metadata
    hits_LD = np.zeros((2, 6), np.int64)
    with pytest.raises(InputError, match="budget: 0 slots, one expert takes 1"):
        fit_split(meta, hits_LD, 0)
    with pytest.raises(InputError, match="budget: 299 bytes, one expert takes 300"):
        fit_split(meta, hits_LD, 299, in_bytes=True)
