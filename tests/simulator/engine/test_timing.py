"""The clock: what it must equal, and how much of it each predictor is charged with."""

from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond.devices.device import Device
from moe_beyond.devices.workload import Workload
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy_inputs import prepare
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.engine.timing import time_on_demand, timed_replay, timed_run
from moe_beyond.simulator.engine.usage import HIT, MISSED, PREFETCHED
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import DEVICES, capacities_of, make_trace, prefetching, traces

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


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@given(data=st.data(), device=DEVICES, prefill=st.tuples(st.floats(1e-3, 1e6), st.floats(0, 50)))
@settings(max_examples=40, deadline=None)
def test_a_first_token_comes_after_overhead_loads_and_the_longer_of_reading_and_computing(
    batch, overlap, data, device, prefill
):
    """By hand, layer by layer, on an empty cache that keeps all it has loaded."""
    trace = data.draw(traces())
    meta, events = trace.metadata, events_of(trace, batch=batch)
    rate, overhead_ms = prefill
    terms = {"prefill_tokens_per_s": rate, "prompt_overhead_ms": overhead_ms, "overlap": overlap}
    device, workload = device.model_copy(update=terms), Workload.of(meta, 0)
    everything = Budget.slots(meta, meta.num_model_experts)
    timed = timed_replay(events, Lru(), everything, device, workload)
    loaded, expected = set(), []
    for prompt, (start, end) in enumerate(pairwise(trace.prompt_offsets.tolist())):
        prefill = trace.experts_TLK[start : start + int(trace.num_prefill_P[prompt])]
        if batch == 1 and len(prefill):
            expected.append(overhead_ms)
        for layer in range(meta.num_layers if len(prefill) else 0):
            used = {(layer, int(expert)) for expert in np.unique(prefill[:, layer])}
            size, dense = workload.expert_bytes_L[layer], workload.dense_bytes_L[layer]
            load_ms = size / device.link_gb_per_s / 1e6 + device.setup_us / device.lanes / 1e3
            missing = len(used - loaded)
            dense_ms = dense / device.memory_gb_per_s / 1e6 + device.layer_overhead_us / 1e3
            read_ms = size / device.memory_gb_per_s / 1e6
            tokens_ms = len(prefill) / rate * 1e3 / meta.num_layers
            experts_ms = max(len(used) * read_ms, tokens_ms - dense_ms)
            wait_ms = missing * load_ms
            if overlap and missing:
                wait_ms = max(0.0, wait_ms - (experts_ms - read_ms))
            if batch == 1:
                expected[-1] += dense_ms + wait_ms + experts_ms
            loaded |= used
        decoded = trace.experts_TLK[start + len(prefill) : end]
        loaded |= {(layer, int(e)) for layer in range(meta.num_layers) for e in np.unique(decoded[:, layer])}
    first = timed.first_token
    assert first.denominator_P.tolist() == (trace.num_prefill_P > 0).astype(int).tolist()
    if batch == 1:
        np.testing.assert_allclose(first.numerator_P[first.denominator_P > 0], expected)
    assert first.numerator_P.sum() == pytest.approx(timed.total_ms - timed.time.numerator_P.sum())
    plain = replay(events, Lru(), everything, keep_warm=True)
    short = time_on_demand(prepare(events, Lru(), keep_warm=True), plain, device, workload)
    np.testing.assert_allclose(short.step_ms_S, timed.step_ms_S)


@given(data=st.data(), device=DEVICES, pages=st.floats(0, 1.2), keep_warm=st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_was_read_last_is_read_from_memory_that_cache_and_dense_weights_leave(data, device, pages, keep_warm):
    """Loads on demand, by hand: a dict of pages in the order of their reads."""
    trace = data.draw(traces())
    meta, events = trace.metadata, events_of(trace)
    slots, workload = data.draw(capacities_of(trace)), Workload.of(meta, 0)
    sizes_M = np.repeat(workload.expert_bytes_L, meta.num_experts).tolist()
    room = int(pages * sum(sizes_M)) + 0.5
    held = slots * workload.expert_bytes_L.mean() + workload.dense_bytes_L.sum()
    terms = {"page_gb_per_s": 10 * device.link_gb_per_s, "memory_gib": (held + room) / 2**30}
    paged = device.model_copy(update=terms)
    prepared, budget = prepare(events, Lru(), keep_warm=keep_warm), Budget.slots(meta, slots)
    done = timed_run(prepared, budget, paged, workload)
    kept, expected = OrderedDict(), []
    for event in range(events.num_events):
        wait_ms = 0.0
        for access in range(events.offsets_N[event], events.offsets_N[event + 1]):
            expert = int(events.members_A[access])
            if done.outcome_A[access] != MISSED:
                continue
            if expert in kept:
                wait_ms += sizes_M[expert] / paged.page_gb_per_s / 1e6
            else:
                wait_ms += sizes_M[expert] / device.link_gb_per_s / 1e6 + device.setup_us / device.lanes / 1e3
            kept[expert] = sizes_M[expert]
            kept.move_to_end(expert)
            while kept and sum(kept.values()) > int(room):
                kept.popitem(last=False)
        expected.append(wait_ms)
    np.testing.assert_allclose(done.stall_N, expected, atol=1e-9)


def test_dense_weights_fault_only_where_they_do_not_fit_beside_the_cache():
    trace = make_trace(1, num_layers=2, num_experts=5, top_k=2, expert_bytes=(100, 100))
    events, workload = events_of(trace), Workload.of(trace.metadata, 0, dense_bytes=400)
    base = Device(
        name="any", about="-", link_gb_per_s=1, setup_us=0, lanes=1, memory_gb_per_s=10, layer_overhead_us=0,
        fault_gb_per_s=1e-3,
    )  # fmt: skip
    for slots, fits in ((3, True), (4, False)):
        budget = Budget.slots(trace.metadata, slots)
        stays = timed_replay(events, Lru(), budget, base.model_copy(update={"fault_gb_per_s": None}), workload)
        always = timed_replay(events, Lru(), budget, base, workload)
        limited = timed_replay(events, Lru(), budget, base.model_copy(update={"memory_gib": 700 / 2**30}), workload)
        assert always.ms_per_token - stays.ms_per_token == pytest.approx(400 / 1e3 - 400 / 1e7)
        assert limited.ms_per_token == pytest.approx((stays if fits else always).ms_per_token)


def test_pages_of_memory_whose_size_nobody_said_are_refused():
    text = {"name": "any", "about": "-", "link_gb_per_s": 1, "setup_us": 0, "lanes": 1, "memory_gb_per_s": 1}
    with pytest.raises(ValueError, match="page_gb_per_s needs memory_gib"):
        Device.model_validate({**text, "layer_overhead_us": 0, "page_gb_per_s": 9})
