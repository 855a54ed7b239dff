# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""The event loop with a clock: one link, shared by prefetch and demand, beside a processor.

A layer first computes what needs no routed expert (attention, shared experts, the router); then its experts are
known. What is missing is loaded on demand, ahead of any prefetch: one under way is paused, and goes on afterwards. When
all are there, the experts compute. While the processor works the link prefetches what has been requested by then, the
highest priority first. A prefetch that has not begun when its layer's router has chosen is dropped; one under way is
waited for.

A layer step of a predictor keeps the processor between router and experts, while demand is loading. A prefetch without
space in the cache waits until the next event, when something may be evicted.

In detail:

- An event has four parts: the token step of the predictor, what the layer computes ahead of its experts, the layer step
  of the predictor, and the experts. The link prefetches in each of them, in the third only in what is left of it when
  demand has loaded. A prefetch begins only while time is left in the part, and has its place in the cache from then on;
  it is counted for the event in which it begins.
- Requests known before an event count from the end of its token step on, those known when its router has chosen from
  the end of its layer step on. Until the token step has ended the link prefetches by earlier requests, and ranks read
  the scores of the step before.
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
L layers, V precisions, R rows of counts, C counters, G groups that share a budget, W ways of losing weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types as t

from moe_beyond.simulator.engine import cache
from moe_beyond.simulator.engine.policy import FULL, NEXT_USE
from moe_beyond.simulator.engine.untimed_kernel import COMMON
from moe_beyond.simulator.engine.usage import LATE, MISSED, NUM_LOSSES, resolve, use_as_decided
from moe_beyond.simulator.jit import DEMAND, F32, F64, I32, I64, RANK, Bools, compiled

_NOTHING = -1
_WHILE_LOADING = 2**61

# places of the link's state
LOADING, UNTIL, FARTHEST = range(3)
"""LOADING: expert whose prefetch is under way, or _NOTHING. UNTIL: its protection once it is there. FARTHEST: the last
event with a request."""

# rows of the table of requests, a column a layer
BEGIN, HEAD, END, BLOCKED = range(4)
"""The request for the layer's coming event: from BEGIN to END, of which HEAD is the next to start. BLOCKED: the event
in which there was no space for it."""

# the parts of an event, one after another, during each of which the link may work
TOKEN_STEP, BEFORE_EXPERTS, LAYER_STEP, EXPERTS = range(4)


@compiled()
def _finish(experts: I64, link: I64) -> None:
    experts[cache.PROTECTED, link[LOADING]] = link[UNTIL]
    experts[cache.PRECISION, link[LOADING]] = 0
    link[LOADING] = _NOTHING


@compiled()
def _drop(experts: I64, link: I64) -> None:
    """Cancel the prefetch under way, where its expert was evicted."""
    if link[LOADING] != _NOTHING and experts[cache.PLACE, link[LOADING]] == cache.ABSENT:
        experts[cache.PROTECTED, link[LOADING]] = link[UNTIL]
        link[LOADING] = _NOTHING


@compiled()
def _protect(experts: I64, link: I64, named: I32, old: int, new: int) -> None:
    """Move the protection of experts that is `old` or less to `new`."""
    for expert in named:
        if expert == link[LOADING]:
            link[UNTIL] = new if link[UNTIL] <= old else link[UNTIL]
        elif experts[cache.PROTECTED, expert] <= old:
            experts[cache.PROTECTED, expert] = new


@compiled()
def _add_requests(
    experts: I64,
    link: I64,
    requests: I64,
    layer_N: I32,
    target_Q: I64,
    offsets_Q: I64,
    experts_X: I32,
    first: int,
    end: int,
) -> None:
    """Replace earlier requests for the same layers; the experts named are protected until the end of the event.

    From the evictions of that event's own accesses they are protected only until its router has chosen.
    """
    for request in range(first, end):
        layer, stamp = layer_N[target_Q[request]], 2 * target_Q[request]
        link[FARTHEST] = max(link[FARTHEST], target_Q[request])
        withdrawn = experts_X[requests[BEGIN, layer] : requests[END, layer]]
        _protect(experts, link, withdrawn, stamp, cache.NEVER_PROTECTED)
        requests[BEGIN, layer] = requests[HEAD, layer] = offsets_Q[request]
        requests[END, layer] = offsets_Q[request + 1]
        _protect(experts, link, experts_X[requests[BEGIN, layer] : requests[END, layer]], stamp, stamp)


