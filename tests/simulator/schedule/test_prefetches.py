"""Prefetch requests: from when each is known, what a later one replaces, and what the clock makes of it."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from moe_beyond.devices.device import Device
from moe_beyond.devices.workload import Workload
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Prefetches
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.engine.timing import timed_replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.simulator.schedule.prefetches import before, when_routed
from tests.simulator.engine import slow_clock
from tests.simulator.strategies import capacities_of, make_trace, prefetching, traces

Request = tuple[int, int, list[int]]
"""Moment, event, experts."""


@dataclass
class Requesting(Lru):
    """LRU that prefetches as it is told."""

    requests: list[Request]
    layer_step_ms: float = 0.0
    lookahead: int | None = 100
    name = "requesting"

    @override
    def prefetches(self, events):
        counts = np.array([len(experts) for _, _, experts in self.requests])
        experts = np.array([expert for _, _, experts in self.requests for expert in experts], np.int64)
        known, target = (np.array([request[i] for request in self.requests]) for i in (0, 1))
        return Prefetches.from_requests(events, known, target, counts, experts)


@pytest.mark.parametrize("layers", [False, True])
@given(data=st.data(), keep_warm=st.booleans(), width=st.integers(0, 4), seed=st.integers(0, 99))
def test_without_a_clock_the_last_request_holds_as_in_the_slow_reference(layers, data, keep_warm, width, seed):
    trace = data.draw(traces())
    meta, events = trace.metadata, events_of(trace)
    policy = prefetching(trace, seed, width, 0.3, layers=layers)
    budget = Budget.slots(meta, data.draw(capacities_of(trace)))
    last = slow_clock.last_of_each(events, slow_clock.predicted(events, policy))
    requests = slow_clock.ahead_of_each(last)
    case = slow_clock.Case(events, budget, slow_clock.RANKS["lru"], requests, keep_warm=keep_warm)
    expected = [(slow_clock.hits_of(one), one.prefetches, one.useful, one.useless) for one in slow_clock.replay(case)]
    total = replay(events, policy, budget, keep_warm=keep_warm).total
    found = (total.hits, total.prefetches, total.prefetches_useful, total.prefetches_useless)
    assert found == tuple(map(sum, zip(*expected, strict=True)))


@given(trace=traces(), batch=st.integers(1, 3), width=st.integers(0, 4), seed=st.integers(0, 99))
def test_a_predictor_requests_what_is_most_probable_as_soon_as_it_is_known(trace, batch, width, seed):
    events = events_of(trace, batch=batch)
    drawn = prefetching(trace, seed, width, 0.375, layers=True)
    layers_HTLE = events.by_step(drawn.layers_HTLE, axis=1)
    policy = replace(drawn, probabilities_TLE=events.by_step(drawn.probabilities_TLE), layers_HTLE=layers_HTLE)
    made = policy.prefetches(events)
    named = [made.experts_X[a:b].tolist() for a, b in pairwise(made.offsets_Q)]
    expected = [(one.known, one.event, one.experts) for one in slow_clock.predicted(events, policy)]
    assert sorted(zip(made.known_Q, made.target_Q, named, strict=True)) == sorted(expected)


# Two layers of four experts, one a token. Loading takes 10 ms, an expert computes 4, and what is ahead of it 3 a layer.
TRACE = make_trace(1, num_layers=2, num_experts=4, top_k=1, lengths=(1,), prefill=(0,))
EVENTS = events_of(TRACE)
FIRST, SECOND = EVENTS.members_A.tolist()
OTHER = 4 + (SECOND - 4 + 1) % 4
AHEAD, ROUTED = int(before(0)), int(when_routed(0))
TOY = Device(name="toy", about="toy", link_gb_per_s=1, setup_us=0, lanes=1, memory_gb_per_s=2.5, layer_overhead_us=3000)


def toy(requests, layer_step_ms=0.0, lookahead=100, **device):
    workload, own = Workload(np.array([10**7, 10**7]), np.array([0, 0]), 100), TOY.model_copy(update=device)
    return timed_replay(
        EVENTS, Requesting(requests, layer_step_ms, lookahead), Budget.slots(TRACE.metadata, 8), own, workload
    )


@pytest.mark.parametrize(
    ("requests", "stall_ms", "late"),
    [
        ([], 20, 0),
        # ahead of the token: 3 of the first layer's 10 ms are hidden, then its 4 and the next 3 for the second one
        ([(AHEAD, 0, [FIRST])], 7 + 10, 1),
        ([(AHEAD, 0, [FIRST]), (AHEAD, 1, [SECOND])], 7 + 3, 2),
        # when the first router has chosen: its 3 ms have passed, the demand load goes first, then 4 + 3 are hidden
        ([(ROUTED, 1, [SECOND])], 10 + 3, 1),
        # a later request replaces what has not begun; one that names nobody withdraws it
        ([(AHEAD, 1, [OTHER, SECOND]), (ROUTED, 1, [SECOND])], 10 + 10, 0),
        ([(ROUTED, 1, [SECOND]), (ROUTED, 1, [])], 20, 0),
    ],
)
def test_what_is_hidden_is_what_could_have_begun(requests, stall_ms, late):
    timed = toy(requests)
    assert timed.stall_ms_S.sum() == pytest.approx(stall_ms)
    assert timed.late_prefetches == late
    # a prefetch that is waited for is a hit of the replay, and none on the device
    assert timed.replay.decode.hits == late
    assert timed.hits.value == 0


def test_a_policy_s_own_lookahead_delays_its_requests():
    # ahead of the second layer's event its request counts from: 3 of its 10 ms are hidden
    assert toy([(AHEAD, 1, [SECOND])], lookahead=0).stall_ms_S.sum() == pytest.approx(10 + 7)
    assert toy([(AHEAD, 1, [SECOND])], lookahead=None).stall_ms_S.sum() == pytest.approx(10)


def test_on_a_device_a_hit_is_there_when_its_layer_needs_it():
    # a link of ten times the bandwidth: the second layer's expert is there after 1 of 7 ms, the first's after 1 of 3
    for requests, hits in (([(AHEAD, 0, [FIRST]), (AHEAD, 1, [SECOND])], 1), ([(ROUTED, 1, [SECOND])], 0.5)):
        assert toy(requests, link_gb_per_s=10.0).hits.value == hits


def test_the_link_idles_while_it_loads_nothing():
    # 2 * 3 + 2 * 4 ms of computing and 20 of loading
    assert toy([]).link_idle_share == pytest.approx(14 / 34)
    # both loads are prefetches that are waited for: 10 ms of stall
    assert toy([(AHEAD, 0, [FIRST]), (AHEAD, 1, [SECOND])]).link_idle_share == pytest.approx(1 - 20 / 24)
    # a load's share of the setup keeps the link busy too
    assert toy([], setup_us=4000, lanes=2).link_idle_share == pytest.approx(14 / 38)


def test_a_layer_step_keeps_the_processor_while_demand_loads_and_delays_what_it_requests():
    requests = [(ROUTED, 1, [SECOND])]
    # 6 of the 10 ms of the demand load pass while the predictor works
    timed = toy(requests, layer_step_ms=6)
    assert timed.stall_ms_S.sum() == pytest.approx(4 + 3)
    assert timed.total_ms == pytest.approx(2 * 3 + 6 + 2 * 4 + 7)
    # a step longer than the load: the link idles, nothing has been requested yet
    timed = toy(requests, layer_step_ms=15)
    assert timed.stall_ms_S.sum() == pytest.approx(3)
    assert timed.total_ms == pytest.approx(2 * 3 + 15 + 2 * 4 + 3)
    # while demand is loading for 20 ms, a prefetch that is under way gets none of the step's 6, but 3 + 4 + 3 around it
    timed = toy([(AHEAD, 1, [SECOND])], layer_step_ms=6, link_gb_per_s=0.5)
    assert timed.stall_ms_S.sum() == pytest.approx((20 - 6) + (20 - 10))


def test_a_replaced_request_that_has_begun_is_loaded_for_nothing():
    timed = toy([(AHEAD, 1, [OTHER, SECOND]), (ROUTED, 1, [SECOND])])
    assert (timed.replay.total.prefetches, timed.replay.total.prefetches_useless) == (1, 1)
    assert toy([(ROUTED, 1, [SECOND]), (ROUTED, 1, [])]).replay.total.prefetches == 0


def test_the_highest_priority_goes_first_whatever_the_event():
    events = events_of(make_trace(1, num_layers=3, num_experts=4, top_k=1, lengths=(1,), prefill=(0,)))
    requests = Prefetches.from_requests(
        events,
        np.zeros(2, np.int64),
        np.array([1, 2]),
        np.array([2, 1]),
        np.array([5, 6, 9]),
        priorities_X=np.array([0.1, 0.7, 0.4]),
    )
    assert requests.experts_X.tolist() == [6, 5, 9]
    offsets, experts = requests.just_in_time(3)
    assert (offsets.tolist(), experts.tolist()) == ([0, 0, 2, 3], [6, 5, 9])


@pytest.mark.parametrize(("known", "target"), [(2, 0), (1, 0), (0, 5)])
def test_a_request_for_what_has_begun_or_lies_too_far_ahead_is_refused(known, target):
    events = events_of(make_trace(1, num_layers=2, num_experts=4, top_k=1, lengths=(3,), prefill=(0,)))
    with pytest.raises(ValueError, match="must be known before its event begins"):
        Prefetches.from_requests(events, np.array([known]), np.array([target]), np.array([1]), np.array([1]))
