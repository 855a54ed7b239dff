"""Policies that look at past uses alone, and bounds, by sequences that can be followed by hand: 1 a miss, 0 a hit."""

import numpy as np
import pytest

from moe_beyond.simulator.bounds.belady import Belady, BeladyForced
from moe_beyond.simulator.policies import on_demand
from moe_beyond.simulator.policies.fitted_split import LayerLruFitted
from moe_beyond.simulator.policies.static import StaticPopularity
from tests.simulator.policies.literal import literal, misses

CASES = {
    "lru": (on_demand.Lru(), 2, [0, 1, 0, 2, 0, 1], [1, 1, 0, 1, 0, 1]),
    # three slots: two for the first layer, one for the second
    "layer_lru": (on_demand.LayerLru(), 3, [[0, 0], [1, 1], [0, 1]], [1, 1, 1, 1, 0, 0]),
    # 2 pushes out 0, which comes back with its earlier uses: so 2 is evicted, then 1
    "lfu": (on_demand.Lfu(), 2, [1, 1, 1, 0, 0, 2, 0, 2, 1], [1, 0, 0, 1, 0, 1, 1, 1, 1]),
    # the same, but 0 comes back as if new: so 0 is evicted for 2, and 1 stays
    "lfu_resident": (on_demand.LfuResident(), 2, [1, 1, 1, 0, 0, 2, 0, 2, 1], [1, 0, 0, 1, 0, 1, 1, 1, 0]),
    # in the first layer 0 was used twice, so 2 pushes out 1; the second layer has a slot of its own
    "layer_lfu": (on_demand.LayerLfu(), 3, [[0, 0], [0, 1], [1, 1], [2, 1], [0, 1]], [1, 1, 0, 1, 1, 0, 1, 0, 0, 0]),
    "fifo": (on_demand.Fifo(), 2, [0, 1, 0, 2, 0, 1], [1, 1, 0, 1, 1, 1]),
    # when 3 comes, 0 has 4 uses of 8 accesses ago, 1 and 2 have 3 of lately: 0 is evicted, where LFU would evict 1
    "lfru": (on_demand.Lfru(), 3, [0, 0, 0, 0, 1, 2, 1, 2, 1, 2, 3, 1], [1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0]),
    # the second token uses 0 again: it is fresh, so the second layer's old expert is evicted, though 0 came first
    "least_stale": (on_demand.LeastStale(), 2, [[0, 0], [0, 1], [0, 1]], [1, 1, 0, 1, 0, 0]),
    # 2 is used and not kept: both others come sooner
    "belady": (Belady(), 2, [0, 1, 2, 0, 1], [1, 1, 1, 0, 0]),
    # 2 must be kept: the later of the two others is evicted
    "belady_forced": (BeladyForced(), 2, [0, 1, 2, 0, 1], [1, 1, 1, 0, 1]),
}


@pytest.mark.parametrize(("policy", "capacity", "tokens", "expected"), CASES.values(), ids=CASES)
def test_misses_are_those_that_follow_by_hand(policy, capacity, tokens, expected):
    assert misses(policy, literal(tokens, num_experts=4), capacity) == expected


def test_static_popularity():
    policy = StaticPopularity.fit(literal([0, 0, 0, 1, 1, 2], num_experts=4))
    np.testing.assert_array_equal(policy.popularity_M, [3, 2, 1, 0])
    # 3 stays while there is space; then the popular ones settle, and what passes through does not disturb them
    assert misses(policy, literal([3, 3, 1, 0, 2, 3, 0, 1], num_experts=4), 2) == [1, 0, 1, 1, 1, 1, 0, 0]


def test_layer_lru_fitted():
    # the first layer never uses an expert twice in a row of eight, the second alternates between two
    trace = literal([[token % 8, token % 2] for token in range(16)], num_experts=8)
    policy = LayerLruFitted.fit(trace)
    assert policy.budget(trace.metadata, 4).budget_G[1] >= 2
    # a split by halves serves the second layer just as well, a single slot of it does not
    assert sum(misses(policy, trace, 3)) == 16 + 2
    assert sum(misses(on_demand.LayerLru(), trace, 3)) == 16 + 16


def test_random():
    uniform = np.random.default_rng(0).integers(0, 20, (4000, 1, 1)).astype(np.uint8)
    trace = literal(uniform, num_experts=20)
    first = misses(on_demand.Random(0), trace, 10)
    assert first == misses(on_demand.Random(0), trace, 10)
    assert first != misses(on_demand.Random(1), trace, 10)
    # of 20 equally likely experts half are resident, whatever is evicted
    assert np.mean(first) == pytest.approx(0.5, abs=0.03)
