# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""The event loop with a clock: one link, shared by prefetch and demand, beside a processor.

A layer first computes what needs no routed expert (attention, shared experts, the router); then its experts are
known. What is missing is loaded on demand, ahead of any prefetch: one under way is paused, and goes on afterwards. When
all are there, the experts compute. While the processor works the link prefetches what has been requested by then, the
highest priority first. A prefetch that has not begun when its layer's router has chosen is dropped; one under way is
waited for.

Missing experts may be computed by the host's processor instead: beside the accelerator, from the end of the layer step
on. They are copied in the background, ahead of prefetches; the next step begins when all copies are done.

The experts of a prefill may compute longer than reading them takes, for all its tokens; with overlap that too goes on
while others load.

What the link read last lies in the operating system's page cache too, from where it is read faster; a cache that is
emptied between prompts leaves that alone.

A layer step of a predictor keeps the processor between router and experts, while demand is loading. A prefetch without
space in the cache waits until the next event, when something may be evicted.

In detail:

- An event has four parts: the token step of the predictor, what the layer computes ahead of its experts, the layer step
  of the predictor, and the experts. The link prefetches in each of them, in the third only in what is left of it when
  demand has loaded. A prefetch begins only while time is left in the part, and has its place in the cache from then on;
  it is counted for the event in which it begins.
- Of an event's missing experts, in order, each is loaded if its load would be done no later than the host's processor
  would be with it, counting from the end of those before it. With overlap the experts compute while others load, but
  not the last one that is waited for.
- Requests known before an event count from the end of its token step on, those known when its router has chosen from
  the end of its layer step on. Until the token step has ended the link prefetches by earlier requests, and ranks read
  the scores of the step before; what a layer step says of the next layers' experts, they read from its end on.
- Of all requests the link looks at the next expert, which is the first that is neither resident nor under way; those
  passed over are not looked at again. If there is no space for it, its event has to wait until the next event, even if
  another request replaces this one. What was evicted to make space for it stays evicted all the same.
- What demand loads is admitted at once, even above the budget; then experts are evicted, before the third part.
- An expert that is being prefetched may not be evicted, nor one that a request names until the request's event has
  ended. But evictions for what an event has used may take experts named for this same event too. The experts that an
  event uses are protected from then until it has ended, unless the policy bypasses. Where all that remain are protected
  and the budget is still exceeded, none is protected, unless it may be overrun. A prefetch whose expert is evicted is
  cancelled.
- A cache that is emptied before an event cancels the prefetch under way and drops all that have not begun. Experts that
  are removed then do not count as evictions.

Shape suffixes: N events, A accesses, M experts of the model, Q requests, X requested experts, Z moments (two an event),
L layers, V precisions, R rows of counts, C counters, G groups that share a budget, W ways of losing weight, T tokens,
E experts in a layer, H layers ahead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types as t

from moe_beyond.simulator.engine import cache, page_cache, stepper
from moe_beyond.simulator.engine.policy import FULL
from moe_beyond.simulator.engine.stepper import FARTHEST, LOADING, NOTHING
from moe_beyond.simulator.engine.untimed_kernel import COMMON
from moe_beyond.simulator.engine.usage import LATE, MISSED, NUM_LOSSES
from moe_beyond.simulator.jit import DEMAND, F32, F64, I32, I64, RANK, Bools, compiled

# the parts of an event, one after another, during each of which the link may work
TOKEN_STEP, BEFORE_EXPERTS, LAYER_STEP, EXPERTS = range(4)


