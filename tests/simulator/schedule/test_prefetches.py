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
from moe_beyond.simulator.engine.timing import timed_replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.simulator.schedule.prefetches import before, when_routed
from tests.simulator.engine import slow_clock
from tests.simulator.strategies import drawn_TLE, make_trace, prefetching, traces


@dataclass
class Requesting(Lru):
    """LRU that prefetches as it is told: moment, event, experts of each request."""

    requests: list[tuple[int, int, list[int]]]
    layer_step_ms: float = 0.0
    lookahead: int | None = None
    name = "requesting"

    @override
    def prefetches(self, events):
        counts = np.array([len(experts) for _, _, experts in self.requests])
        experts = np.array([expert for _, _, experts in self.requests for expert in experts], np.int64)
        known, target = (np.array([request[i] for request in self.requests]) for i in (0, 1))
        return Prefetches.from_requests(events, known, target, counts, experts)


@given(trace=traces(), batch=st.integers(1, 3), width=st.integers(0, 4), seed=st.integers(0, 99), across=st.booleans())
def test_a_predictor_requests_what_is_most_probable_as_soon_as_it_is_known(trace, batch, width, seed, across):
    events = events_of(trace, batch=batch)
    drawn = prefetching(trace, seed, width, 0.375, layers=True)
    layers_HTLE = events.by_step(drawn.layers_HTLE, axis=1)
    policy = replace(
        drawn,
        probabilities_TLE=events.by_step(drawn.probabilities_TLE),
        layers_HTLE=layers_HTLE,
        later_TLE=events.by_step(drawn_TLE(trace, seed + 3)) if across else None,
    )
    made = policy.prefetches(events)
    named = [made.experts_X[a:b].tolist() for a, b in pairwise(made.offsets_Q)]
    expected = [(one.known, one.event, one.experts) for one in slow_clock.predicted(events, policy)]
    assert sorted(zip(made.known_Q, made.target_Q, named, strict=True)) == sorted(expected)


# Two layers of four experts, one a token. Loading takes 10 ms, an expert computes 4, and what is ahead of it 3 a layer.
EVENTS = events_of(make_trace(1, num_layers=2, num_experts=4, top_k=1, lengths=(1,), prefill=(0,)))
FIRST, SECOND = EVENTS.members_A.tolist()
OTHER = 4 + (SECOND - 4 + 1) % 4
AHEAD, ROUTED = int(before(0)), int(when_routed(0))
TOY = Device(name="toy", about="toy", link_gb_per_s=1, setup_us=0, lanes=1, memory_gb_per_s=2.5, layer_overhead_us=3000)


def toy(requests, layer_step_ms=0.0, lookahead=None, **device):
    workload, own = Workload(np.array([10**7, 10**7]), np.array([0, 0]), 100), TOY.model_copy(update=device)
    policy, budget = Requesting(requests, layer_step_ms, lookahead), Budget.slots(EVENTS.metadata, 8)
    return timed_replay(EVENTS, policy, budget, own, workload)


@pytest.mark.parametrize(
    ("requests", "change", "stall_ms", "late"),
    [
        ([], {}, 20, 0),
        # ahead of the token: 3 of the first layer's 10 ms are hidden, then its 4 and the next 3 for the second one
        ([(AHEAD, 0, [FIRST])], {}, 7 + 10, 1),
        ([(AHEAD, 0, [FIRST]), (AHEAD, 1, [SECOND])], {}, 7 + 3, 2),
        # when the first router has chosen: its 3 ms have passed, the demand load goes first, then 4 + 3 are hidden
        ([(ROUTED, 1, [SECOND])], {}, 10 + 3, 1),
        # a later request replaces what has not begun; one that names no expert withdraws it
        ([(AHEAD, 1, [OTHER, SECOND]), (ROUTED, 1, [SECOND])], {}, 10 + 10, 0),
        ([(ROUTED, 1, [SECOND]), (ROUTED, 1, [])], {}, 20, 0),
        # a lookahead of none counts the request from the second layer's event on: 3 of its 10 ms are hidden
        ([(AHEAD, 1, [SECOND])], {"lookahead": 0}, 10 + 7, 1),
        # 6 of the 10 ms of the demand load pass while the predictor works; in 15 ms the link idles for 5
        ([(ROUTED, 1, [SECOND])], {"layer_step_ms": 6}, 4 + 3, 1),
        ([(ROUTED, 1, [SECOND])], {"layer_step_ms": 15}, 3, 1),
        # while demand loads for 20 ms, a prefetch under way gets none of the step's 6, but 3 + 4 + 3 around it
        ([(AHEAD, 1, [SECOND])], {"layer_step_ms": 6, "link_gb_per_s": 0.5}, (20 - 6) + (20 - 10), 1),
    ],
)
def test_what_is_hidden_is_what_could_have_begun(requests, change, stall_ms, late):
    timed = toy(requests, **change)
    assert timed.stall_ms_S.sum() == pytest.approx(stall_ms)
    assert timed.total_ms == pytest.approx(2 * (3 + 4) + stall_ms + change.get("layer_step_ms", 0))
    assert timed.late_prefetches == late
    # a prefetch that is waited for is a hit of the replay, and none on the device
    assert timed.replay.decode.hits == late
    assert timed.hits.value == 0


def test_a_fast_link_makes_hits_and_idles_while_it_loads_nothing():
    both, second = [(AHEAD, 0, [FIRST]), (AHEAD, 1, [SECOND])], [(ROUTED, 1, [SECOND])]
    # a link of ten times the bandwidth: the second layer's expert is there after 1 of 7 ms, the first's after 1 of 3
    assert toy(both, link_gb_per_s=10.0).hits.value == 1
    assert toy(second, link_gb_per_s=10.0).hits.value == 0.5
    # 2 * 3 + 2 * 4 ms of computing and 20 of loading; where both loads are waited for, 10 ms of stall
    assert toy([]).link_idle_share == pytest.approx(14 / 34)
    assert toy(both).link_idle_share == pytest.approx(1 - 20 / 24)
    # a load's share of the setup keeps the link busy too
    assert toy([], setup_us=4000, lanes=2).link_idle_share == pytest.approx(14 / 38)


@pytest.mark.parametrize(("known", "target"), [(2, 0), (1, 0), (0, 5)])
def test_a_request_for_what_has_begun_or_lies_too_far_ahead_is_refused(known, target):
    events = events_of(make_trace(1, num_layers=2, num_experts=4, top_k=1, lengths=(3,), prefill=(0,)))
    with pytest.raises(ValueError, match="must be known before its event begins"):
        Prefetches.from_requests(events, np.array([known]), np.array([target]), np.array([1]), np.array([1]))
