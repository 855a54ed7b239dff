"""Eviction by the predicted next use."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.simulator.bounds import Belady
from moe_beyond.simulator.budget import Budget
from moe_beyond.simulator.events import events_of
from moe_beyond.simulator.policies.anticipate import Anticipate, expected_wait
from moe_beyond.simulator.policies.base import LAYER, NUM_FEATURES, PRIOR, SCORE
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.replay import replay
from tests.simulator.strategies import capacities_of, make_trace, traces


def test_the_expected_wait_in_layers():
    # four layers of two experts; the event is in layer 1
    features = np.zeros((NUM_FEATURES, 8))
    features[LAYER] = [0, 0, 1, 1, 2, 2, 3, 3]
    features[PRIOR] = 0.25
    features[SCORE] = [0.25, 0.25, 0.25, 0.75, 1.0, 0.0, 1.0, 0.25]
    waits = [-expected_wait(features, expert, 0, 0, 1) for expert in range(8)]
    # sure in the next layer: 1; never there: 1, then 4 layers / 0.25; layer 0 comes round after 3, layer 1 after 4
    assert waits[4:6] == [1, 1 + 16]
    assert waits[6:] == [2, 2 + 0.75 * 16]
    assert waits[0] == waits[1] == 3 + 0.75 * 16
    assert waits[2] == 4 + 0.75 * 16
    # half way from 0.25 to 0.75
    assert waits[3] == 4 + 0.5 * 16


@given(data=st.data(), seed=st.integers(0, 99), keep_warm=st.booleans())
def test_it_never_loads_less_than_belady(data, seed, keep_warm):
    trace = data.draw(traces())
    meta, events = trace.metadata, events_of(trace)
    draw = np.random.default_rng(seed)
    probabilities_TLE = draw.random((trace.num_tokens, meta.num_layers, meta.num_experts), np.float32)
    popularity_LE = draw.random((meta.num_layers, meta.num_experts), np.float32)
    budget = Budget.slots(meta, data.draw(capacities_of(trace)))
    bound = replay(events, Belady(), budget, keep_warm=keep_warm).total
    for bypass in (False, True):
        policy = Anticipate("drawn", probabilities_TLE, popularity_LE, bypass)
        assert replay(events, policy, budget, keep_warm=keep_warm).total.hits <= bound.hits


def test_knowing_the_token_beats_lru_where_layers_cycle():
    trace = make_trace(5, num_layers=4, num_experts=16, lengths=(300,), prefill=(0,))
    truth_TLE = np.zeros((300, 4, 16), np.float32)
    np.put_along_axis(truth_TLE, trace.experts_TLK.astype(np.int64), 1, axis=2)
    policy = Anticipate("oracle", truth_TLE, truth_TLE.mean(axis=0))
    events, budget = events_of(trace), Budget.slots(trace.metadata, 6)
    known = replay(events, policy, budget).total.hits
    assert replay(events, Lru(), budget).total.hits == 0
    assert 0.5 * replay(events, Belady(), budget).total.hits < known