@compiled()
def _highest_priority(
    experts: I64, link: I64, requests: I64, experts_X: I32, priorities_X: F32, event: int, layer: int
) -> int:
    """The layer whose next prefetch has the highest priority, of equal ones the soonest, or _NOTHING."""
    num_layers = requests.shape[1]
    best, highest = _NOTHING, np.float32(-np.inf)
    for ahead in range(min(num_layers, link[FARTHEST] - event + 1)):
        other = layer + ahead
        other -= num_layers if other >= num_layers else 0
        head, end = requests[HEAD, other], requests[END, other]
        if head == end or requests[BLOCKED, other] == event:
            continue
        while head < end and experts[cache.PLACE, experts_X[head]] != cache.ABSENT:
            head += 1
        requests[HEAD, other] = head
        if head < end and priorities_X[head] > highest:
            best, highest = other, priorities_X[head]
    return best


@compiled()
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
    remaining_ms: float,
    time_ms: float,
    event: int,
    layer: int,
    at: cache.At,
) -> float:
    """Let the link prefetch for `time_ms`; returns what remains of the prefetch under way."""
    while time_ms > 0:
        if link[LOADING] == _NOTHING:
            chosen = _highest_priority(experts, link, requests, experts_X, priorities_X, event, layer)
            if chosen == _NOTHING:
                return remaining_ms
            expert = experts_X[requests[HEAD, chosen]]
            group = experts[cache.GROUP, expert]
            limit = groups[cache.BUDGET, group] - units_VM[0, expert]
            cache.make_space(rank, features, experts, groups, residents, counts_RC, group, limit, 2 * event, at)
            if groups[cache.USED, group] > limit:
                requests[BLOCKED, chosen] = event
                continue
            requests[HEAD, chosen] += 1
            experts[cache.BYTES, expert], experts[cache.UNITS, expert] = bytes_VM[0, expert], units_VM[0, expert]
            cache.admit(features, experts, groups, residents, expert, at[3])
            counts_RC[at[3], cache.PREFETCHES] += 1
            counts_RC[at[3], cache.PREFETCH_BYTES] += bytes_VM[0, expert]
            link[LOADING] = expert
            link[UNTIL] = experts[cache.PROTECTED, expert]
            remaining_ms = transfer_ms_VM[0, expert]
            experts[cache.PROTECTED, expert] = _WHILE_LOADING
        if remaining_ms > time_ms:
            return remaining_ms - time_ms
        time_ms -= remaining_ms
        _finish(experts, link)
    return remaining_ms


