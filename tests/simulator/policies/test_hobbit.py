import numpy as np

from moe_beyond.simulator.engine.policy import FULL, LAST_USE, LAYER, NUM_FEATURES, RANKS, SKIP, USES, USES_FULL
from moe_beyond.simulator.policies.hobbit import Hobbit, by_weight_above, four_grounds
from moe_beyond.simulator.policies.next_layer import NextLayerMap
from tests.simulator.policies.literal import decided, literal, replayed

TOKEN = [[0, 1, 2, 3]]
WEIGHTS = [[0.5, 0.3, 0.15, 0.05]]


def test_precision_goes_by_the_weight_of_the_better_ranked():
    # above them lie 0, 0.5, 0.8 and 0.95
    low = FULL - 1
    assert decided(by_weight_above, WEIGHTS[0], []) == [FULL, FULL, low, SKIP]
    # what would be skipped is used where it is there, at whatever precision
    assert decided(by_weight_above, WEIGHTS[0], [3]) == [FULL, FULL, low, low]
    assert decided(by_weight_above, WEIGHTS[0], dict.fromkeys(range(8), 1)) == [FULL, FULL, low, low]
    # equal weights rank as listed
    assert decided(by_weight_above, [0.25] * 4, []) == [FULL, FULL, FULL, low]


def test_hobbit():
    trace = literal([TOKEN, TOKEN], num_experts=8, weights_TLK=[[WEIGHTS], [WEIGHTS]])
    policy = Hobbit(NextLayerMap(np.zeros((0, 8, 8), np.float32)))
    total = replayed(policy, trace, 8).total
    # the first token loads two whole experts and a quarter of one, and does without the last; the second has them all
    assert (total.misses, total.skipped, total.low_precision_loads) == (3, 2, 1)
    assert total.demand_bytes == 2 * 1000 + 250
    np.testing.assert_allclose(total.mass_given_up, 0.15 + 0.05, atol=1e-3)


def test_four_grounds_count_alike():
    features = np.zeros((NUM_FEATURES, 4))
    features[LAYER], features[LAST_USE] = [0, 0, 1, 1], [10, 5, 10, -1]
    features[USES], features[USES_FULL] = [4, 2, 1, 0], [2, 2, 0, 0]
    four_grounds(features, np.arange(4, dtype=np.int32), 20, 3, 0)
    # layer 0 has just run: its next use is two layers away, layer 1's one
    expected = [0.5 + 1 + 1 + 0, 0.25 + 0.5 + 1 + 0, 0.5 + 0.25 + 0 + 0.5, 0.5]
    np.testing.assert_allclose(features[RANKS, :4], expected)
