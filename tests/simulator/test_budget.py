import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.errors import InputError
from moe_beyond.simulator.budget import Budget
from tests.simulator.strategies import make_trace

META = make_trace(0, num_layers=3, num_experts=5, expert_bytes=(100, 300, 200)).metadata


@pytest.mark.parametrize("capacity", [0, -3, 16])
def test_a_capacity_outside_the_model_is_refused_with_the_range(capacity):
    with pytest.raises(InputError, match=rf"capacity: {capacity} experts, toy has 15; give between 1 and 15"):
        Budget.slots(META, capacity)


def test_a_byte_budget_below_the_largest_expert_is_refused():
    with pytest.raises(InputError, match="299 bytes, the largest expert of toy has 300"):
        Budget.bytes(META, 299)
    assert Budget.bytes(META, 300).capacity_experts == 3


@given(st.integers(3, 15))
def test_slots_per_layer_are_dealt_evenly_and_none_is_lost(capacity):
    budget = Budget.slots(META, capacity, per_layer=True)
    shares = budget.budget_G.tolist()
    assert sum(shares) == capacity
    assert max(shares) - min(shares) <= 1
    assert budget.group_M.tolist() == [0] * 5 + [1] * 5 + [2] * 5
