"""Policies that look at past uses alone, by sequences that can be followed by hand: 1 is a miss, 0 a hit."""

from dataclasses import replace

import numpy as np
import pytest

from moe_beyond.simulator.policies.on_demand import (
    Fifo,
    LayerLfu,
    LayerLru,
    LeastStale,
    Lfru,
    Lfu,
    LfuResident,
    Lru,
    Random,
)
from tests.simulator.policies.literal import literal, misses


def test_lru():
    trace = literal([0, 1, 0, 2, 0, 1], num_experts=3)
    assert misses(Lru(), trace, 2) == [1, 1, 0, 1, 0, 1]


def test_layer_lru():
    # three slots: two for the first layer, one for the second
    trace = literal([[0, 0], [1, 1], [0, 1]], num_experts=2)
    assert misses(LayerLru(), trace, 3) == [1, 1, 1, 1, 0, 0]
    assert misses(Lru(), trace, 3) == [1, 1, 1, 1, 1, 0]


def test_lfu():
    # 2 pushes out 0, which comes back knowing that it was used before: so 2 leaves, then 1
    trace = literal([1, 1, 1, 0, 0, 2, 0, 2, 1], num_experts=3)
    assert misses(Lfu(), trace, 2) == [1, 0, 0, 1, 0, 1, 1, 1, 1]


def test_lfu_resident():
    # the same, but 0 comes back as if new: so 0 leaves for 2, and 1 stays
    trace = literal([1, 1, 1, 0, 0, 2, 0, 2, 1], num_experts=3)
    assert misses(LfuResident(), trace, 2) == [1, 0, 0, 1, 0, 1, 1, 1, 0]


def test_layer_lfu():
    # in the first layer 0 was used twice, so 2 pushes out 1; the second layer's single slot is its own affair
    trace = literal([[0, 0], [0, 1], [1, 1], [2, 1], [0, 1]], num_experts=3)
    assert misses(LayerLfu(), trace, 3) == [1, 1, 0, 1, 1, 0, 1, 0, 0, 0]


def test_fifo():
    trace = literal([0, 1, 0, 2, 0, 1], num_experts=3)
    assert misses(Fifo(), trace, 2) == [1, 1, 0, 1, 1, 1]


def test_lfru():
    # when 3 comes, 0 has 4 uses of 8 accesses ago, 1 and 2 have 3 of lately: 0 leaves, where LFU would let 1 go
    trace = literal([0, 0, 0, 0, 1, 2, 1, 2, 1, 2, 3, 1], num_experts=4)
    assert misses(Lfru(), trace, 3)[-2:] == [1, 0]
    assert misses(Lfu(), trace, 3)[-2:] == [1, 1]


def test_least_stale():
    # the second token uses 0 again: it is fresh, so the second layer's old expert leaves, though 0 came first
    trace = literal([[0, 0], [0, 1], [0, 1]], num_experts=2)
    assert misses(LeastStale(), trace, 2) == [1, 1, 0, 1, 0, 0]
    # where nobody is fresh it is first in, first out
    trace = literal([[0, 0], [1, 0]], num_experts=2)
    assert misses(LeastStale(), trace, 2) == [1, 1, 1, 0]


def test_random():
    trace = literal([0] * 4000, num_experts=20)
    uniform = np.random.default_rng(0).integers(0, 20, (4000, 1, 1)).astype(np.uint8)
    trace = replace(trace, experts_TLK=uniform)
    first = misses(Random(0), trace, 10)
    assert first == misses(Random(0), trace, 10)
    assert first != misses(Random(1), trace, 10)
    # of 20 equally likely experts half are resident, whoever leaves
    assert np.mean(first) == pytest.approx(0.5, abs=0.03)
