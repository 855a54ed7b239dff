import numpy as np

from moe_beyond.simulator.policies.static import StaticPopularity
from tests.simulator.policies.literal import literal, misses


def test_static_popularity():
    policy = StaticPopularity.fit(literal([0, 0, 0, 1, 1, 2], num_experts=4))
    np.testing.assert_array_equal(policy.popularity_M, [3, 2, 1, 0])
    # 3 stays while there is room; then the popular ones settle, and what passes through does not disturb them
    assert misses(policy, literal([3, 3, 1, 0, 2, 3, 0, 1], num_experts=4), 2) == [1, 0, 1, 1, 1, 1, 0, 0]
