"""One pass over all capacities against a replay at each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.simulator.bounds.belady import Belady
from moe_beyond.simulator.bounds.hit_curves import belady_curve, lru_curve
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import sweep
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import make_trace, traces

CURVES = {"lru": (lru_curve, Lru()), "belady": (belady_curve, Belady())}


def assert_equals_replays(name, events, capacities, keep_warm):
    curve_of, policy = CURVES[name]
    curve = curve_of(events, keep_warm=keep_warm)
    budgets = [Budget.slots(events.metadata, capacity) for capacity in capacities]
    replays = sweep(events, policy, budgets, keep_warm=keep_warm)
    assert curve.hits_D[capacities].tolist() == [r.total.hits for r in replays]
    assert curve.hits_FD[1, capacities].tolist() == [r.decode.hits for r in replays]
    assert curve.accesses_F.tolist() == [replays[0].prefill.accesses, replays[0].decode.accesses]
    assert curve.hits_FD[:, 0].tolist() == [0, 0]


@pytest.mark.parametrize("name", CURVES)
@given(trace=traces(), keep_warm=st.booleans(), one_by_one=st.booleans())
def test_it_equals_a_replay_at_every_capacity(name, trace, keep_warm, one_by_one):
    events = events_of(trace)
    events = events.one_by_one() if one_by_one else events
    assert_equals_replays(name, events, list(range(1, trace.metadata.num_model_experts + 1)), keep_warm)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("keep_warm", [True, False])
def test_it_equals_a_replay_on_a_trace_long_enough_to_compact(name, keep_warm):
    trace = make_trace(8, num_layers=6, num_experts=40, top_k=4, lengths=(700, 3, 500, 300), prefill=(100, 0, 200, 300))
    assert trace.num_tokens * trace.metadata.token_cycle > 16 * trace.metadata.num_model_experts
    assert_equals_replays(name, events_of(trace), [1, 3, 24, 60, 61, 120, 200, 240], keep_warm)


@given(trace=traces(), data=st.data())
def test_a_curve_up_to_a_capacity_is_the_whole_curve_up_to_there(trace, data):
    largest = data.draw(st.integers(1, trace.metadata.num_model_experts))
    whole, part = belady_curve(events_of(trace)), belady_curve(events_of(trace), largest=largest)
    assert part.hits_D[: largest + 1].tolist() == whole.hits_D[: largest + 1].tolist()
    assert set(part.hits_D[largest:].tolist()) == {int(whole.hits_D[largest])}
