"""FineMoE against a slow matching of whole maps."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond.simulator.policies.fine_moe import DISTANCE, NONE, FineMoe
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.simulator.schedule.prefetches import before, when_routed
from tests.simulator.policies.literal import literal
from tests.simulator.strategies import make_trace

LAYERS = DISTANCE + 3


def dense(maps, index):
    """A map as one long vector."""
    table = np.zeros(LAYERS * 6)
    table[maps.experts_GLK[index].ravel()] = maps.shares_GLK[index].ravel()
    return table


def cosine(a, b):
    return a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12)


@given(seed=st.integers(0, 999), weighted=st.booleans())
@settings(max_examples=15)
def test_every_match_is_the_best_of_a_slow_search(seed, weighted):
    def drawn(seed, lengths):
        trace = make_trace(seed, num_layers=LAYERS, num_experts=6, lengths=lengths, prefill=(0, 0))
        return trace if weighted else replace(trace, weights_TLK=None)

    policy = FineMoe.fit(drawn(seed, (5, 6)), 5)
    events = events_of(drawn(seed + 1, (6, 5)))
    ever, by_key_S, by_map_SL = policy._found(events)
    stored, keys = list(range(5)), [dense(policy.keys, n) for n in range(5)]
    for step in range(events.num_steps):
        token = dense(ever, 5 + step)
        has_key = step > 0 and events.prompt_S[step] == events.prompt_S[step - 1]
        assert (by_key_S[step] != NONE) == has_key
        maps = [dense(ever, n) for n in stored]
        key_similar = np.zeros(5)
        if has_key:
            key_similar = np.array([cosine(dense(ever, 4 + step), key) for key in keys])
            assert key_similar[stored.index(by_key_S[step])] == pytest.approx(key_similar.max(), abs=1e-5)
        for layer in range(LAYERS - DISTANCE):
            upto = (layer + 1) * 6
            similar = np.array([cosine(token[:upto], m[:upto]) for m in maps])
            assert similar[stored.index(by_map_SL[step, layer])] == pytest.approx(similar.max(), abs=1e-5)
        if has_key:
            near = DISTANCE / LAYERS
            alike = near * key_similar + (1 - near) * np.array([cosine(token, m) for m in maps])
            # what was replaced is found no more; where two are equally redundant, float32 may choose either
            if np.sort(alike)[-1] - np.sort(alike)[-2] < 1e-5:
                return
            place = int(alike.argmax())
            stored[place], keys[place] = 5 + step, dense(ever, 4 + step)


def test_fine_moe():
    # two kinds of tokens that follow each other: after 0 and 1 everywhere come 2 and 3 everywhere, and back
    one, other = [[0, 1]] * LAYERS, [[2, 3]] * LAYERS
    training = replace(literal([one, other] * 4, num_experts=4), weights_TLK=None)
    policy = FineMoe.fit(training, 7)
    events = events_of(replace(literal([one, other, one], num_experts=4), weights_TLK=None))
    requests = policy.prefetches(events)
    experts = [requests.experts_X[a:b].tolist() for a, b in pairwise(requests.offsets_Q)]
    named = dict(zip(zip(requests.known_Q, requests.target_Q, strict=True), experts, strict=True))
    # the first token has no key: its first layers are not requested
    assert min(requests.target_Q) == DISTANCE
    # a layer that has been routed says what comes DISTANCE further on, and the key what the next token begins with
    assert named[int(when_routed(0)), DISTANCE] == [4 * DISTANCE, 4 * DISTANCE + 1]
    assert named[int(before(LAYERS)), LAYERS] == [2, 3]
    assert named[int(before(LAYERS)), LAYERS + DISTANCE - 1] == [4 * (DISTANCE - 1) + 2, 4 * (DISTANCE - 1) + 3]
    # every layer of the other tokens is requested once
    assert sorted(requests.target_Q[requests.target_Q >= LAYERS]) == list(range(LAYERS, 3 * LAYERS))
    first = requests.offsets_Q[np.nonzero(requests.target_Q == DISTANCE)[0][0]]
    assert requests.priorities_X[first] == pytest.approx(0.5 * (1 - DISTANCE / LAYERS))
    # eviction reads the map that the key found: of the first token none, of the second the other kind
    scores_SM = policy.scores_SM(events)
    assert scores_SM[0].sum() == 0
    np.testing.assert_allclose(scores_SM[1], np.tile([0, 0, 0.5, 0.5], LAYERS))


def test_a_model_of_few_layers_is_predicted_by_the_key_alone():
    trace = make_trace(1, num_layers=2, num_experts=5, lengths=(4,), prefill=(0,))
    requests = FineMoe.fit(trace, 3).prefetches(events_of(trace))
    assert requests.known_Q.tolist() == [4, 4, 8, 8, 12, 12]
