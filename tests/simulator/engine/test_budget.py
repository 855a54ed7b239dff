from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.budget import Budget
from tests.simulator.strategies import make_trace

META = make_trace(0, num_layers=3, num_experts=5, expert_bytes=(100, 300, 200)).metadata


REFUSED = r"capacity: {} experts, toy has 15; give between 1 and 15"
SPLIT = r"split over layers: .*; toy has 3 MoE layers, give a number from 0 up"


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        *[(Budget.slots, (capacity,), REFUSED.format(capacity)) for capacity in (0, -3, 16)],
        (Budget.weighted, (16, [1, 1, 1]), REFUSED.format(16)),
        (Budget.bytes, (299,), "299 bytes, the largest expert of toy has 300"),
        (partial(Budget.weighted, in_bytes=True), (299, [1, 1, 1]), "299 bytes"),
        *[(Budget.weighted, (6, split), SPLIT) for split in ([1, 2], [1, -1, 1], [0, 0, 0], [1, np.nan, 1])],
    ],
)
def test_a_budget_outside_the_model_or_a_split_that_is_none_is_refused(build, arguments, message):
    with pytest.raises(InputError, match=message):
        build(META, *arguments)


@given(st.integers(3, 15))
def test_slots_per_layer_are_dealt_evenly_and_none_is_lost(capacity):
    budget = Budget.slots(META, capacity, per_layer=True)
    shares = budget.budget_G.tolist()
    assert sum(shares) == capacity
    assert max(shares) - min(shares) <= 1
    assert budget.group_M.tolist() == [0] * 5 + [1] * 5 + [2] * 5


@given(
    st.integers(1, 15), st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any).map(np.asarray), st.booleans()
)
def test_weighted_slots_follow_their_weights_and_none_is_lost(capacity, weights_L, in_bytes):
    total = capacity * 300 if in_bytes else capacity
    budget = Budget.weighted(META, total, weights_L, in_bytes=in_bytes)
    full_L = 5 * np.asarray(META.expert_bytes if in_bytes else (1, 1, 1))
    shares_L = budget.budget_G
    assert shares_L.sum() == min(total, full_L.sum())
    assert (shares_L <= full_L).all()
    assert budget.units_M.tolist() == (Budget.bytes(META, 300) if in_bytes else Budget.slots(META, 1)).units_M.tolist()
    # of layers that are not full, a heavier one never has less, and each has its part to a unit
    open_L = (shares_L < full_L) & (weights_L > 0)
    if open_L.any():
        fair_L = weights_L * (shares_L[open_L].sum() / weights_L[open_L].sum())
        assert (np.abs(shares_L - fair_L)[open_L] <= 2).all()


def test_what_a_full_layer_cannot_use_goes_to_the_others():
    assert Budget.bytes(META, 300).capacity_experts == 3
    assert Budget.weighted(META, 9, [100, 1, 1]).budget_G.tolist() == [5, 2, 2]
    assert Budget.weighted(META, 7, [1, 0, 0]).budget_G.tolist() == [5, 1, 1]
    assert Budget.weighted(META, 6, [1, 2, 3]).budget_G.tolist() == [1, 2, 3]
