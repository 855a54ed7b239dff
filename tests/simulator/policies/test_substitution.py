import pickle

import numpy as np

from moe_beyond.simulator.engine.policy import FULL, LAYER, NUM_FEATURES
from moe_beyond.simulator.policies.substitution import Substitution
from tests.simulator.policies.literal import decided, literal, replayed


def trained():
    """In the second layer 0 and 1 follow the same experts of the first, and so do 2 and 3."""
    tokens = [[0, 0], [0, 1], [1, 0], [1, 1], [2, 2], [2, 3], [3, 2], [3, 3]]
    return literal(tokens * 5, num_experts=4)


def test_likeness_is_following_the_same_experts():
    nearest_ME = Substitution.fit(trained()).nearest_ME
    # of the first layer, leading to the same
    assert nearest_ME[:, 0].tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert all(expert not in nearest_ME[expert].tolist() for expert in range(8))
    assert (nearest_ME[4:] >= 4).all()


def test_substitution():
    policy = Substitution.fit(trained(), neighbours=1)
    features = np.zeros((NUM_FEATURES, 8))
    features[LAYER, 4:] = 1
    # 6 is missing and light: 7 stands in; 4 is heavy
    assert decided(policy.demand, [0.7, 0.3], [5, 7], [4, 6], features=features, layer=1) == [FULL, 7]
    # a neighbour that the event itself uses is not free
    assert decided(policy.demand, [0.7, 0.3], [5, 7], [7, 6], features=features, layer=1) == [FULL, FULL]


def test_it_passes_to_another_process_after_it_has_been_used():
    trace = literal([[[0, 1]] * 2, [[2, 3]] * 2, [[1, 2]] * 2], num_experts=4)
    policy = Substitution.fit(trained())
    counted = replayed(policy, trace, 4).counts_PFC
    again = replayed(pickle.loads(pickle.dumps(policy)), trace, 4).counts_PFC  # noqa: S301 - our own
    np.testing.assert_array_equal(counted, again)