# types of arguments
_F4, _F8, _I4, _I8 = t.float32[::1], t.float64[::1], t.int32[::1], t.int64[::1]
_I8_2, _F8_2 = t.int64[:, ::1], t.float64[:, ::1]
_RESULT: Any = t.Tuple((_I8_2, _F8_2, _I4, _F8, _F8, t.int8[::1], _I4, _I4))
_DEMAND: Any = (t.FunctionType(DEMAND), t.boolean[::1], _F4)
_REQUESTS: Any = (_I8, _I8, _I8, _I4, _F4)
_UNITS: Any = (_I8_2, _I8, _I8)
_TIMES: Any = (_F8_2, _F8_2, _F8, _F8, _F8)


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
        transfer_ms_VM: Milliseconds that the link needs for each expert.
        read_ms_VM: Milliseconds that the processor needs to use it.
        token_step_ms_N: Time before an event in which the predictor works; only what was requested earlier is
            prefetched.
        layer_step_ms_N: Time between an event's router and its experts in which the predictor works; demand loads
            meanwhile, and then only what was requested earlier is prefetched.
        dense_ms_N: Time of the event's layer before its experts are known.

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
    link = np.array([_NOTHING, 0, _NOTHING])
    requests = np.zeros((4, layer_M[-1] + 1), np.int64)
    requests[BLOCKED] = _NOTHING
    actions_I = np.full(len(layer_M), FULL)
    busy_M = np.full(len(layer_M), _NOTHING)
    remaining_ms = 0.0
    if len(scores_SM) == 1:
        cache.set_scores(features, scores_SM[0])
    for event in range(num_events):
        step, layer, row = step_N[event], int(layer_N[event]), row_N[event]
        start, end = offsets_N[event], offsets_N[event + 1]
        evicted, wasted = counts_RC[row, cache.EVICTIONS], groups[cache.WASTED, 0]
        if empties_N[event]:
            cache.count_useless(experts, counts_RC)
            cache.forget(features, experts, groups)
            _drop(experts, link)
            requests[HEAD] = requests[END]
        # until its router has chosen, the layer has not run: its own residents are needed at once
        at = (start, step, layer - 1, row)
        wait_ms, expert_ms = 0.0, 0.0
        for part in range(4):
            if part == TOKEN_STEP:
                # the prediction is not there yet, so nothing of it is requested
                time_ms = token_step_ms_N[event]
            elif part == BEFORE_EXPERTS:
                time_ms = dense_ms_N[event]
                if len(scores_SM) > 1 and (event == 0 or step != step_N[event - 1]):
                    cache.set_scores(features, scores_SM[step])
                first, last = request_offsets_Z[2 * event], request_offsets_Z[2 * event + 1]
                _add_requests(experts, link, requests, layer_N, target_Q, offsets_Q, experts_X, first, last)
            elif part == LAYER_STEP:
                # what has not begun is too late: the event loads it itself
                requests[HEAD, layer] = requests[END, layer]
                at = (end, step, layer, row)
                admissions = groups[cache.ADMISSIONS, 0]
                actions = actions_I[: end - start]
                actions[:] = FULL
                if decides_N[event]:
                    members, shares = members_A[start:end], shares_A[start:end]
                    demand(features, experts[cache.PRECISION], members, shares, step, layer, actions)
                    resolve(experts, members, actions, busy_M, event, len(bytes_VM))
                for access in range(start, end):
                    expert = members_A[access]
                    late = expert == link[LOADING] and actions[access - start] <= FULL
                    if late:
                        wait_ms += remaining_ms
                        _finish(experts, link)
                    outcome, computes, precision = use_as_decided(
                        features,
                        experts,
                        groups,
                        residents,
                        counts_RC,
                        weight_lost_RW,
                        bytes_VM,
                        units_VM,
                        shares_A,
                        actions[access - start],
                        expert,
                        access,
                        step,
                        row_A[access] if len(row_A) else row,
                        cache.NEVER_PROTECTED if bypass else 2 * event + 1,
                    )
                    if outcome >= MISSED:
                        wait_ms += transfer_ms_VM[precision, expert]
                        misses_N[event] += 1
                    if computes >= 0:
                        expert_ms += read_ms_VM[precision, computes]
                    if len(next_use_A):
                        features[NEXT_USE, expert] = next_use_A[access]
                    outcome_A[access] = LATE if late else outcome
                if start < end:
                    group = group_M[members_A[start]]
                    limit, stamp = budget_G[group], 2 * event + 1
                    cache.make_space(rank, features, experts, groups, residents, counts_RC, group, limit, stamp, at)
                    if not overrun:
                        stamp = cache.NONE_PROTECTED
                        cache.make_space(rank, features, experts, groups, residents, counts_RC, group, limit, stamp, at)
                    _drop(experts, link)
                    cache.discount_unkept(features, experts, counts_RC, members_A[start:end], admissions, at[3])
                # demand loads first; what the predictor needs beyond that is the prefetches'
                time_ms = layer_step_ms_N[event] - wait_ms
            else:
                time_ms = expert_ms
                first, last = request_offsets_Z[2 * event + 1], request_offsets_Z[2 * event + 2]
                _add_requests(experts, link, requests, layer_N, target_Q, offsets_Q, experts_X, first, last)
            if time_ms > 0 and (link[LOADING] != _NOTHING or link[FARTHEST] >= event):
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
                    remaining_ms,
                    time_ms,
                    event,
                    layer,
                    at,
                )
        stall_N[event] = max(0.0, wait_ms - layer_step_ms_N[event])
        time_N[event] = token_step_ms_N[event] + dense_ms_N[event] + layer_step_ms_N[event] + stall_N[event] + expert_ms
        evictions_N[event] = counts_RC[row, cache.EVICTIONS] - evicted
        wasted_N[event] = groups[cache.WASTED, 0] - wasted
    cache.count_useless(experts, counts_RC)
    return counts_RC, weight_lost_RW, misses_N, time_N, stall_N, outcome_A, evictions_N, wasted_N
