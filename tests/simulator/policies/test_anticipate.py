"""Eviction by the predicted next use."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.simulator.bounds.belady import Belady
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.loop import Times, just_in_time, run
from moe_beyond.simulator.engine.policy import LAST_STEP, LAYER, NUM_FEATURES, RANKS, SCORE, SECOND_SCORE
from moe_beyond.simulator.engine.prepared import prepare
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.anticipate import MEMORY, PERSISTENCE, Anticipate, expected_wait
from moe_beyond.simulator.policies.prefetch import Prefetch
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import capacities_of, drawn_TLE, make_trace, traces


def test_the_expected_wait_in_layers():
    # four layers of two experts; the event is in layer 1
    features = np.zeros((NUM_FEATURES, 8))
    features[LAYER] = [0, 0, 1, 1, 2, 2, 3, 3]
    features[SECOND_SCORE] = 0.25
    features[LAST_STEP] = -1
    features[LAST_STEP, 3] = 0
    features[SCORE] = [0.25, 0.25, 0.25, 0.75, 1.0, 0.0, 1.0, 0.25]
    expected_wait(features, np.arange(8, dtype=np.int32), 0, 0, 1)
    waits = (-features[RANKS, :8]).tolist()
    # sure in the next layer: 1; never there: 1, then 4 layers / 0.25; layer 0 comes round after 3, layer 1 after 4
    assert waits[4:6] == [1, 1 + 16]
    assert waits[6:] == [2, 2 + 0.75 * 16]
    # of layers that have passed, the rate forgets a little: expert 3 was used in this step, the others were not
    unused, used = 0.25 * (1 - MEMORY), 0.25 + MEMORY * 0.75
    chance = unused + PERSISTENCE * (0.25 - unused)
    assert waits[0] == waits[1] == pytest.approx(3 + (1 - chance) * 4 / unused)
    assert waits[2] == pytest.approx(4 + (1 - chance) * 4 / unused)
    assert waits[3] == pytest.approx(4 + (1 - used - PERSISTENCE * (0.75 - used)) * 4 / used)


def test_the_rate_starts_from_popularity_at_each_prompt_and_knows_only_the_past():
    trace = make_trace(4, num_layers=2, num_experts=5, top_k=2, lengths=(4, 3), prefill=(2, 0))
    events = events_of(trace)
    popularity_LE = np.full((2, 5), 0.4, np.float32)
    policy = Anticipate("drawn", np.zeros((7, 2, 5), np.float32), popularity_LE)
    rates_SM = policy.scores_SM(events)[:, 10:]
    assert rates_SM[[0, 3]] == pytest.approx(np.full((2, 10), 0.4, np.float32))
    # two tokens of prefill, then one of decode
    kept = (1 - MEMORY) ** 2
    for layer in range(2):
        wanted = set(trace.experts_TLK[:2, layer].ravel().tolist())
        for expert in range(5):
            share = 2 / len(wanted) if expert in wanted else 0
            assert rates_SM[1, layer * 5 + expert] == pytest.approx(0.4 * kept + (1 - kept) * share)
    used = np.isin(np.arange(10), [e + 5 * layer for layer in (0, 1) for e in trace.experts_TLK[2, layer].tolist()])
    assert rates_SM[2] == pytest.approx(rates_SM[1] * (1 - MEMORY) + MEMORY * used)


@given(data=st.data(), seed=st.integers(0, 99), keep_warm=st.booleans())
def test_it_never_loads_less_than_belady(data, seed, keep_warm):
    trace = data.draw(traces())
    meta, events = trace.metadata, events_of(trace)
    popularity_LE = np.random.default_rng(seed).random((meta.num_layers, meta.num_experts), np.float32)
    budget = Budget.slots(meta, data.draw(capacities_of(trace)))
    bound = replay(events, Belady(), budget, keep_warm=keep_warm).total
    for bypass in (False, True):
        policy = Anticipate("drawn", drawn_TLE(trace, seed), popularity_LE, bypass)
        assert replay(events, policy, budget, keep_warm=keep_warm).total.hits <= bound.hits


def test_what_is_fetched_for_a_layer_does_not_push_out_what_the_layer_may_use():
    # two layers of three experts, one of each a token; the cache holds one of each layer
    trace = make_trace(0, num_layers=2, num_experts=3, top_k=1, lengths=(2,), prefill=(0,))
    trace = replace(trace, experts_TLK=np.zeros((2, 2, 1), np.uint8))
    probabilities_TLE = np.full((2, 2, 3), 0.01, np.float32)
    probabilities_TLE[:, 0, 0] = 0.9
    # in the second layer the second token's most probable expert is another one, and what is resident nearly as likely
    probabilities_TLE[0, 1, 0] = 0.9
    probabilities_TLE[1, 1] = [0.45, 0.5, 0.01]
    popularity_LE = np.full((2, 3), 0.2, np.float32)
    policy = Prefetch("drawn", probabilities_TLE, 1, Anticipate("drawn", probabilities_TLE, popularity_LE, False))
    events, budget = events_of(trace), Budget.slots(trace.metadata, 2)
    # of the first layer, which in this token has passed, one leaves for the prefetch
    assert replay(events, policy, budget).total.hits == 4
    prepared = prepare(events, policy, keep_warm=True)
    assert run(prepared, just_in_time(prepared), budget, Times.none(prepared)).replay.total.hits == 4
