"""Policies of engines that users run, on cases to check by hand."""

from dataclasses import replace

import numpy as np
import pytest

from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies import catalogue
from moe_beyond.simulator.policies.engines import PinnedLru, Swap, WarmLru
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.settings import PolicySettings
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import make_trace


def routed(*experts):
    """One layer, one expert a token, all decoded."""
    trace = make_trace(0, num_layers=1, num_experts=4, top_k=1, lengths=(len(experts),), prefill=(0,))
    return replace(trace, experts_TLK=np.array(experts, trace.experts_TLK.dtype)[:, None, None])


def misses(policy, trace, capacity=1):
    return replay(events_of(trace), policy, Budget.slots(trace.metadata, capacity)).misses_N.tolist()


def test_swap_2():
    # 0 is resident with one use; 1 has at least 1.5 more at its third, in an even step, so that it stays
    assert misses(Swap(1), routed(0, 1, 1, 1, 1)) == [1, 1, 1, 1, 0]
    # at the second use it has one more only
    assert misses(Swap(1), routed(0, 1, 1, 0)) == [1, 1, 1, 0]
    # its third use is in step 3, between two rounds
    assert misses(Swap(2), routed(0, 1, 1, 1, 1, 1)) == [1, 1, 1, 1, 1, 0]


def test_pinned_lru_2():
    training = routed(3, 3, 3, 2, 2, 1)
    policy = PinnedLru.fit(training, 2)
    assert policy.pinned_M.tolist() == [0, 0, 1, 1]
    # pins are there before the first token; 0 and 1 take turns in the third place
    assert misses(policy, routed(3, 2, 0, 1, 0, 3, 2), capacity=3) == [0, 0, 1, 1, 1, 0, 0]


def test_warm_lru_2():
    trace = make_trace(0, num_layers=1, num_experts=4, top_k=1, lengths=(8,), prefill=(6,))
    experts = np.array([3, 3, 0, 0, 1, 2, 3, 0], trace.experts_TLK.dtype)[:, None, None]
    trace = replace(trace, experts_TLK=experts)
    # the prefill leaves its last expert in the cache; the two that it used most are then fetched
    assert misses(WarmLru(2), trace, capacity=2) == [4, 0, 0]
    assert misses(Lru(), trace, capacity=2) == [4, 1, 1]


def test_pins_are_there_again_where_a_prompt_starts_with_an_empty_cache():
    trace = make_trace(1, num_layers=2, num_experts=4, top_k=1, lengths=(3, 3), prefill=(0, 0))
    policy = PinnedLru(np.ones(8, np.float32), 8)
    counted = replay(events_of(trace), policy, Budget.slots(trace.metadata, 8), keep_warm=False).total
    assert counted.misses == 0


def test_a_name_without_a_number_that_makes_sense_is_refused():
    for name in ("swap_0", f"pinned_lru_{2**24}"):
        with pytest.raises(InputError, match=f"policy '{name}': give a number from 1"):
            catalogue.build(name, routed(0), PolicySettings())
    with pytest.raises(InputError, match=r"policy 'swap' is not known; .*swap_NUMBER"):
        catalogue.build("swap", routed(0), PolicySettings())