@compiled(borrows=True)
def _work(
    rank: Any,
    features: F64,
    experts: I64,
    groups: I64,
    residents: I32,
    counts_RC: I64,
    link: I64,
    requests: I64,
    experts_X: I32,
    priorities_X: F32,
    bytes_VM: I64,
    units_VM: I64,
    transfer_ms_VM: F64,
    saves_ms_VM: F64,
    page_bytes_VM: I64,
    pages: I64,
    remaining_ms: float,
    time_ms: float,
    event: int,
    layer: int,
    at: cache.At,
) -> float:
    """Let the link prefetch for `time_ms`; returns what remains of the prefetch under way."""
    while time_ms > 0:
        if link[LOADING] == NOTHING:
            expert = stepper.start_prefetch(
                rank,
                features,
                experts,
                groups,
                residents,
                counts_RC,
                link,
                requests,
                experts_X,
                priorities_X,
                bytes_VM,
                units_VM,
                event,
                layer,
                at,
            )
            if expert == NOTHING:
                return remaining_ms
            remaining_ms = transfer_ms_VM[0, expert]
            if page_cache.read(pages, page_bytes_VM, 0, expert):
                remaining_ms -= saves_ms_VM[0, expert]
        if remaining_ms > time_ms:
            return remaining_ms - time_ms
        time_ms -= remaining_ms
        stepper.finish_prefetch(experts, link)
    return remaining_ms


# types of arguments
_F4, _F8, _I4, _I8 = t.float32[::1], t.float64[::1], t.int32[::1], t.int64[::1]
_I8_2, _F8_2 = t.int64[:, ::1], t.float64[:, ::1]
_RESULT: Any = t.Tuple((_I8_2, _F8_2, _I4, _F8, _F8, t.int8[::1], _I4, _I4))
_DEMAND: Any = (t.FunctionType(DEMAND), t.boolean[::1], _F4)
_REQUESTS: Any = (_I8, _I8, _I8, _I4, _F4)
_UNITS: Any = (_I8_2, _I8, _I8)
_TIMES: Any = (_F8_2, _F8_2, _F8, _F8, _F8, _F8, _F8_2, _F8_2, _F8_2, t.float64, t.boolean, _F8_2, _I8_2, t.int64)


