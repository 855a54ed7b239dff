"""Asking ahead: from when something is known, what a later ask replaces, and what the clock makes of it."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from moe_beyond.devices.device import Device
from moe_beyond.simulator.bounds.belady import Belady
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Prefetches
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.engine.timing import Workload, bound_ms, timed_replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.prefetch import Prefetch
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.simulator.schedule.prefetches import before, when_routed
from tests.simulator.engine import slow_cache
from tests.simulator.strategies import capacities_of, make_trace, traces


@dataclass
class Asking(Lru):
    """LRU that asks as told: (moment, event, experts) each."""

    asks: list[tuple[int, int, list[int]]]
    lookahead: int | None = 100
    name = "asking"

    @override
    def prefetches(self, events):
        counts = np.array([len(experts) for _, _, experts in self.asks])
        experts = np.array([expert for _, _, experts in self.asks for expert in experts], np.int64)
        known, target = (np.array([ask[i] for ask in self.asks]) for i in (0, 1))
        return Prefetches.ask(events, known, target, counts, experts)


def layered(trace, seed: int, width: int, threshold: float = 0.0) -> Prefetch:
    draw = np.random.default_rng(seed)
    shape = (trace.num_tokens, trace.metadata.num_layers, trace.metadata.num_experts)
    return Prefetch(
        "drawn", draw.random(shape, np.float32), width, Lru(), threshold, draw.random((2, *shape), np.float32)
    )


@given(data=st.data(), keep_warm=st.booleans(), width=st.integers(0, 4), seed=st.integers(0, 99))
def test_without_a_clock_the_latest_answer_holds_as_in_the_slow_reference(data, keep_warm, width, seed):
    trace = data.draw(traces())
    meta, events = trace.metadata, events_of(trace)
    policy = layered(trace, seed, width, threshold=0.3)
    budget = Budget.slots(meta, data.draw(capacities_of(trace)))
    wanted = []
    for layer, step in zip(events.layer_N.tolist(), events.step_N.tolist(), strict=True):
        token = int(events.token_S[step])
        assert policy.layers_HTLE is not None
        # one layer ahead is the last that answers; nobody has for the first layer but the token step
        answer_TLE = policy.layers_HTLE[0] if layer else policy.probabilities_TLE
        scores = answer_TLE[token, layer] if token >= 0 else np.zeros(meta.num_experts)
        ranked = sorted((-scores[e], e) for e in range(meta.num_experts))[:width]
        wanted.append([layer * meta.num_experts + e for negated, e in ranked if -negated >= np.float32(0.3)])
    expected = slow_cache.replay(
        events,
        "lru",
        capacities={0: int(budget.budget_G[0])},
        group_of=dict.fromkeys(range(meta.num_model_experts), 0),
        keep_warm=keep_warm,
        wanted=wanted,
    )
    total = replay(events, policy, budget, keep_warm=keep_warm).total
    assert total.hits == sum(expected.hits)
    assert (total.prefetches, total.prefetches_useful, total.prefetches_useless) == (
        expected.prefetched,
        expected.useful,
        expected.useless,
    )


@given(data=st.data(), lookahead=st.integers(0, 3), seed=st.integers(0, 99), layer_ms=st.sampled_from([0.0, 0.3, 40.0]))
def test_with_a_clock_asking_again_changes_neither_what_is_asked_for_nor_the_bound(data, lookahead, seed, layer_ms):
    trace = data.draw(traces())
    events, budget = events_of(trace), Budget.slots(trace.metadata, data.draw(capacities_of(trace)))
    link = data.draw(st.floats(1e-6, 1e3))
    device = Device(
        name="d", about="d", link_gb_per_s=link, setup_us=0, lanes=1, memory_gb_per_s=1e-3, layer_overhead_us=1
    )
    workload = Workload.like_its_experts(events, 0.0, lookahead, layer_predictor_ms=layer_ms)
    timed = timed_replay(events, layered(trace, seed, 2), budget, device, workload)
    total = timed.replay.total
    assert total.accesses == events.num_accesses
    assert total.prefetches == total.prefetches_useful + total.prefetches_useless
    loads = replay(events, Belady(), budget).total.misses
    assert timed.total_ms >= bound_ms(events, loads, device, workload) * (1 - 1e-9)


# Two layers of four experts, one a token. Loading takes 10 ms, an expert computes 4, and what is ahead of it 3 a layer.
TOY = Device(name="toy", about="toy", link_gb_per_s=1, setup_us=0, lanes=1, memory_gb_per_s=1, layer_overhead_us=3000)


def toy_stall_ms(asks: list[tuple[int, int, list[int]]], *, layer_ms: float = 0.0, predicts_layers: bool = False):
    trace = make_trace(1, num_layers=2, num_experts=4, top_k=1, lengths=(1,), prefill=(0,))
    events = events_of(trace)
    workload = Workload(np.array([10**7, 10**7]), np.array([0, 0]), 0.0, 100, layer_ms)
    device = TOY.model_copy(update={"memory_gb_per_s": 2.5})
    policy = Asking(asks)
    policy.predicts_layers = predicts_layers
    timed = timed_replay(events, policy, Budget.slots(trace.metadata, 8), device, workload)
    return float(timed.stall_ms_S.sum()), timed


def wanted() -> tuple[int, int]:
    events = events_of(make_trace(1, num_layers=2, num_experts=4, top_k=1, lengths=(1,), prefill=(0,)))
    first, second = events.members_A.tolist()
    return first, second


def test_what_is_known_only_when_the_router_has_chosen_begins_no_earlier():
    first, second = wanted()
    assert toy_stall_ms([])[0] == pytest.approx(20)
    # asked ahead of the token: 3 ms of the first layer's 10 are hidden, then its 4 and the next 3 for the second one
    assert toy_stall_ms([(int(before(0)), 0, [first])])[0] == pytest.approx(7 + 10)
    stall, timed = toy_stall_ms([(int(before(0)), 0, [first]), (int(before(0)), 1, [second])])
    assert stall == pytest.approx(7 + 3)
    assert timed.late_prefetches == 2
    # asked when the first router has chosen: its 3 ms have passed, the demand load goes first, then 4 + 3 are hidden
    assert toy_stall_ms([(int(when_routed(0)), 1, [second])])[0] == pytest.approx(10 + 3)


def test_a_layer_step_keeps_the_processor_while_demand_loads_and_delays_what_it_asks_for():
    _, second = wanted()
    ask = [(int(when_routed(0)), 1, [second])]
    # 6 of the 10 ms of the demand load pass while the predictor works
    stall, timed = toy_stall_ms(ask, layer_ms=6, predicts_layers=True)
    assert stall == pytest.approx(4 + 3)
    assert timed.total_ms == pytest.approx(2 * 3 + 6 + 2 * 4 + stall)
    # a step longer than the load: the link idles, nothing has been asked for yet
    stall, timed = toy_stall_ms(ask, layer_ms=15, predicts_layers=True)
    assert stall == pytest.approx(3)
    assert timed.total_ms == pytest.approx(2 * 3 + 15 + 2 * 4 + stall)


def test_asking_again_replaces_what_has_not_begun_and_naming_nobody_withdraws_it():
    _, second = wanted()
    other = 4 + (second - 4 + 1) % 4
    again = [(int(before(0)), 1, [other, second]), (int(when_routed(0)), 1, [second])]
    # the first begins at once; the answer that comes later takes the other's place in the queue
    _, timed = toy_stall_ms(again)
    assert (timed.replay.total.prefetches, timed.replay.total.prefetches_useless) == (1, 1)
    withdrawn = [(int(when_routed(0)), 1, [second]), (int(when_routed(0)), 1, [])]
    stall, timed = toy_stall_ms(withdrawn)
    assert stall == pytest.approx(20)
    assert timed.replay.total.prefetches == 0


def test_the_highest_priority_goes_first_whatever_the_event():
    trace = make_trace(1, num_layers=3, num_experts=4, top_k=1, lengths=(1,), prefill=(0,))
    events = events_of(trace)
    asks = Prefetches.ask(
        events,
        np.zeros(2, np.int64),
        np.array([1, 2]),
        np.array([2, 1]),
        np.array([5, 6, 9]),
        priorities_X=np.array([0.1, 0.7, 0.4]),
    )
    assert asks.experts_X.tolist() == [6, 5, 9]
    offsets, experts = asks.just_in_time(3)
    assert (offsets.tolist(), experts.tolist()) == ([0, 0, 2, 3], [6, 5, 9])


@pytest.mark.parametrize(("known", "target"), [(2, 0), (1, 0), (0, 5)])
def test_an_ask_for_what_has_begun_or_lies_too_far_ahead_is_refused(known, target):
    events = events_of(make_trace(1, num_layers=2, num_experts=4, top_k=1, lengths=(3,), prefill=(0,)))
    with pytest.raises(ValueError, match="must be known before its event begins"):
        Prefetches.ask(events, np.array([known]), np.array([target]), np.array([1]), np.array([1]))
