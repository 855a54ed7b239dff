"""The clairvoyant bound against a search over everything that a cache could keep."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond.devices.workload import Workload
from moe_beyond.simulator.bounds.belady import Belady, BeladyForced
from moe_beyond.simulator.bounds.hit_curves import belady_curve
from moe_beyond.simulator.bounds.time_bound import time_bound
from moe_beyond.simulator.engine.timing import timed_replay
from moe_beyond.simulator.policies.on_demand import LayerLru, Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import DEVICES, capacities_of, make_trace, members, prefetching, traces


def least_loads(events, slots):
    """Fewest loads for decoded tokens, whatever is kept after each event: a search over all contents of the cache."""
    best = {frozenset(): 0}
    for wanted, step in zip(members(events), events.step_N, strict=True):
        after = {}
        for content, loads in best.items():
            # what prefills load is free, and may serve decoding
            paid = loads + len(set(wanted) - content) * bool(events.is_decode_S[step])
            loaded = content | set(wanted)
            for kept in map(frozenset, combinations(loaded, min(slots, len(loaded)))):
                after[kept] = min(paid, after.get(kept, paid))
        best = after
    return min(best.values())


def bound_of(events, slots, device, workload, *, overrun=False):
    return time_bound(events, belady_curve(events), slots, device, workload, overrun=overrun)


@given(data=st.data(), device=DEVICES, prefill=st.booleans(), sizes=st.booleans())
@settings(max_examples=25)
def test_it_is_the_larger_of_computing_and_the_fewest_loads(data, device, prefill, sizes):
    shape = {"prefill": (2, 1) if prefill else (0, 0), "expert_bytes": (1000, 3000) if sizes else None}
    trace = make_trace(data.draw(st.integers(0, 2**20)), num_experts=4, **shape)
    events, slots = events_of(trace), data.draw(st.integers(1, 5))
    workload = Workload.of(trace.metadata, 2, dense_bytes=500)
    bound = bound_of(events, slots, device, workload)
    tokens, loads = int(events.is_decode_S.sum()), least_loads(events, slots)
    num_bytes = 500 + 2 * sum(trace.metadata.expert_bytes)
    computing = num_bytes / device.memory_gb_per_s / 1e6 + 2 * device.layer_overhead_us / 1e3
    assert bound.compute_ms_per_token == pytest.approx(computing)
    moving = loads * 1000 / device.link_gb_per_s / 1e6 / tokens
    found = (bound.ms_per_token, bound.mib_per_token, 1 - bound.hit_rate)
    expected = (max(computing, moving), loads * 1000 / 2**20 / tokens, loads / (4 * tokens))
    if not prefill:
        assert found == pytest.approx(expected)
    else:
        assert (np.array(found) <= np.array(expected) * (1 + 1e-9)).all(), "a bound is never above what can be reached"


@given(data=st.data(), device=DEVICES, lookahead=st.integers(0, 3), seed=st.integers(0, 99), overrun=st.booleans())
def test_no_lossless_policy_decodes_a_token_faster(data, device, lookahead, seed, overrun):
    trace, layer_step_ms = data.draw(traces()), data.draw(st.sampled_from([0.0, 0.3, 40.0]))
    events, slots = events_of(trace), data.draw(capacities_of(trace))
    if not events.is_decode_S.any():
        return
    misses = {"miss": data.draw(st.sampled_from(["load", "compute", "sooner"])), "cpu_gb_per_s": 1e-3}
    beside = {"miss_layer_us": 2.0, "admit_gb_per_s": 1e-3, "overlap": data.draw(st.booleans())}
    device = device.model_copy(update=data.draw(st.sampled_from([{}, misses, beside, misses | beside])))
    workload = Workload.of(trace.metadata, lookahead)
    bound = bound_of(events, slots, device, workload, overrun=overrun)
    prefetches = [prefetching(trace, seed), replace(prefetching(trace, seed, layers=True), layer_step_ms=layer_step_ms)]
    for policy in (Lru(), LayerLru(), Belady(), BeladyForced(), *prefetches):
        budget = policy.budget(trace.metadata, slots)
        timed = timed_replay(events, policy, budget, device, workload, overrun=overrun)
        assert timed.ms_per_token >= bound.ms_per_token * (1 - 1e-9)
        assert timed.hits.value <= bound.hit_rate + 1e-9 or timed.replay.total.prefetches
