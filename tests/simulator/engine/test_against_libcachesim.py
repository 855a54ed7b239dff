"""Hits of single accesses against libCacheSim, an independent simulator."""

import libcachesim as lcs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond.paper.protocol import lru_hits
from moe_beyond.simulator.bounds.belady import BeladyForced, belady_hits
from moe_beyond.simulator.bounds.hit_curves import lru_curve
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.on_demand import Fifo, LfuResident, Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import make_trace

# it counts uses from the admission on, and its Belady may not bypass
POLICIES = {"LRU": Lru(), "FIFO": Fifo(), "LFU": LfuResident(), "Belady": BeladyForced()}


def their_hits(name, events, capacity):
    """Hits by libCacheSim, one request an access."""
    cache = getattr(lcs, name)(capacity, hashpower=12)
    next_use_A = events.next_use_A()
    request = lcs.Request()
    request.obj_size = 1
    hits = 0
    for now, expert in enumerate(events.members_A.tolist()):
        request.obj_id, request.clock_time = expert + 1, now
        request.next_access_vtime = int(min(next_use_A[now], np.iinfo(np.int64).max >> 1))
        hits += cache.get(request)
    return hits


@pytest.mark.parametrize("name", POLICIES)
@given(seed=st.integers(0, 2**20), capacity=st.integers(1, 24), length=st.integers(1, 60))
@settings(max_examples=40)
def test_hits_on_random_traces(name, seed, capacity, length):
    trace = make_trace(seed, num_layers=3, num_experts=8, top_k=3, lengths=(length,), prefill=(0,))
    events = events_of(trace, "token_by_token").one_by_one()
    hits = [replay(events, POLICIES[name], Budget.slots(trace.metadata, capacity)).total.hits]
    if name == "Belady":
        hits.append(belady_hits(events.members_A, events.next_use_A(), 24, capacity))
    if name == "LRU":
        hits += [lru_hits(events.members_A, 24, capacity), int(lru_curve(events).hits_D[capacity])]
    assert set(hits) == {their_hits(name, events, capacity)}
