"""FineMoE against a transcription of its public code: whole maps, a dense matrix each, in float64."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moe_beyond.simulator.engine.policy import NUM_FEATURES, RANKS, SCORE, USES_RESIDENT
from moe_beyond.simulator.policies.fine_moe import FineMoe, probability_by_visits
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.simulator.schedule.prefetches import before, when_routed
from tests.simulator.policies.literal import literal, replayed
from tests.simulator.strategies import make_trace

LAYERS, EXPERTS, DISTANCE = 9, 6, 6


def drawn(seed, lengths, prefill, *, weighted):
    trace = make_trace(seed, num_layers=LAYERS, num_experts=EXPERTS, lengths=lengths, prefill=prefill)
    ids = np.random.default_rng(seed).integers(0, 4, trace.num_tokens).astype(np.int32)
    return replace(trace, token_ids_T=ids, weights_TLK=trace.weights_TLK if weighted else None)


def dense_TLE(trace):
    """Gate maps; probabilities of experts that were not chosen are not known."""
    maps = np.zeros((trace.num_tokens, LAYERS, EXPERTS))
    weights = np.ones(trace.experts_TLK.shape) if trace.weights_TLK is None else trace.weights_TLK.astype(np.float64)
    np.put_along_axis(maps, trace.experts_TLK.astype(np.int64), weights / weights.sum(axis=2, keepdims=True), axis=2)
    return maps


def cosines(one, others):
    lengths = np.linalg.norm(one) * np.linalg.norm(others.reshape(len(others), -1), axis=1)
    return others.reshape(len(others), -1) @ one.ravel() / np.maximum(lengths, 1e-12)


def first_best(similar):
    """The first of the most similar; what float32 may decide otherwise is left out."""
    ranked = np.sort(similar)
    assume(ranked[-1] == ranked[-2] or ranked[-1] - ranked[-2] > 1e-5)
    return int(similar.argmax())


def enqueued(probabilities_LE, similarity, start, end):
    """Priorities [layer][expert] of what is enqueued: experts until 1 - similarity is reached, k at least."""
    priorities = {}
    for layer in range(start, end):
        row = probabilities_LE[layer]
        order = np.argsort(-row, kind="stable")
        enough = int((row[order].cumsum() < np.clip(1 - similarity, 0, 1) - 1e-9).sum()) + 1
        named = [expert for expert in order[: max(2, enough)].tolist() if row[expert] > 0]
        priorities[layer] = {expert: row[expert] * (1 - (layer - start) / (end + 1)) for expert in named}
    return priorities


def published(trace, stored_LE, stored_keys):
    """What is enqueued, by token: of None by its key when it starts, of l when its layer l has been routed."""
    maps, keys, now = list(stored_LE), list(stored_keys), dense_TLE(trace)
    expected = {}
    prompt_T = np.repeat(np.arange(trace.num_prompts), np.diff(trace.prompt_offsets))
    for token in range(trace.num_tokens):
        key, stored = trace.token_ids_T[token], np.stack(maps)
        alike = np.array([float(key == other) for other in keys])
        if token - trace.prompt_offsets[prompt_T[token]] >= trace.num_prefill_P[prompt_T[token]]:
            if alike.any():
                expected[token, None] = enqueued(stored[alike.argmax()], 1.0, 0, DISTANCE)
            for seen in range(LAYERS):
                start = seen + 1 + DISTANCE
                if start < LAYERS:
                    similar = cosines(now[token, : seen + 1], stored[:, : seen + 1])
                    best = first_best(similar)
                    expected[token, seen] = enqueued(stored[best], similar[best], start, LAYERS)
        near = DISTANCE / LAYERS
        place = first_best(near * alike + (1 - near) * cosines(now[token], stored))
        maps[place], keys[place] = now[token], key
    return expected


@given(seed=st.integers(0, 9999), weighted=st.booleans())
@settings(max_examples=25)
def test_every_request_is_that_of_the_public_code(seed, weighted):
    training = drawn(seed, (5, 6), (0, 0), weighted=weighted)
    trace = drawn(seed + 1, (6, 5), (3, 0), weighted=weighted)
    chosen = [0, 2, 5, 8, 10]  # evenly spread over eleven tokens
    expected = published(trace, dense_TLE(training)[chosen], training.token_ids_T[chosen])
    events = events_of(trace)
    requests = FineMoe.fit(training, 5).prefetches(events)
    ours = {}
    for known, target, (a, b) in zip(
        requests.known_Q.tolist(), requests.target_Q.tolist(), pairwise(requests.offsets_Q), strict=True
    ):
        step, layer = divmod(target, LAYERS)
        seen = known // 2 % LAYERS if known % 2 else None
        assert known == (before(step * LAYERS) if seen is None else when_routed(step * LAYERS + seen))
        experts = (requests.experts_X[a:b] - layer * EXPERTS).tolist()
        ours[events.token_S[step], seen, layer] = dict(zip(experts, requests.priorities_X[a:b].tolist(), strict=True))
    last = {}
    for (token, seen), by_layer in expected.items():
        for layer, priorities in by_layer.items():
            mine = ours.pop((token, seen, layer), None)
            if mine is None:
                # the match before it found the same map, and its request still holds
                assert last[token, layer] == priorities.keys()
            else:
                assert mine == pytest.approx(priorities, abs=1e-5)
            last[token, layer] = priorities.keys()
    assert not ours


@given(seed=st.integers(0, 999))
def test_the_eviction_weighs_visits_since_admission_as_a_whole_number(seed):
    draw = np.random.default_rng(seed)
    features = np.zeros((NUM_FEATURES, 8))
    features[SCORE], features[USES_RESIDENT] = draw.random(8), draw.integers(0, 20, 8)
    residents = draw.permutation(8)[:5].astype(np.int32)
    probability_by_visits(features, residents, 9, 3, 0)
    expected = [int(features[SCORE, e] * features[USES_RESIDENT, e]) for e in residents]
    assert features[RANKS, :5].tolist() == expected


def test_fine_moe():
    # token 7 uses experts 0 and 1 everywhere, token 8 uses 2 and 3
    one, other, ids = [[0, 1]] * LAYERS, [[2, 3]] * LAYERS, np.array([7, 8, 7, 8], np.int32)
    training = replace(literal([one, other] * 2, num_experts=4), weights_TLK=None, token_ids_T=ids)
    policy = FineMoe.fit(training, 4)
    trace = replace(
        literal([other, one, one], num_experts=4), weights_TLK=None, token_ids_T=np.array([8, 7, 9], np.int32)
    )
    events = events_of(trace)
    requests = policy.prefetches(events)
    experts = [requests.experts_X[a:b].tolist() for a, b in pairwise(requests.offsets_Q)]
    named = dict(zip(zip(requests.known_Q, requests.target_Q, strict=True), experts, strict=True))
    # a token is known when it starts, also a prompt's first
    assert [named[int(before(0)), layer] for layer in (0, 5)] == [[2, 3], [22, 23]]
    assert named[int(before(LAYERS)), LAYERS] == [0, 1]
    # a layer that has been routed says what comes from DISTANCE + 1 further on
    assert named[int(when_routed(0)), DISTANCE + 1] == [4 * (DISTANCE + 1) + 2, 4 * (DISTANCE + 1) + 3]
    # layer DISTANCE is in neither's reach, and of a token that no map is of only the layers so far say anything
    layers = [sorted((requests.target_Q[requests.target_Q // LAYERS == step] % LAYERS).tolist()) for step in range(3)]
    assert layers == [[0, 1, 2, 3, 4, 5, 7, 8], [0, 1, 2, 3, 4, 5, 7, 8], [7, 8]]
    # eviction reads the key's match for the first layers, and for the last ones what the token before found
    first, second = policy.scores_SM(events)[:2].reshape(2, LAYERS, 4)
    np.testing.assert_allclose(first[:DISTANCE], [[0, 0, 0.5, 0.5]] * DISTANCE)
    assert first[DISTANCE:].sum() == 0
    np.testing.assert_allclose(second[:DISTANCE], [[0.5, 0.5, 0, 0]] * DISTANCE)
    np.testing.assert_allclose(second[DISTANCE + 1 :], [[0, 0, 0.5, 0.5]] * 2)


def test_without_tokens_the_layers_so_far_alone_are_matched():
    trace = make_trace(1, num_layers=2, num_experts=5, lengths=(4,), prefill=(0,))
    assert FineMoe.fit(trace, 3).prefetches(events_of(trace)).num_requests == 0
    with_ids = replace(trace, token_ids_T=np.arange(4, dtype=np.int32) % 2)
    requests = FineMoe.fit(with_ids, 4).prefetches(events_of(with_ids))
    # a model of few layers is predicted by the key alone
    assert requests.known_Q.tolist() == [0, 0, 4, 4, 8, 8, 12, 12]


def test_where_the_token_alone_decides_nearly_all_is_foretold():
    draw = np.random.default_rng(0)
    routing = draw.permuted(np.tile(np.arange(32), (20, 3, 1)), axis=2)[..., :2]  # of each of twenty tokens
    ids = draw.integers(0, 20, 400).astype(np.int32)
    trace = replace(literal(routing[ids], num_experts=32), token_ids_T=ids)
    training = replace(literal(routing, num_experts=32), token_ids_T=np.arange(20, dtype=np.int32))
    assert replayed(FineMoe.fit(training, 20), trace, 10).total.hit_rate == 1
