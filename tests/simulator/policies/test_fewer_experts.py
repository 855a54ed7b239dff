"""Policies that do without: what is done for each member of an event."""

import numpy as np
import pytest

from moe_beyond.simulator.engine.policy import FULL, LAYER, NUM_FEATURES, SCORE, SKIP, WEIGHT_SUM
from moe_beyond.simulator.policies.fewer_experts import CachePrior, DropCold, MoBile, prefer_residents, skip_cold_misses
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.policies.literal import decided, literal, replayed


def test_drop_cold():
    # below 0.5 / 3 of the weight
    assert decided(skip_cold_misses, [0.5, 0.34, 0.16], []) == [FULL, FULL, SKIP]
    assert decided(skip_cold_misses, [0.5, 0.34, 0.16], [2]) == [FULL, FULL, FULL]
    assert decided(skip_cold_misses, [0.5, 0.32, 0.18], []) == [FULL, FULL, FULL]
    trace = literal([[[0, 1, 2]]] * 2, num_experts=4, weights_TLK=[[[0.5, 0.34, 0.16]]] * 2)
    total = replayed(DropCold(), trace, 4).total
    assert (total.misses, total.hits, total.skipped) == (2, 2, 2)
    assert total.mass_given_up == pytest.approx(0.16, abs=1e-3)


def test_cache_prior():
    features = np.zeros((NUM_FEATURES, 8))
    shares = [0.4, 0.3, 0.16, 0.14]
    # the last logit is that of 0.14; 0.16 is 0.13 above it, which a raise of 0.2 * D passes from D = 0.67 on
    features[SCORE], features[WEIGHT_SUM] = 0.7, [0, 0, 0, 0, 1, 3, 2, 0]
    assert decided(prefer_residents, shares, [4, 5, 6], features=features) == [FULL, FULL, 5, 6]
    assert decided(prefer_residents, shares, [5], features=features) == [FULL, FULL, 5, FULL]
    features[SCORE] = 0.6
    assert decided(prefer_residents, shares, [4, 5, 6], features=features) == [FULL, FULL, FULL, 5]
    # without a range nothing is raised, and what is resident needs no stand-in
    features[SCORE] = 0
    assert decided(prefer_residents, shares, [4, 5, 6], features=features) == [FULL] * 4
    features[SCORE] = 9
    assert decided(prefer_residents, shares, [2, 3, 5], features=features) == [FULL] * 4


def test_cache_prior_uses_the_mean_range_of_the_tokens_before():
    weights = [[[0.8, 0.2]], [[0.6, 0.4]], [[0.5, 0.5]]]
    trace = literal([[[0, 1]]] * 3, num_experts=3, weights_TLK=weights)
    scores_SM = CachePrior().scores_SM(events_of(trace))
    first, second = np.log(0.8 / 0.2), np.log(0.6 / 0.4)
    np.testing.assert_allclose(scores_SM, np.array([[0, first, (first + second) / 2]] * 3).T, atol=5e-3)


def test_mobile():
    # of four tokens two give their first two experts more than the median of the first layer
    spread = [[0.7, 0.2, 0.06, 0.04], [0.4, 0.3, 0.2, 0.1]]
    even = [[0.3, 0.25, 0.25, 0.2], [0.9, 0.05, 0.03, 0.02]]
    trace = literal([[[0, 1, 2, 3]] * 2] * 4, num_experts=4, weights_TLK=[spread, even, spread, even])
    policy = MoBile.fit(trace)
    assert 0.55 <= policy.upper_half_share < 0.9
    keep = policy.changed_demand(events_of(trace)).keep_A.reshape(4, 2, 4)
    # the first layer, which decides, runs whole; then the unimportant tokens use the heavier half
    assert keep[:, 0].all()
    assert keep[[1, 3], 1].all()
    assert keep[[0, 2], 1].tolist() == [[True, True, False, False]] * 2
    total = replayed(policy, trace, 8).total
    assert total.skipped == 4
    assert total.mass_given_up == pytest.approx(0.3 / 2 / 2, abs=1e-3)


def test_a_stand_in_is_of_the_event_s_own_layer():
    features = np.zeros((NUM_FEATURES, 8))
    features[LAYER, 4:] = 1
    features[SCORE, :4], features[SCORE, 4:] = 0, 9
    assert decided(prefer_residents, [0.5, 0.3, 0.2], [1, 7], [4, 5, 6], features=features, layer=1) == [FULL, FULL, 7]
