"""The clock: what it must equal, and how much of it each predictor is charged with."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.devices.workload import Workload
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy_inputs import prepare
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.engine.timing import time_on_demand, timed_replay, timed_run
from moe_beyond.simulator.engine.usage import HIT, PREFETCHED
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import DEVICES, capacities_of, prefetching, traces

CHARGES = st.floats(0, 10)


def computing_ms(events, device, workload):
    """Dense parts and experts of every event, one after another."""
    wanted_N = np.diff(events.offsets_N)
    num_bytes = (workload.dense_bytes_L[events.layer_N] + wanted_N * workload.expert_bytes_L[events.layer_N]).sum()
    return num_bytes / device.memory_gb_per_s / 1e6 + events.num_events * device.layer_overhead_us / 1e3


def charged_ms(events, policy, device, wait_N):
    """What the steps of a predictor add to each event, and what is left of its waiting, which a layer step hides."""
    added = waited = 0.0
    steps = events.step_N.tolist()
    for event, step in enumerate(steps):
        decodes = bool(events.token_S[step] >= 0)
        first = event == 0 or steps[event - 1] != step
        followed = event + 1 < len(steps) and steps[event + 1] == step
        layer_ms = policy.layer_step_ms * device.predictor_slowdown * (decodes and followed)
        added += policy.token_step_ms * device.predictor_slowdown * (decodes and first) + layer_ms
        waited += max(0.0, wait_N[event] - layer_ms)
    return added, waited


@given(data=st.data(), device=DEVICES, keep_warm=st.booleans(), charges=st.tuples(CHARGES, CHARGES))
def test_without_prefetches_a_step_is_prediction_computing_and_waiting(data, device, keep_warm, charges):
    """By the loop and by the shortcut, each policy with its own predictor's steps."""
    trace = data.draw(traces())
    meta, events = trace.metadata, events_of(trace)
    budget, workload = Budget.slots(meta, data.draw(capacities_of(trace))), Workload.of(meta, 2)
    plain = replay(events, Lru(), budget, keep_warm=keep_warm)
    load_ms_L = [size / device.link_gb_per_s / 1e6 + device.setup_us / device.lanes / 1e3 for size in meta.expert_bytes]
    wait_N = [load_ms_L[layer] * misses for layer, misses in zip(events.layer_N, plain.misses_N, strict=True)]
    nothing = replace(prefetching(trace, 0, 0, layers=True), token_step_ms=charges[0], layer_step_ms=charges[1])
    for policy in (Lru(), nothing):
        timed = timed_replay(events, policy, budget, device, workload, keep_warm=keep_warm)
        np.testing.assert_array_equal(timed.replay.counts_PFC, plain.counts_PFC)
        added, waited = charged_ms(events, policy, device, wait_N)
        assert timed.stall_ms_S.sum() == pytest.approx(waited)
        assert timed.total_ms == pytest.approx(computing_ms(events, device, workload) + added + waited)
        short = time_on_demand(prepare(events, policy, keep_warm=keep_warm), plain, device, workload)
        for name in ("step_ms_S", "stall_ms_S", "late_PF"):
            np.testing.assert_allclose(getattr(short, name), getattr(timed, name), err_msg=name)
        charged = (timed.token_step_ms / device.predictor_slowdown, timed.layer_step_ms / device.predictor_slowdown)
        assert charged == pytest.approx((policy.token_step_ms, policy.layer_step_ms))


@given(data=st.data(), device=DEVICES, overlap=st.booleans(), keep_warm=st.booleans())
def test_the_shortcut_also_knows_what_a_miss_takes_beside_its_bytes(data, device, overlap, keep_warm):
    trace = data.draw(traces())
    events, budget = events_of(trace), Budget.slots(trace.metadata, data.draw(capacities_of(trace)))
    device = device.model_copy(update={"miss_layer_us": 900.0, "admit_gb_per_s": 7.0, "overlap": overlap})
    workload, plain = Workload.of(trace.metadata, 2), replay(events, Lru(), budget, keep_warm=keep_warm)
    timed = timed_replay(events, Lru(), budget, device, workload, keep_warm=keep_warm)
    short = time_on_demand(prepare(events, Lru(), keep_warm=keep_warm), plain, device, workload)
    for name in ("step_ms_S", "stall_ms_S"):
        np.testing.assert_allclose(getattr(short, name), getattr(timed, name), err_msg=name, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 2])
@given(data=st.data(), device=DEVICES, seed=st.integers(0, 99))
def test_ratios_are_those_of_decoded_tokens_by_prompt(batch, data, device, seed):
    trace = data.draw(traces())
    events, budget = events_of(trace, batch=batch), Budget.slots(trace.metadata, data.draw(capacities_of(trace)))
    workload = Workload.of(trace.metadata, 2, expert_mib=3)
    timed = timed_replay(events, prefetching(trace, seed), budget, device, workload)
    done = timed_run(prepare(events, prefetching(trace, seed), keep_warm=True), budget, device, workload)
    on_time_A = np.isin(done.outcome_A, (HIT, PREFETCHED)) & events.is_decode_A
    hits_P = np.bincount(events.row_A[on_time_A] // 2, minlength=trace.num_prompts)
    assert timed.hits.numerator_P.tolist() == hits_P.tolist()
    decoded_P = np.diff(trace.prompt_offsets) - trace.num_prefill_P
    for ratio in (timed.time, timed.stall, timed.moved):
        assert ratio.denominator_P.tolist() == decoded_P.tolist()
    decode_ms = timed.step_ms_S[events.is_decode_S].sum()
    assert timed.time.numerator_P.sum() == pytest.approx(decode_ms)
    assert timed.stall.numerator_P.sum() == pytest.approx(timed.stall_ms_S[events.is_decode_S].sum())
    if decoded_P.any():
        assert timed.ms_per_token == pytest.approx(decode_ms / decoded_P.sum())
        assert timed.tokens_per_second == pytest.approx(1000 / timed.ms_per_token)
    else:
        assert timed.ms_per_token == timed.tokens_per_second == timed.link_idle_share == 0
    decode = timed.replay.decode
    if len(set(trace.metadata.expert_bytes)) == 1:
        assert timed.moved.numerator_P.sum() == pytest.approx(3 * decode.loads)
        busy_ms = decode.loads * device.transfer_ms(3.0 * 2**20)
        idle = max(0, 1 - busy_ms / decode_ms) if decode_ms else 0
        assert timed.link_idle_share == pytest.approx(idle, abs=1e-9)
