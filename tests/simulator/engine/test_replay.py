"""The compiled replay against a slow, obvious one, and what must hold of any replay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.simulator.bounds.belady import Belady, BeladyForced
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.replay import replay, sweep
from moe_beyond.simulator.policies.on_demand import Fifo, LeastStale, Lfru, Lfu, LfuResident, Lru
from moe_beyond.simulator.policies.prefetch import Prefetch
from moe_beyond.simulator.policies.static import StaticPopularity
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.engine import slow_clock
from tests.simulator.engine.slow_clock import Case, belady, hits_of
from tests.simulator.strategies import capacities_of, drawn_TLE, make_trace, traces

POLICIES: dict[str, type[Policy]] = {
    "lru": Lru,
    "lfu": Lfu,
    "lfu_resident": LfuResident,
    "fifo": Fifo,
    "lfru": Lfru,
    "least_stale": LeastStale,
    "belady": Belady,
    "belady_forced": BeladyForced,
}
DEMAND = sorted({*POLICIES} - {"belady", "belady_forced"})


def policy_of(name, trace, seed):
    if name == "static":
        draw = np.random.default_rng(seed)
        return StaticPopularity(draw.integers(0, 4, trace.metadata.num_model_experts).astype(np.float32))
    return POLICIES[name]()


@pytest.mark.parametrize("name", [*POLICIES, "static"])
@given(data=st.data(), rules=st.tuples(st.booleans(), st.booleans(), st.booleans()), seed=st.integers(0, 99))
def test_counts_equal_the_slow_reference(name, data, rules, seed):
    keep_warm, overrun, per_layer = rules
    trace = data.draw(traces())
    meta, events = trace.metadata, events_of(trace)
    capacity = data.draw(st.integers(meta.num_layers if per_layer else 1, meta.num_model_experts))
    budget, policy = Budget.slots(meta, capacity, per_layer=per_layer), policy_of(name, trace, seed)
    ranks = {**slow_clock.RANKS, **dict.fromkeys(("belady", "belady_forced"), belady(events, keep_warm=keep_warm))}
    rules = {"keep_warm": keep_warm, "overrun": overrun}
    case = Case(events, budget, ranks[name], scores=policy.scores_SM(events).tolist(), bypass=policy.bypass, **rules)
    expected = [hits_of(record) for record in slow_clock.replay(case)]
    result = replay(events, policy, budget, **rules)
    assert (np.diff(events.offsets_N) - result.misses_N).tolist() == expected
    assert result.total.hits == sum(expected)


@given(data=st.data(), keep_warm=st.booleans(), seed=st.integers(0, 99))
def test_no_lossless_policy_loads_less_than_belady(data, keep_warm, seed):
    trace = data.draw(traces())
    events, budget = events_of(trace), Budget.slots(trace.metadata, data.draw(capacities_of(trace)))
    bound = replay(events, Belady(), budget, keep_warm=keep_warm).total
    forced = replay(events, BeladyForced(), budget, keep_warm=keep_warm).total
    assert bound.hits >= forced.hits
    for name in (*DEMAND, "static"):
        policy = policy_of(name, trace, seed)
        assert bound.hits >= replay(events, policy, budget, keep_warm=keep_warm).total.hits
        prefetch = Prefetch("drawn", drawn_TLE(trace, seed), 2, policy)
        assert bound.loads <= replay(events, prefetch, budget, keep_warm=keep_warm).total.loads
    for name in DEMAND:
        assert forced.hits >= replay(events, policy_of(name, trace, seed), budget, keep_warm=keep_warm).total.hits


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
    by_layer = np.asarray(meta.expert_bytes)[events.layer_N]
    total = result.total
    assert total.demand_bytes == int((by_layer * result.misses_N).sum())
    assert total.misses == int(result.misses_N.sum())
    assert total.prefetches == total.prefetches_useful + total.prefetches_useless
    assert total.bytes_moved == total.demand_bytes + total.prefetch_bytes
    if len(set(meta.expert_bytes)) == 1:
        assert total.bytes_moved == total.loads * meta.expert_bytes[0]
    # and the input is as it was
    np.testing.assert_array_equal(events.members_A, before[0])
    np.testing.assert_array_equal(table, before[1])


def test_a_global_lru_that_the_other_layers_fill_never_hits_in_decode():
    trace = make_trace(1, num_layers=4, num_experts=8, top_k=3, lengths=(50,), prefill=(0,))
    others = trace.metadata.token_cycle - trace.metadata.top_k
    full, spare = sweep(events_of(trace), Lru(), [Budget.slots(trace.metadata, c) for c in (others, others + 1)])
    assert full.total.hits == 0
    assert spare.total.hits > 0
