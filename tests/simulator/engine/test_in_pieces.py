"""A replay in pieces counts what a replay of the whole trace counts."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.simulator.bounds.belady import Belady, BeladyForced
from moe_beyond.simulator.engine import in_pieces
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.on_demand import LayerLru, LeastStale, Lfu, Lru
from moe_beyond.simulator.policies.prefetch import Prefetch
from moe_beyond.simulator.policies.static import StaticPopularity
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import capacities_of, drawn_TLE, make_trace, traces


@given(
    data=st.data(),
    choices=st.integers(1, 40),
    prefill=st.sampled_from(["batched", "token_by_token"]),
    sequential=st.booleans(),
)
def test_it_counts_what_the_whole_counts(data, choices, prefill, sequential):
    keep_warm, overrun = data.draw(st.booleans()), data.draw(st.booleans())
    trace = data.draw(traces())
    policies = Lru(), Lfu(), LeastStale(), LayerLru(), Belady(), BeladyForced()
    static = StaticPopularity(drawn_TLE(trace, 0)[0].ravel())
    policy = data.draw(st.sampled_from([*policies, static]))
    budget = policy.budget(trace.metadata, data.draw(capacities_of(trace)))
    events = events_of(trace, prefill)
    events = events.one_by_one() if sequential else events
    whole = replay(events, policy, budget, keep_warm=keep_warm, overrun=overrun)
    with_little = in_pieces.most_choices
    in_pieces.most_choices = lambda: choices
    try:
        found, held = in_pieces.replay_in_pieces(
            trace, policy, budget, prefill=prefill, keep_warm=keep_warm, overrun=overrun, sequential=sequential
        )
    finally:
        in_pieces.most_choices = with_little
    np.testing.assert_array_equal(found.counts_PFC, whole.counts_PFC)
    np.testing.assert_array_equal(found.tokens_PF, whole.tokens_PF)
    assert held == budget.held_at_most(events.members_A, events.offsets_N, overrun=overrun)


def test_a_policy_that_reads_ahead_is_told_apart():
    table = drawn_TLE(make_trace(0), 0)
    assert in_pieces.decides_as_it_runs(Lru())
    assert in_pieces.decides_as_it_runs(Belady())
    assert not in_pieces.decides_as_it_runs(Prefetch("drawn", table, 1, Lru()))
