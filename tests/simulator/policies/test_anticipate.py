"""Eviction by the predicted next use."""

import numpy as np
import pytest

from moe_beyond.simulator.engine.policy import LAYER, NUM_FEATURES, RANKS, SCORE, SECOND_SCORE
from moe_beyond.simulator.policies.anticipate import MEMORY, Anticipate, chance_of_use
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import make_trace


def test_the_rate_starts_from_popularity_at_each_prompt_and_depends_on_the_past_alone():
    trace = make_trace(4, num_layers=2, num_experts=5, top_k=2, lengths=(4, 3), prefill=(2, 0))
    events = events_of(trace)
    popularity_LE = np.full((2, 5), 0.4, np.float32)
    policy = Anticipate("drawn", np.zeros((7, 2, 5), np.float32), popularity_LE)
    rates_SM = policy.scores_SM(events)[:, 10:]
    assert rates_SM[[0, 3]] == pytest.approx(np.full((2, 10), 0.4, np.float32))
    # two tokens of prefill, then one of decode
    kept = (1 - MEMORY) ** 2
    for layer in range(2):
        wanted = set(trace.experts_TLK[:2, layer].ravel().tolist())
        for expert in range(5):
            share = 2 / len(wanted) if expert in wanted else 0
            assert rates_SM[1, layer * 5 + expert] == pytest.approx(0.4 * kept + (1 - kept) * share)
    used = np.isin(np.arange(10), [e + 5 * layer for layer in (0, 1) for e in trace.experts_TLK[2, layer].tolist()])
    assert rates_SM[2] == pytest.approx(rates_SM[1] * (1 - MEMORY) + MEMORY * used)


def test_what_the_predictor_says_of_later_tokens_takes_the_place_of_rates_where_a_token_is_decoded():
    trace = make_trace(4, num_layers=2, num_experts=5, top_k=2, lengths=(4, 3), prefill=(2, 0))
    events = events_of(trace)
    popularity_LE = np.full((2, 5), 0.4, np.float32)
    later_TLE = np.random.default_rng(1).random((7, 2, 5)).astype(np.float32)
    plain = Anticipate("drawn", np.zeros((7, 2, 5), np.float32), popularity_LE)
    told = Anticipate("drawn", plain.probabilities_TLE, popularity_LE, later_TLE=events.by_step(later_TLE))
    decodes = events.is_decode_S
    assert told.scores_SM(events)[decodes, 10:] == pytest.approx(later_TLE.reshape(7, 10)[[2, 3, 4, 5, 6]])
    assert told.scores_SM(events)[~decodes] == pytest.approx(plain.scores_SM(events)[~decodes])
    assert told.scores_SM(events)[:, :10] == pytest.approx(plain.scores_SM(events)[:, :10])


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_what_is_least_likely_used_by_this_token_or_the_next_is_ranked_lowest(layer):
    """Against drawn tokens: an expert of a layer that has run has one chance left, one of a layer to come two."""
    features_FM = np.zeros((NUM_FEATURES, 6))
    features_FM[LAYER] = [0, 0, 1, 1, 2, 2]
    features_FM[SCORE], features_FM[SECOND_SCORE] = [0.9, 0.1, 0.5, 0.0, 0.3, 1.0], [0.2, 0.8, 0.5, 0.0, 0.6, 0.9]
    chance_of_use(features_FM, np.arange(6, dtype=np.int32), 9, 3, layer)
    this, following = np.random.default_rng(2).random((2, 200_000, 6)) < features_FM[[SCORE, SECOND_SCORE], None]
    used = following | (this & (features_FM[LAYER] > layer))
    assert features_FM[RANKS, :6] == pytest.approx(used.mean(axis=0), abs=5e-3)
