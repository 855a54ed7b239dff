from moe_beyond.simulator.bounds.belady import Belady, BeladyForced
from tests.simulator.policies.literal import literal, misses


def test_belady():
    # 2 is used and not kept: both others come sooner
    assert misses(Belady(), literal([0, 1, 2, 0, 1], num_experts=3), 2) == [1, 1, 1, 0, 0]


def test_belady_forced():
    # 2 must be kept: the later of the two others leaves
    assert misses(BeladyForced(), literal([0, 1, 2, 0, 1], num_experts=3), 2) == [1, 1, 1, 0, 1]
