"""Policies that do without: against a slow, obvious reference, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from moe_beyond.devices.device import load_device
from moe_beyond.devices.workload import Workload
from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import FULL, SKIP, ChangedDemand
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.engine.timing import timed_replay
from moe_beyond.simulator.jit import DEMAND, compiled
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.engine import slow_lossy
from tests.simulator.strategies import capacities_of, make_trace, traces

SHARES = (1.0, 0.25)


@compiled(DEMAND)
def by_share(features_FM, precision_M, members_I, shares_I, step, layer, actions_I):  # noqa: PLR0917 - as compiled ones
    """Everything that a demand may say, by an expert's share and what is resident."""
    for place in range(len(members_I)):
        expert, share = members_I[place], shares_I[place]
        if precision_M[expert] >= 0:
            actions_I[place] = FULL if share > 0.6 else FULL - precision_M[expert]
        elif share < 0.2:
            actions_I[place] = SKIP
        elif share < 0.35:
            actions_I[place] = FULL - 1
        elif share < 0.6:
            # the lowest resident, whichever it is: absent, busy or taken ones count as skipped
            actions_I[place] = SKIP
            for other in range(len(precision_M)):
                if precision_M[other] >= 0:
                    actions_I[place] = other
                    break
        else:
            actions_I[place] = FULL


def decide(expert, share, resident):
    if expert in resident:
        return (slow_lossy.LOADS, 0 if share > 0.6 else resident[expert])
    if share < 0.2:
        return (slow_lossy.SKIPS, 0)
    if share < 0.35:
        return (slow_lossy.LOADS, 1)
    if share < 0.6:
        return (slow_lossy.STANDS_IN, min(resident)) if resident else (slow_lossy.SKIPS, 0)
    return (slow_lossy.LOADS, 0)


class ByShare(Lru):
    name = "by_share"
    needs_weights = True
    precisions = SHARES
    demand = staticmethod(by_share)


@given(data=st.data())
def test_what_is_done_without_equals_the_slow_reference(data):
    trace = data.draw(traces())
    events = events_of(trace)
    capacity = data.draw(capacities_of(trace))
    expected = slow_lossy.replay(events, decide, units=[4, 1], capacity=4 * capacity)
    total = replay(events, ByShare(), Budget.slots(trace.metadata, capacity)).total
    for name in ("hits", "misses", "low_precision_loads", "skipped", "substituted"):
        assert getattr(total, name) == expected[name], name
    for name in ("weight_skipped", "weight_substituted", "weight_low_precision"):
        assert getattr(total, name) * trace.metadata.num_layers == pytest.approx(expected[name], abs=1e-5), name


def test_with_a_clock_what_is_skipped_takes_no_time_and_what_is_small_little():
    trace = make_trace(3, num_layers=3, num_experts=9, lengths=(60,), prefill=(0,), expert_bytes=(10**7,) * 3)
    events, budget = events_of(trace), Budget.slots(trace.metadata, 5)
    device, workload = load_device("laptop_nvme"), Workload.of(trace.metadata, 2)
    lossy = timed_replay(events, ByShare(), budget, device, workload)
    lossless = timed_replay(events, Lru(), budget, device, workload)
    assert lossy.ms_per_token < lossless.ms_per_token
    total = lossy.replay.total
    full_ms, low_ms = (device.transfer_ms(10**7 * share) for share in SHARES)
    loads_ms = (total.misses - total.low_precision_loads) * full_ms + total.low_precision_loads * low_ms
    assert float(lossy.stall_ms_S.sum()) == pytest.approx(loads_ms)


class Halved(Lru):
    """Drops each event's last member, and keeps everything in half the bytes."""

    name = "halved"

    @override
    def changed_demand(self, events):
        keep_A = np.ones(events.num_accesses, bool)
        keep_A[events.offsets_N[1:] - 1] = False
        return ChangedDemand(keep_A, np.full(events.metadata.num_model_experts, 0.5))


@given(data=st.data())
def test_what_is_done_without_from_the_start_is_counted_and_weighed(data):
    trace = data.draw(traces())
    events = events_of(trace)
    budget = Budget.slots(trace.metadata, data.draw(capacities_of(trace)))
    total = replay(events, Halved(), budget).total
    assert total.accesses == events.num_accesses
    assert total.skipped == events.num_events
    assert total.hits + total.misses == events.num_accesses - events.num_events
    # what was dropped, and what was kept in fewer bits, is all that there is
    assert total.mass_given_up == pytest.approx(1, abs=1e-4)
    if total.misses and len(set(trace.metadata.expert_bytes)) == 1:
        assert total.bytes_moved == total.misses * round(trace.metadata.expert_bytes[0] / 2)


@pytest.mark.parametrize("policy", [ByShare(), Halved()])
def test_without_weights_nothing_can_be_given_up(policy):
    trace = replace(make_trace(1), weights_TLK=None)
    with pytest.raises(InputError, match=rf"policy {policy.name}: .*weights"):
        replay(events_of(trace), policy, Budget.slots(trace.metadata, 3))