@compiled(
    _RESULT(t.FunctionType(RANK), t.boolean, t.boolean, *COMMON, _I8_2, *_DEMAND, *_REQUESTS, *_UNITS, t.int64, *_TIMES)
)
def timed_replay(  # noqa: D417, PLR0912, PLR0915 - calls split it worse; up to `layer_M` as there
    rank: Any,
    bypass: bool,
    overrun: bool,
    members_A: I32,
    offsets_N: I64,
    step_N: I32,
    layer_N: I32,
    row_N: I64,
    row_A: I64,
    empties_N: Bools,
    next_use_A: I64,
    scores_SM: F32,
    ahead_HTLE: F32,
    token_S: I64,
    layer_M: I64,
    bytes_VM: I64,
    demand: Any,
    decides_N: Bools,
    shares_A: F32,
    request_offsets_Z: I64,
    target_Q: I64,
    offsets_Q: I64,
    experts_X: I32,
    priorities_X: F32,
    units_VM: I64,
    group_M: I64,
    budget_G: I64,
    num_rows: int,
    transfer_ms_VM: F64,
    read_ms_VM: F64,
    token_step_ms_N: F64,
    layer_step_ms_N: F64,
    dense_ms_N: F64,
    tokens_ms_N: F64,
    load_ms_VM: F64,
    cpu_ms_VM: F64,
    admit_ms_VM: F64,
    miss_layer_ms: float,
    overlap: bool,
    saves_ms_VM: F64,
    page_bytes_VM: I64,
    page_limit: int,
) -> tuple[I64, F64, I32, F64, F64, npt.NDArray[np.int8], I32, I32]:
    """Replay all events with a clock; the arguments that `untimed_kernel.replay` has too are documented there.

    Args:
        bytes_VM: Bytes of each expert at each precision.
        demand: The policy's demand function.
        decides_N: True for events for which it is called.
        shares_A: Each access's share of its event's router weight; empty where the policy needs none.
        request_offsets_Z: Where the requests of each moment begin and end.
        target_Q: The event that each request is for.
        offsets_Q: Where the experts of each request begin and end.
        experts_X: Those experts.
        priorities_X: Their priorities, falling within a request.
        units_VM: What each expert takes of its budget at each precision.
        transfer_ms_VM: Milliseconds that the link needs to prefetch each expert, or to copy it in the background.
        read_ms_VM: Milliseconds that the processor needs to use it.
        token_step_ms_N: Time before an event in which the predictor works; only what was requested earlier is
            prefetched.
        layer_step_ms_N: Time between an event's router and its experts in which the predictor works; demand loads
            meanwhile, and then only what was requested earlier is prefetched.
        dense_ms_N: Time of the event's layer before its experts are known.
        tokens_ms_N: What the event's experts compute together beyond `read_ms_VM`.
        load_ms_VM: Milliseconds that the link needs for each expert on demand, infinite: never.
        cpu_ms_VM: Milliseconds that the host's processor needs to compute it instead, infinite: never.
        admit_ms_VM: Milliseconds in which an expert loaded on demand is copied into the cache.
        miss_layer_ms: Time ahead of the first load of an event.
        overlap: Whether experts compute while others of their event load.
        saves_ms_VM: By how much sooner the link is done with each expert that lies in the page cache.
        page_bytes_VM: What each expert takes of the page cache.
        page_limit: Bytes that the page cache keeps at most.

    Returns:
        Counts int64 [R, C]; router weight lost float64 [R, W]; of each event: misses int32, time and stall in
        milliseconds float64; outcome of each access int8, as in `usage`; of each event: evictions, and those of experts
        that had been prefetched and not used, int32.
    """
    num_events = len(step_N)
    features, experts, groups, residents, counts_RC = cache.new_cache(
        layer_M, bytes_VM[0], units_VM[0], group_M, budget_G, num_rows
    )
    weight_lost_RW = np.zeros((num_rows, NUM_LOSSES))
    outcome_A = np.zeros(len(members_A), np.int8)
    misses_N = np.zeros(num_events, np.int32)
    evictions_N, wasted_N = np.zeros_like(misses_N), np.zeros_like(misses_N)
    time_N, stall_N = np.zeros(num_events), np.zeros(num_events)
    link, requests = stepper.new_link(layer_M[-1] + 1)
    actions_I, busy_M = np.full(len(layer_M), FULL), np.full(len(layer_M), NOTHING)
    computes_I, precision_I = np.empty(len(layer_M), np.int64), np.empty(len(layer_M), np.int64)
    pages = page_cache.new(page_bytes_VM, page_limit)
    remaining_ms, owed_ms = 0.0, 0.0
    if len(scores_SM) == 1:
        cache.set_scores(features, scores_SM[0])
    for event in range(num_events):
        step, layer, row = step_N[event], int(layer_N[event]), row_N[event]
        start, end = offsets_N[event], offsets_N[event + 1]
        evicted, wasted = counts_RC[row, cache.EVICTIONS], groups[cache.WASTED, 0]
        if empties_N[event]:
            stepper.empty(features, experts, groups, counts_RC, link, requests)
            owed_ms = 0.0
        # until its router has chosen, the layer has not run: its own residents are needed at once
        at = (start, step, layer - 1, row)
        wait_ms, expert_ms, cpu_ms, last_ms, copying_ms = 0.0, tokens_ms_N[event], 0.0, 0.0, 0.0
        stall_ms, hidden_ms, begins_loading_ms = 0.0, 0.0, miss_layer_ms
        for part in range(4):
            if part == TOKEN_STEP:
                # the prediction is not there yet, so nothing of it is requested
                time_ms = token_step_ms_N[event]
            elif part == BEFORE_EXPERTS:
                time_ms = dense_ms_N[event]
                if len(scores_SM) > 1 and (event == 0 or step != step_N[event - 1]):
                    cache.set_scores(features, scores_SM[step])
                for request in range(request_offsets_Z[2 * event], request_offsets_Z[2 * event + 1]):
                    target, first, last = target_Q[request], offsets_Q[request], offsets_Q[request + 1]
                    stepper.add_request(experts, link, requests, experts_X, layer_N[target], target, first, last)
            elif part == LAYER_STEP:
                under_way_ms = remaining_ms
                stepper.route(
                    rank,
                    demand,
                    decides_N[event],
                    bypass,
                    overrun,
                    features,
                    experts,
                    groups,
                    residents,
                    counts_RC,
                    weight_lost_RW,
                    link,
                    requests,
                    bytes_VM,
                    units_VM,
                    busy_M,
                    members_A,
                    shares_A,
                    next_use_A,
                    row_A,
                    start,
                    end,
                    start,
                    event,
                    step,
                    layer,
                    row,
                    actions_I,
                    outcome_A,
                    computes_I,
                    precision_I,
                )
                at = (end, step, layer, row)
                for access in range(start, end):
                    computes, precision = computes_I[access - start], precision_I[access - start]
                    own_ms = read_ms_VM[precision, computes] if computes >= 0 else 0.0
                    if outcome_A[access] == LATE:
                        wait_ms += under_way_ms
                        last_ms = own_ms
                    elif outcome_A[access] >= MISSED:
                        misses_N[event] += 1
                        loaded_ms = wait_ms + begins_loading_ms + load_ms_VM[precision, computes]
                        computed_ms = cpu_ms + cpu_ms_VM[precision, computes]
                        if loaded_ms <= computed_ms:
                            if page_cache.read(pages, page_bytes_VM, precision, computes):
                                loaded_ms -= saves_ms_VM[precision, computes]
                            wait_ms, begins_loading_ms = loaded_ms, 0.0
                            own_ms += admit_ms_VM[precision, computes]
                            last_ms = own_ms
                        else:
                            cpu_ms, own_ms = computed_ms, 0.0
                            owed_ms += transfer_ms_VM[precision, computes]
                    expert_ms += own_ms
                waiting_ms = max(0.0, wait_ms - layer_step_ms_N[event])
                hidden_ms = min(waiting_ms, expert_ms - last_ms) if overlap else 0.0
                stall_ms = waiting_ms - hidden_ms
                # demand loads first; what the predictor needs beyond that is the prefetches'
                time_ms = layer_step_ms_N[event] - wait_ms
            else:
                expert_ms = max(expert_ms, cpu_ms - stall_ms)
                time_ms = expert_ms - hidden_ms
                if len(ahead_HTLE) and token_S[step] >= 0:
                    cache.set_scores_ahead(features, ahead_HTLE, token_S[step], layer)
                for request in range(request_offsets_Z[2 * event + 1], request_offsets_Z[2 * event + 2]):
                    target, first, last = target_Q[request], offsets_Q[request], offsets_Q[request + 1]
                    stepper.add_request(experts, link, requests, experts_X, layer_N[target], target, first, last)
            if owed_ms > 0:
                paid_ms = min(owed_ms, max(0.0, time_ms))
                owed_ms, time_ms = owed_ms - paid_ms, time_ms - paid_ms
                if part == TOKEN_STEP and event > 0 and step != step_N[event - 1]:
                    copying_ms, owed_ms = owed_ms, 0.0
            if time_ms > 0 and (link[LOADING] != NOTHING or link[FARTHEST] >= event):
                remaining_ms = _work(
                    rank,
                    features,
                    experts,
                    groups,
                    residents,
                    counts_RC,
                    link,
                    requests,
                    experts_X,
                    priorities_X,
                    bytes_VM,
                    units_VM,
                    transfer_ms_VM,
                    saves_ms_VM,
                    page_bytes_VM,
                    pages,
                    remaining_ms,
                    time_ms,
                    event,
                    layer,
                    at,
                )
        stall_N[event] = copying_ms + stall_ms
        time_N[event] = token_step_ms_N[event] + dense_ms_N[event] + layer_step_ms_N[event] + stall_N[event] + expert_ms
        evictions_N[event] = counts_RC[row, cache.EVICTIONS] - evicted
        wasted_N[event] = groups[cache.WASTED, 0] - wasted
    cache.count_useless(experts, counts_RC)
    return counts_RC, weight_lost_RW, misses_N, time_N, stall_N, outcome_A, evictions_N, wasted_N
