"""Hits of single accesses against libCacheSim, an independent simulator."""

from pathlib import Path

import libcachesim as lcs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond import formats as importers
from moe_beyond.paper.recency import lru_hits
from moe_beyond.simulator.bounds.belady import BeladyForced, belady_hits
from moe_beyond.simulator.bounds.curves import lru_curve
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.on_demand import Fifo, LfuResident, Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.phone_traces import shared
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
    ours = replay(events, POLICIES[name], Budget.slots(trace.metadata, capacity)).total.hits
    assert ours == their_hits(name, events, capacity)


@pytest.fixture(scope="module")
def published():
    source: Path = shared("webglm.tar.xz")
    return events_of(importers.read("moe-beyond-csv", source), "token_by_token").one_by_one()


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("capacity", [60, 166, 832])
def test_hits_on_a_published_trace(name, capacity, published):
    ours = replay(published, POLICIES[name], Budget.slots(published.metadata, capacity)).total.hits
    theirs = their_hits(name, published, capacity)
    assert ours == theirs
    if name == "Belady":
        next_use_A = published.next_use_A()
        assert belady_hits(published.members_A, next_use_A, published.metadata.num_model_experts, capacity) == theirs
    if name == "LRU":
        assert lru_hits(published.members_A, published.metadata.num_model_experts, capacity) == theirs
        assert lru_curve(published).hits_D[capacity] == theirs
