"""What must hold of any replay."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.simulator.bounds.belady import Belady, BeladyForced
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy_inputs import prepare
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.engine.timed_loop import Times, just_in_time, run
from moe_beyond.simulator.policies.anticipate import Anticipate
from moe_beyond.simulator.policies.on_demand import Fifo, LeastStale, Lfru, Lfu, LfuResident, Lru
from moe_beyond.simulator.policies.prefetch import Prefetch
from moe_beyond.simulator.policies.static import StaticPopularity
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import capacities_of, drawn_TLE, make_trace, traces


@given(data=st.data(), keep_warm=st.booleans(), seed=st.integers(0, 99))
def test_no_lossless_policy_loads_less_than_belady(data, keep_warm, seed):
    trace = data.draw(traces())
    events, budget = events_of(trace), Budget.slots(trace.metadata, data.draw(capacities_of(trace)))

    def total(policy):
        return replay(events, policy, budget, keep_warm=keep_warm).total

    chances_TLE = drawn_TLE(trace, seed)
    forced = [Fifo(), LeastStale(), Lfru(), Lfu(), LfuResident(), Lru()]
    forced.append(Anticipate("drawn", chances_TLE, chances_TLE.mean(axis=0), bypass=False))
    bypassing = [StaticPopularity(chances_TLE[0].ravel()), replace(forced[-1], bypass=True)]
    bound = total(Belady())
    for policy in forced:
        assert total(policy).hits <= total(BeladyForced()).hits
    for policy in (*forced, *bypassing, BeladyForced()):
        assert total(policy).hits <= bound.hits
        assert total(Prefetch("drawn", chances_TLE, 2, policy)).loads >= bound.loads


@given(data=st.data(), width=st.integers(0, 4), seed=st.integers(0, 99))
def test_prompts_and_phases_add_up_and_bytes_are_those_of_misses_and_prefetches(data, width, seed):
    trace = data.draw(traces())
    events, meta = events_of(trace), trace.metadata
    table = drawn_TLE(trace, seed)
    policy, before = Prefetch("drawn", table, width, Lru()), (events.members_A.copy(), table.copy())
    result = replay(events, policy, Budget.slots(meta, data.draw(capacities_of(trace))))
    assert (result.total.accesses, result.total.tokens) == (events.num_accesses, trace.num_tokens)
    decode_tokens = trace.num_tokens - int(trace.num_prefill_P.sum())
    assert result.decode.accesses == decode_tokens * meta.token_cycle
    assert result.prefill.accesses + result.decode.accesses == result.accesses_P.sum() == result.total.accesses
    if len(set(meta.expert_bytes)) == 1:
        assert result.total.bytes_moved == result.total.loads * meta.expert_bytes[0]
    # and the input is as it was
    np.testing.assert_array_equal(events.members_A, before[0])
    np.testing.assert_array_equal(table, before[1])


@pytest.mark.parametrize(("policy", "evictions"), [(Lru(), 2), (Belady(), 1)])
def test_what_an_event_loads_and_does_not_keep_is_no_eviction(policy, evictions):
    # two slots: a prefill of three experts keeps two of them; then 3 comes for one of these, and 0 or 1 for another
    trace = make_trace(0, num_layers=1, num_experts=4, top_k=1, lengths=(5,), prefill=(3,))
    trace = replace(trace, experts_TLK=np.array([0, 1, 2, 3, 1], np.uint8).reshape(5, 1, 1))
    events, budget = events_of(trace), Budget.slots(trace.metadata, 2)
    plain, prepared = replay(events, policy, budget), prepare(events, policy, keep_warm=True)
    timed = run(prepared, just_in_time(prepared), budget, Times.none(prepared))
    # the prefill loads three and leaves an empty cache's two slots full: it has evicted nothing
    assert timed.evictions_N.tolist()[0] == 0
    assert plain.total.evictions == timed.replay.total.evictions == evictions
