"""A kept order evicts what a search for the lowest rank evicts."""

from contextlib import nullcontext
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.simulator.engine import orders, untimed_kernel
from moe_beyond.simulator.engine.policy import ADMITTED, LAST_USE
from moe_beyond.simulator.engine.policy_inputs import prepare
from moe_beyond.simulator.engine.replay import Cache, replay
from moe_beyond.simulator.policies.engines import WarmLru
from moe_beyond.simulator.policies.on_demand import Fifo, LayerLru, LeastStale, Lfu, Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import capacities_of, traces


class LayerFifo(Fifo):
    """Two lists of admissions, where there are two layers."""

    name = "layer_fifo"
    per_layer = True


class LeastStaleLru(Lru):
    """Inherits from a class of an order, and ranks by something else."""

    rank = staticmethod(LeastStale.rank)


class BypassingLru(Lru):
    """Its own experts compete, so that what is next is not always at the front."""

    bypass = True


def searched():
    """Replays that search, as those of any other policy."""
    return mock.patch.object(orders, "order_of", lambda policy: None)


@given(data=st.data(), policy=st.sampled_from([Lru(), LayerLru(), Fifo(), LayerFifo()]), sequential=st.booleans())
def test_it_counts_what_a_search_counts(data, policy, sequential):
    trace, keep_warm, overrun = data.draw(traces()), data.draw(st.booleans()), data.draw(st.booleans())
    events = events_of(trace, data.draw(st.sampled_from(["batched", "token_by_token"])))
    events = events.one_by_one() if sequential else events
    budget = policy.budget(trace.metadata, data.draw(capacities_of(trace)))
    with mock.patch.object(untimed_kernel, "replay", side_effect=AssertionError("it searched")):
        found = replay(events, policy, budget, keep_warm=keep_warm, overrun=overrun)
    with searched():
        expected = replay(events, policy, budget, keep_warm=keep_warm, overrun=overrun)
    np.testing.assert_array_equal(found.counts_PFC, expected.counts_PFC)
    np.testing.assert_array_equal(found.misses_N, expected.misses_N)


@given(data=st.data(), policy=st.sampled_from([Lru(), LayerLru(), Fifo(), LayerFifo()]), batch=st.integers(2, 3))
def test_it_counts_what_a_search_counts_where_prompts_share_steps(data, policy, batch):
    trace, keep_warm = data.draw(traces()), data.draw(st.booleans())
    events = events_of(trace, "batched", batch=batch, waves=not keep_warm)
    budget = policy.budget(trace.metadata, data.draw(capacities_of(trace)))
    found = replay(events, policy, budget, keep_warm=keep_warm)
    with searched():
        expected = replay(events, policy, budget, keep_warm=keep_warm)
    np.testing.assert_array_equal(found.counts_PFC, expected.counts_PFC)
    np.testing.assert_array_equal(found.misses_N, expected.misses_N)


@given(data=st.data(), policy=st.sampled_from([Lru(), LayerFifo()]))
def test_it_goes_on_from_what_a_search_left(data, policy):
    trace = data.draw(traces())
    events, budget = events_of(trace), policy.budget(trace.metadata, data.draw(capacities_of(trace)))
    prepared = prepare(events, policy, keep_warm=True)
    nothing = prepared.prefetches.just_in_time(events.num_events)

    def twice(first_searches):
        cache = Cache(prepared, budget, 2 * events.num_prompts)
        with searched() if first_searches else nullcontext():
            cache.run(prepared.common, nothing, overrun=False)
        again = prepared.common._replace(empties_N=np.zeros(events.num_events, bool))
        return cache.run(again, nothing, overrun=False)

    np.testing.assert_array_equal(twice(True), twice(False))


def test_orders_are_told_by_the_rank_itself():
    assert [orders.order_of(policy) for policy in (Lru(), LayerLru(), WarmLru(1))] == [LAST_USE] * 3
    assert orders.order_of(Fifo()) == ADMITTED
    assert [orders.order_of(policy) for policy in (Lfu(), LeastStale(), LeastStaleLru(), BypassingLru())] == [None] * 4
