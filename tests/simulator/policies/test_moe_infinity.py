"""MoE-Infinity against a slow matching that follows the description line by line."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond.simulator.engine.policy import LAYER, NUM_FEATURES, RANKS, USES
from moe_beyond.simulator.policies.count_matrices import finished_PM, replayed_PM, uses_A
from moe_beyond.simulator.policies.layer_passes import LayerPasses
from moe_beyond.simulator.policies.moe_infinity import MoeInfinity, MoeInfinityOneCluster, matches
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.simulator.schedule.prefetches import when_routed
from tests.simulator.policies.literal import literal
from tests.simulator.strategies import make_trace

ODD = [[[2, 3]] * 3] * 4


def slow_similarities(stored_NLE, counts_LE, layer):
    """1 - distance of each stored matrix, rows up to `layer` of the stored ones made uniform."""
    stored = stored_NLE.astype(np.float64).copy()
    stored[:, : layer + 1] = 1e-9
    stored /= np.maximum(stored.sum(axis=2, keepdims=True), 1e-12)
    current = counts_LE / np.maximum(counts_LE.sum(axis=1, keepdims=True), 1e-12)
    lengths = np.linalg.norm(stored, axis=2) * np.linalg.norm(current, axis=1)
    return ((stored * current).sum(axis=2) / np.maximum(lengths, 1e-12)).mean(axis=1)


def winners(policy, events):
    passes, meta = LayerPasses.of(events), events.metadata
    ever_GM = np.concatenate([policy.stored_GM, replayed_PM(events)])
    by_pass, num_stored = (passes.offsets_V, passes.step_V, passes.layer_V, passes.prompt_S), len(policy.stored_GM)
    return ever_GM, matches(events.members_A, uses_A(events), *by_pass, ever_GM, num_stored, meta.num_layers)


@given(seed=st.integers(0, 999))
@settings(max_examples=20)
def test_every_match_is_the_best_of_a_slow_search(seed):
    training = make_trace(seed, num_layers=3, num_experts=6, lengths=(9, 8, 7, 9, 5), prefill=(0,) * 5)
    policy = MoeInfinity.fit(training, 4)
    trace = make_trace(seed + 1, num_layers=3, num_experts=6, lengths=(6, 5, 7), prefill=(2, 0, 0))
    events = events_of(trace)
    ever_GM, winner_SL = winners(policy, events)
    stored, wins = list(range(4)), [0] * 4
    for step in range(events.num_steps):
        if step and events.prompt_S[step] != events.prompt_S[step - 1]:
            place = int(np.argmin(wins))
            stored[place], wins[place] = 4 + int(events.prompt_S[step - 1]), 0
        # every token of the prompt so far, those of its prefill too
        start = trace.prompt_offsets[events.prompt_S[step]]
        token = events.token_S[step] if events.is_decode_S[step] else start
        counts = np.zeros((3, 6))
        for experts_LK in trace.experts_TLK[start:token]:
            for layer in range(3):
                counts[layer, experts_LK[layer]] += 1
        # a store wins at the last layers first: the order of wins within a step does not matter
        for layer in range(2):
            similarity = slow_similarities(ever_GM[stored].reshape(4, 3, 6), counts, layer)
            found = stored.index(winner_SL[step, layer])
            assert similarity[found] == pytest.approx(similarity.max(), abs=1e-6)
            wins[found] += 1
    # the score of what is enqueued: (share + 1e-8) * (1 - (j - l) / (L + 1)), as many as the router chooses
    requests = policy.prefetches(events)
    for known, target, (a, b) in zip(
        requests.known_Q.tolist(), requests.target_Q.tolist(), pairwise(requests.offsets_Q), strict=True
    ):
        (step, routed), layer = divmod(known // 2, 3), target % 3
        row = ever_GM[winner_SL[step, routed]].reshape(3, 6)[layer].astype(np.float64)
        scores = (row / row.sum() + 1e-8) * (1 - (layer - routed) / 4)
        named = np.argsort(-scores, kind="stable")[:2]
        assert requests.experts_X[a:b].tolist() == (named + 6 * layer).tolist()
        assert requests.priorities_X[a:b].tolist() == pytest.approx(scores[named].tolist(), rel=1e-5)


def two_kinds():
    """Fitted to two kinds of prompts: even ones use experts 0 and 1 everywhere, odd ones 2 and 3."""
    return MoeInfinity.fit(literal([[[0, 1]] * 3] * 4 + ODD, num_experts=4, lengths=(4, 4)))


def test_moe_infinity():
    policy, events = two_kinds(), events_of(literal(ODD, num_experts=4))
    requests = policy.prefetches(events)
    # of the first token nothing is known, and the first matrix wins; from the second on layer 0 requests 2 and 3
    second = np.searchsorted(requests.known_Q, when_routed(3))
    named = [requests.experts_X[a:b].tolist() for a, b in pairwise(requests.offsets_Q)]
    assert named[:2] == [[4, 5], [8, 9]]
    assert requests.known_Q[:2].tolist() == [1, 1]
    assert requests.target_Q[:2].tolist() == [1, 2]
    assert named[second : second + 2] == [[6, 7], [10, 11]]
    # half of the counts each, and 1 - (j - l) / (L + 1)
    assert requests.priorities_X[: 2 * 2].tolist() == pytest.approx([0.5 * 3 / 4] * 2 + [0.5 * 2 / 4] * 2)


@given(seed=st.integers(0, 999))
def test_the_eviction_is_the_public_engines_of_the_fewest_visits_ever(seed):
    draw = np.random.default_rng(seed)
    features = np.zeros((NUM_FEATURES, 6))
    features[LAYER], features[USES] = [0, 0, 1, 1, 2, 2], draw.integers(0, 9, 6)
    MoeInfinity.rank(features, np.arange(6, dtype=np.int32), 9, 3, 0)
    visits, fewest = features[USES].tolist(), None
    # its dispatcher's loop: the first of the fewest
    for expert, count in enumerate(visits):
        fewest = expert if fewest is None or count < visits[fewest] else fewest
    assert int(features[RANKS, :6].argmin()) == fewest


def test_a_prefill_counts_every_token_in_the_store_and_under_way_alike():
    trace = make_trace(3, num_layers=3, num_experts=6, lengths=(7, 5), prefill=(5, 2))
    for batch in (1, 2):
        counts_PM = replayed_PM(events_of(trace, batch=batch))
        np.testing.assert_array_equal(counts_PM.sum(axis=0), finished_PM(trace).sum(axis=0))
    np.testing.assert_array_equal(replayed_PM(events_of(trace)), finished_PM(trace))


def test_a_finished_prompt_replaces_the_matrix_that_won_least():
    # neither kind: the first prompt ends in the store, and the second finds it there
    _, winner_SL = winners(two_kinds(), events_of(literal([[[0, 2]] * 3] * 8, num_experts=4, lengths=(4, 4))))
    assert set(winner_SL[:4, :2].ravel().tolist()) <= {0, 1}
    assert winner_SL[5:, :2].ravel().tolist() == [2] * 6


def test_moe_infinity_one_cluster():
    training = make_trace(5, num_layers=3, num_experts=8, lengths=(6,) * 12, prefill=(0,) * 12)
    policy = MoeInfinityOneCluster.fit(training)
    nine = training.select(np.arange(9))
    for layer in range(3):
        counts_E = np.bincount(nine.experts_TLK[:, layer].ravel(), minlength=8)
        np.testing.assert_array_equal(policy.experts_LK[layer], np.argsort(-counts_E, kind="stable")[:2])
    np.testing.assert_array_equal(finished_PM(nine).sum(), 9 * 6 * 3 * 2)
    events = events_of(make_trace(6, num_layers=3, num_experts=8, lengths=(4,), prefill=(2,)))
    requests = policy.prefetches(events)
    # the batched prefill requests nothing; each of two tokens requests all its layers when it begins
    assert requests.known_Q.tolist() == [6] * 3 + [12] * 3
    assert requests.target_Q.tolist() == [3, 4, 5, 6, 7, 8]
    base = np.repeat(np.arange(3), 2) * 8
    np.testing.assert_array_equal(requests.experts_X, np.tile(policy.experts_LK.ravel() + base, 2))
