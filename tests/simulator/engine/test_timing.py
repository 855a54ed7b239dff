"""The clock: what it must equal, what it may never beat."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.devices.device import Device, known_devices, load_device
from moe_beyond.errors import InputError
from moe_beyond.simulator.bounds.belady import Belady
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.engine.timing import Workload, bound_ms, compute_ms, time_on_demand, timed_replay
from moe_beyond.simulator.policies.anticipate import Anticipate
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.prefetch import Prefetch
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.traces.schema import Trace
from tests.simulator.strategies import capacities_of, make_trace, traces

DEVICES = st.builds(
    Device,
    name=st.just("drawn"),
    about=st.just("drawn"),
    link_gb_per_s=st.floats(1e-6, 1e3),
    setup_us=st.floats(0, 10),
    lanes=st.integers(1, 4),
    memory_gb_per_s=st.floats(1e-6, 1e3),
    layer_overhead_us=st.floats(0.01, 10),
)


def prefetch(trace: Trace, seed: int, width: int = 2) -> Prefetch:
    shape = (trace.num_tokens, trace.metadata.num_layers, trace.metadata.num_experts)
    return Prefetch("drawn", np.random.default_rng(seed).random(shape, np.float32), width, Lru())


@given(data=st.data(), device=DEVICES, keep_warm=st.booleans())
def test_on_demand_the_clock_adds_up_computing_and_loading(data, device, keep_warm):
    trace = data.draw(traces())
    events, budget = events_of(trace), Budget.slots(trace.metadata, data.draw(capacities_of(trace)))
    workload = Workload.like_its_experts(events, predictor_ms=5, lookahead=2)
    timed = timed_replay(events, Lru(), budget, device, workload, keep_warm=keep_warm)
    plain = replay(events, Lru(), budget, keep_warm=keep_warm)
    np.testing.assert_array_equal(timed.replay.counts_PFC, plain.counts_PFC)
    layer_ms = np.array([device.transfer_ms(size) for size in trace.metadata.expert_bytes])
    loading = float((layer_ms[events.layer_N] * plain.misses_N).sum())
    computing = float(sum(part.sum() for part in compute_ms(events, device, workload)))
    assert timed.stall_ms_S.sum() == pytest.approx(loading)
    assert timed.total_ms == pytest.approx(computing + loading)
    short = time_on_demand(events, plain, device, workload)
    np.testing.assert_allclose(short.step_ms_S, timed.step_ms_S)
    np.testing.assert_allclose(short.stall_ms_S, timed.stall_ms_S)


@given(data=st.data(), device=DEVICES, lookahead=st.integers(0, 3), seed=st.integers(0, 99))
def test_no_policy_beats_the_bound(data, device, lookahead, seed):
    trace = data.draw(traces())
    events, budget = events_of(trace), Budget.slots(trace.metadata, data.draw(capacities_of(trace)))
    workload = Workload.like_its_experts(events, predictor_ms=0, lookahead=lookahead)
    loads = replay(events, Belady(), budget).total.misses
    bound = bound_ms(events, loads, device, workload)
    for policy in (Lru(), Belady(), prefetch(trace, seed)):
        timed = timed_replay(events, policy, budget, device, workload)
        assert timed.total_ms >= bound * (1 - 1e-9)
        assert (timed.stall_ms_S >= 0).all()
        total = timed.replay.total
        assert total.prefetches == total.prefetches_useful + total.prefetches_useless
        assert timed.late_prefetches <= total.prefetches_useful


@given(data=st.data(), device=DEVICES, seed=st.integers(0, 99))
def test_with_a_free_link_and_no_lookahead_it_equals_the_replay_without_a_clock(data, device, seed):
    trace = data.draw(traces())
    events, budget = events_of(trace), Budget.slots(trace.metadata, data.draw(capacities_of(trace)))
    free = device.model_copy(update={"link_gb_per_s": float("inf"), "setup_us": 0})
    workload = Workload.like_its_experts(events, predictor_ms=0, lookahead=0)
    policy = prefetch(trace, seed)
    timed = timed_replay(events, policy, budget, free, workload)
    np.testing.assert_array_equal(timed.replay.counts_PFC, replay(events, policy, budget).counts_PFC)
    assert timed.stall_ms_S.sum() == 0


def test_perfect_prefetch_hides_loads_behind_computing_and_a_slow_predictor_spoils_it():
    trace = make_trace(6, num_layers=4, num_experts=16, lengths=(40,), prefill=(0,), expert_bytes=(10**6,) * 4)
    truth_TLE = np.zeros((40, 4, 16), np.float32)
    np.put_along_axis(truth_TLE, trace.experts_TLK.astype(np.int64), 1, axis=2)
    policy, events = Prefetch("oracle", truth_TLE, 2, Lru()), events_of(trace)
    budget = Budget.slots(trace.metadata, 16)
    device = Device(
        name="toy", about="toy", link_gb_per_s=1, setup_us=0, lanes=1, memory_gb_per_s=1, layer_overhead_us=0
    )

    def ms_per_token(chosen: Policy, predictor_ms: float) -> float:
        workload = Workload.like_its_experts(events, predictor_ms, lookahead=3)
        return timed_replay(events, chosen, budget, device, workload).ms_per_token

    on_demand = ms_per_token(Lru(), 0)
    computing = float(sum(part.sum() for part in compute_ms(events, device, Workload.like_its_experts(events, 0, 0))))
    assert ms_per_token(policy, 0) == pytest.approx(computing / 40)
    assert on_demand > 1.1 * computing / 40
    assert ms_per_token(policy, 10) == pytest.approx(ms_per_token(policy, 0) + 10)
    assert ms_per_token(Lru(), 10) == on_demand


def test_a_predictor_that_only_evicts_is_charged_its_time_by_both_ways():
    trace = make_trace(5, lengths=(20, 10), prefill=(4, 0))
    events, budget = events_of(trace), Budget.slots(trace.metadata, 5)
    probabilities_TLE = prefetch(trace, 1).probabilities_TLE
    policy = Anticipate("drawn", probabilities_TLE, probabilities_TLE.mean(axis=0))
    device, workload = load_device("laptop_nvme"), Workload.like_its_experts(events, predictor_ms=3, lookahead=2)
    clocked = timed_replay(events, policy, budget, device, workload)
    short = time_on_demand(events, replay(events, policy, budget), device, workload, predicts=True)
    np.testing.assert_allclose(short.step_ms_S, clocked.step_ms_S)
    assert clocked.ms_per_token - clocked.stall_ms_per_token > 3


def test_a_model_may_be_timed_as_if_its_experts_were_larger():
    events = events_of(make_trace(1))
    device = load_device("laptop_nvme")
    small, large = (Workload.like_its_experts(events, 0, 0, size) for size in (None, 2000))
    assert small.expert_bytes_L.tolist() == [1000, 1000]
    assert sum(part.sum() for part in compute_ms(events, device, large)) > sum(
        part.sum() for part in compute_ms(events, device, small)
    )


def test_every_device_of_the_package_loads_and_an_unknown_one_lists_them():
    assert "laptop_nvme" in known_devices()
    for name in known_devices():
        assert load_device(name).transfer_ms(10**9) > 0
    with pytest.raises(InputError, match=r"known are .*laptop_nvme"):
        load_device("abacus")
