"""Policies that prefetch one layer ahead."""

import numpy as np
import pytest

from moe_beyond.simulator.policies.next_layer import Fate, MixtralOffloading, NextLayerMap
from moe_beyond.simulator.policies.pre_gated import PreGated, PreGatedLru
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.simulator.schedule.prefetches import when_routed
from tests.simulator.policies.literal import literal, replayed
from tests.simulator.strategies import make_trace, members, truth_TLE


def permuted(seed, tokens=60):
    """Each layer uses the neighbours of what the layer below used."""
    first = np.random.default_rng(seed).permuted(np.tile(np.arange(8), (tokens, 1)), axis=1)[:, :2]
    return literal(np.stack([first, (first + 1) % 8, (first + 2) % 8], axis=1).tolist(), num_experts=8)


@pytest.fixture(scope="module")
def gate():
    return NextLayerMap.fit(permuted(0))


def test_the_map_finds_what_follows_from_the_layer_below(gate):
    for layer in range(2):
        np.testing.assert_array_equal(gate.weights_LEE[layer].argmax(axis=1), (np.arange(8) + 1) % 8)
    events = events_of(permuted(1, 5))
    requests = gate.requests(events, 2)
    assert requests.known_Q.tolist() == [int(when_routed(3 * token + layer)) for token in range(5) for layer in (0, 1)]
    wanted = members(events)
    for target, experts in zip(requests.target_Q, requests.experts_X.reshape(-1, 2).tolist(), strict=True):
        assert sorted(experts) == sorted(wanted[target])


def test_least_squares_is_what_numpy_says():
    trace = make_trace(3, num_layers=2, num_experts=4, lengths=(40,), prefill=(0,))
    here, there = np.moveaxis(truth_TLE(trace), 1, 0)
    # a ridge of 1 is one more row of data for each expert
    expected = np.linalg.lstsq(np.vstack([here, np.eye(4)]), np.vstack([there, np.zeros((4, 4))]), rcond=None)[0]
    np.testing.assert_allclose(NextLayerMap.fit(trace).weights_LEE[0], expected, atol=1e-5)


def test_mixtral_offloading(gate):
    trace = permuted(2, 30)
    policy = MixtralOffloading(gate, 2)
    total = replayed(policy, trace, 6).total
    # all but the first layer is foreseen; one speculative load foresees half of it
    assert total.misses <= 2 * 30
    assert total.prefetches_useless == 0
    half = replayed(MixtralOffloading(gate, 1), trace, 6).total
    assert total.misses < half.misses <= 2 * 30 + 2 * 30
    assert policy.prefetches(events_of(trace)).num_requests == 60


def test_fate(gate):
    trace = permuted(2, 30)
    policy = Fate(gate)
    # shallow layers get more, and the whole is dealt out
    assert policy.budget(trace.metadata, 12).budget_G.tolist() == [6, 4, 2]
    total = replayed(policy, trace, 12).total
    assert total.misses <= 2 * 30
    assert total.prefetches_useless == 0


def test_pre_gated():
    trace = make_trace(1, num_layers=4, num_experts=6, lengths=(20,), prefill=(0,))
    total = replayed(PreGated(), trace, 24).total
    # the first layer of each token is loaded on demand, all else is foreseen, and nothing is kept: k experts a layer
    assert total.misses == 2 * 20
    assert total.prefetches_useless == 0
    assert total.loads == total.accesses
    # a batched prefill is loaded on demand
    mixed = replayed(PreGated(), make_trace(2, num_layers=3, num_experts=6, lengths=(9,), prefill=(8,)), 18)
    assert (mixed.prefill.prefetches, mixed.decode.prefetches) == (0, 2 * 2)


def test_pre_gated_lru():
    trace = make_trace(1, num_layers=4, num_experts=6, lengths=(20,), prefill=(0,))
    kept, bare = replayed(PreGatedLru(), trace, 24).total, replayed(PreGated(), trace, 24).total
    # what was loaded stays, so that a cache of the whole model loads each expert once
    assert kept.loads <= 24 < bare.loads
    assert kept.prefetches_useless == 0
    assert PreGatedLru().needs_another_router
