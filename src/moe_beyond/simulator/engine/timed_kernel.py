# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""The event loop with a clock: one link, shared by prefetch and demand, beside a processor.

A layer first computes what needs no routed expert (attention, shared experts, the router); then its experts are
known. What is missing is loaded on demand, ahead of any prefetch: one under way is paused, and goes on afterwards. When
all are there, the experts compute. While the processor works the link prefetches what has been asked for by then, the
highest priority first. A prefetch that has not begun when its layer asks is dropped; one under way is waited for.

A layer step of a predictor keeps the processor between router and experts, while demand is loading. What finds no room
waits until the next event, when something may leave.

In detail, where an ask is a prefetch request:

- An event has four parts: the token step of the predictor, what the layer computes ahead of its experts, the layer step
  of the predictor, and the experts. The link prefetches in each of them, in the third only in what is left of it when
  demand has loaded. A prefetch begins only while time is left in the part, and has its place in the cache from then on;
  it is counted for the event in which it begins.
- Requests known before an event count from the end of its token step on, those known when its router has chosen from
  the end of its layer step on. Until the token step has ended the link prefetches by earlier requests, and ranks read
  the scores of the step before.
- Of all requests the link looks at the next expert, which is the first that is neither resident nor under way; those
  passed over are not looked at again. If there is no space for it, its event has to wait until the next event, even if
  another request replaces this one. What has left to make space for it stays away all the same.
- What demand loads is admitted at once, even above the budget; then experts leave, before the third part.
- An expert that is being prefetched may not leave, nor one that a request names until the request's event has ended.
  But when experts leave for what an event has used, those named for this same event may leave too. The experts that an
  event uses are protected from then until it has ended, unless the policy bypasses. Where all who are left are
  protected and the budget is still exceeded, nobody is protected, unless it may be overrun. A prefetch whose expert
  leaves is given up.
- A cache that is emptied before an event gives up the prefetch under way and drops all that have not begun. Those who
  leave then are not counted as evictions.

Shape suffixes: N events, A accesses, M experts of the model, Q asks, X experts asked for, Z moments (two an event),
L layers, V precisions, R rows of counts, C counters, G groups that share a budget, W ways of giving up weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types as t

from moe_beyond.simulator.engine.cache import (
    ABSENT,
    BUDGET,
    EVICTIONS,
    GROUP,
    NEVER_PROTECTED,
    NOBODY_IS_SPARED,
    PLACE,
    PRECISION,
    PREFETCH_BYTES,
    PREFETCHES,
    PROTECTED,
    UNITS,
    USED,
    WASTED,
    At,
    CountTable,
    Experts,
    Features,
    Groups,
    Residents,
    admit,
    count_useless,
    forget,
    make_room,
    new_cache,
    set_scores,
)
from moe_beyond.simulator.engine.cache import BYTES as BYTES_NOW
from moe_beyond.simulator.engine.policy import FULL, NEXT_USE
from moe_beyond.simulator.engine.usage import LATE, MISSED, NUM_GIVEN_UP, resolve, use_as_told
from moe_beyond.simulator.jit import DEMAND, RANK, compiled

_NOTHING = -1
_WHILE_LOADING = 2**61

# places of the link's state
LOADING, UNTIL, FARTHEST = range(3)
"""LOADING: expert whose prefetch is under way, or _NOTHING. UNTIL: its protection once it is there. FARTHEST: the last
event that anything has been asked for."""

# rows of the table of asks, a column a layer
BEGIN, HEAD, END, BLOCKED = range(4)
"""What is asked for of the layer's coming event: from BEGIN to END, of which HEAD is the next to start. BLOCKED: the
event in which there was no room for it."""

# the parts of an event, one after another, during each of which the link may work
THINKING, BEFORE_EXPERTS, THINKING_AGAIN, EXPERTS = range(4)

Asked = npt.NDArray[np.int64]


@compiled()
def _finish(experts: Experts, link: npt.NDArray[np.int64]) -> None:
    experts[PROTECTED, link[LOADING]] = link[UNTIL]
    experts[PRECISION, link[LOADING]] = 0
    link[LOADING] = _NOTHING


@compiled()
def _drop(experts: Experts, link: npt.NDArray[np.int64]) -> None:
    """Give up the prefetch under way, where it has lost its place."""
    if link[LOADING] != _NOTHING and experts[PLACE, link[LOADING]] == ABSENT:
        experts[PROTECTED, link[LOADING]] = link[UNTIL]
        link[LOADING] = _NOTHING


@compiled()
def _spare(experts: Experts, link: npt.NDArray[np.int64], named: npt.NDArray[np.int32], old: int, new: int) -> None:
    """Move the protection of experts that is `old` or less to `new`."""
    for expert in named:
        if expert == link[LOADING]:
            link[UNTIL] = new if link[UNTIL] <= old else link[UNTIL]
        elif experts[PROTECTED, expert] <= old:
            experts[PROTECTED, expert] = new


@compiled()
def _ask(
    experts: Experts,
    link: npt.NDArray[np.int64],
    asked: Asked,
    layer_N: npt.NDArray[np.int32],
    target_Q: npt.NDArray[np.int64],
    ask_offsets_Q: npt.NDArray[np.int64],
    asked_X: npt.NDArray[np.int32],
    first: int,
    end: int,
) -> None:
    """Let asks replace earlier ones for the same layer; whom they name is spared until the end of the event.

    From the evictions of that event's own accesses they are spared only until its router has chosen.
    """
    for ask in range(first, end):
        layer, stamp = layer_N[target_Q[ask]], 2 * target_Q[ask]
        link[FARTHEST] = max(link[FARTHEST], target_Q[ask])
        withdrawn = asked_X[asked[BEGIN, layer] : asked[END, layer]]
        _spare(experts, link, withdrawn, stamp, NEVER_PROTECTED)
        asked[BEGIN, layer] = asked[HEAD, layer] = ask_offsets_Q[ask]
        asked[END, layer] = ask_offsets_Q[ask + 1]
        _spare(experts, link, asked_X[asked[BEGIN, layer] : asked[END, layer]], stamp, stamp)


@compiled()
def _most_wanted(
    experts: Experts,
    link: npt.NDArray[np.int64],
    asked: Asked,
    asked_X: npt.NDArray[np.int32],
    priorities_X: npt.NDArray[np.float32],
    event: int,
    layer: int,
) -> int:
    """The layer whose next prefetch has the highest priority, of equal ones the soonest, or _NOTHING."""
    num_layers = asked.shape[1]
    best, highest = _NOTHING, np.float32(-np.inf)
    for ahead in range(min(num_layers, link[FARTHEST] - event + 1)):
        other = layer + ahead
        other -= num_layers if other >= num_layers else 0
        head, end = asked[HEAD, other], asked[END, other]
        if head == end or asked[BLOCKED, other] == event:
            continue
        while head < end and experts[PLACE, asked_X[head]] != ABSENT:
            head += 1
        asked[HEAD, other] = head
        if head < end and priorities_X[head] > highest:
            best, highest = other, priorities_X[head]
    return best


@compiled()
def _work(
    rank: Any,
    features: Features,
    experts: Experts,
    groups: Groups,
    residents: Residents,
    counts_RC: CountTable,
    link: npt.NDArray[np.int64],
    asked: Asked,
    asked_X: npt.NDArray[np.int32],
    priorities_X: npt.NDArray[np.float32],
    weight_VM: npt.NDArray[np.int64],
    units_VM: npt.NDArray[np.int64],
    transfer_ms_VM: npt.NDArray[np.float64],
    remaining_ms: float,
    time_ms: float,
    event: int,
    layer: int,
    at: At,
) -> float:
    """Let the link prefetch for `time_ms`; returns what remains of the prefetch under way."""
    while time_ms > 0:
        if link[LOADING] == _NOTHING:
            wanted = _most_wanted(experts, link, asked, asked_X, priorities_X, event, layer)
            if wanted == _NOTHING:
                return remaining_ms
            expert = asked_X[asked[HEAD, wanted]]
            group = experts[GROUP, expert]
            limit = groups[BUDGET, group] - units_VM[0, expert]
            make_room(rank, features, experts, groups, residents, counts_RC, group, limit, 2 * event, at)
            if groups[USED, group] > limit:
                asked[BLOCKED, wanted] = event
                continue
            asked[HEAD, wanted] += 1
            experts[BYTES_NOW, expert], experts[UNITS, expert] = weight_VM[0, expert], units_VM[0, expert]
            admit(features, experts, groups, residents, expert, at[3])
            counts_RC[at[3], PREFETCHES] += 1
            counts_RC[at[3], PREFETCH_BYTES] += weight_VM[0, expert]
            link[LOADING] = expert
            link[UNTIL] = experts[PROTECTED, expert]
            remaining_ms = transfer_ms_VM[0, expert]
            experts[PROTECTED, expert] = _WHILE_LOADING
        if remaining_ms > time_ms:
            return remaining_ms - time_ms
        time_ms -= remaining_ms
        _finish(experts, link)
    return remaining_ms


_RESULT: Any = t.Tuple(
    (
        t.int64[:, ::1],
        t.float64[:, ::1],
        t.int32[::1],
        t.float64[::1],
        t.float64[::1],
        t.int8[::1],
        t.int32[::1],
        t.int32[::1],
    )
)


@compiled(
    _RESULT(
        t.FunctionType(RANK),
        t.boolean,
        t.boolean,
        t.int32[::1],
        t.int64[::1],
        t.int32[::1],
        t.int32[::1],
        t.int64[::1],
        t.int64[::1],
        t.boolean[::1],
        t.int64[::1],
        t.float32[:, ::1],
        t.int64[::1],
        t.int64[:, ::1],
        t.FunctionType(DEMAND),
        t.boolean[::1],
        t.float32[::1],
        t.int64[::1],
        t.int64[::1],
        t.int64[::1],
        t.int32[::1],
        t.float32[::1],
        t.int64[:, ::1],
        t.int64[::1],
        t.int64[::1],
        t.int64,
        t.float64[:, ::1],
        t.float64[:, ::1],
        t.float64[::1],
        t.float64[::1],
        t.float64[::1],
    )
)
def timed_replay(  # noqa: D417, PLR0912, PLR0915 - calls split it worse; up to `layer_M` as there
    rank: Any,
    bypass: bool,
    overrun: bool,
    members_A: npt.NDArray[np.int32],
    offsets_N: npt.NDArray[np.int64],
    step_N: npt.NDArray[np.int32],
    layer_N: npt.NDArray[np.int32],
    row_N: npt.NDArray[np.int64],
    row_A: npt.NDArray[np.int64],
    empties_N: npt.NDArray[np.bool_],
    next_use_A: npt.NDArray[np.int64],
    scores_SM: npt.NDArray[np.float32],
    layer_M: npt.NDArray[np.int64],
    weight_VM: npt.NDArray[np.int64],
    demand: Any,
    decides_N: npt.NDArray[np.bool_],
    shares_A: npt.NDArray[np.float32],
    ask_offsets_Z: npt.NDArray[np.int64],
    target_Q: npt.NDArray[np.int64],
    ask_offsets_Q: npt.NDArray[np.int64],
    asked_X: npt.NDArray[np.int32],
    priorities_X: npt.NDArray[np.float32],
    units_VM: npt.NDArray[np.int64],
    group_M: npt.NDArray[np.int64],
    budget_G: npt.NDArray[np.int64],
    num_rows: int,
    transfer_ms_VM: npt.NDArray[np.float64],
    read_ms_VM: npt.NDArray[np.float64],
    token_step_ms_N: npt.NDArray[np.float64],
    layer_step_ms_N: npt.NDArray[np.float64],
    dense_ms_N: npt.NDArray[np.float64],
) -> tuple[
    npt.NDArray[np.int64],
    npt.NDArray[np.float64],
    npt.NDArray[np.int32],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    npt.NDArray[np.int8],
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
]:
    """Replay all events with a clock; the arguments that `kernels.replay` has too are documented there.

    Args:
        weight_VM: Bytes of each expert at each precision.
        demand: The policy's demand function.
        decides_N: True for events for which it is called.
        shares_A: Each access's share of its event's router weight; empty where the policy needs none.
        ask_offsets_Z: Where the asks of each moment begin and end.
        target_Q: The event that each ask is for.
        ask_offsets_Q: Where the experts of each ask begin and end.
        asked_X: Those experts.
        priorities_X: Their priorities, falling within an ask.
        units_VM: What each expert takes of its budget at each precision.
        transfer_ms_VM: Milliseconds that the link needs for each expert.
        read_ms_VM: Milliseconds that the processor needs to use it.
        token_step_ms_N: Time before an event in which the predictor works; only what was requested earlier is
            prefetched.
        layer_step_ms_N: Time between an event's router and its experts in which the predictor works; demand loads
            meanwhile, and then only what was asked for earlier is prefetched.
        dense_ms_N: Time of the event's layer before its experts are known.

    Returns:
        Counts int64 [R, C]; weight given up float64 [R, W]; of each event: misses int32, time and stall in milliseconds
        float64; outcome of each access int8, as in `usage`; of each event: experts that left and those of them that had
        been prefetched and not used, int32.
    """
    num_events = len(step_N)
    features, experts, groups, residents, counts_RC = new_cache(
        layer_M, weight_VM[0], units_VM[0], group_M, budget_G, num_rows
    )
    given_up_RW = np.zeros((num_rows, NUM_GIVEN_UP))
    outcome_A = np.zeros(len(members_A), np.int8)
    misses_N, evictions_N, wasted_N = (
        np.zeros(num_events, np.int32),
        np.zeros(num_events, np.int32),
        np.zeros(num_events, np.int32),
    )
    time_N, stall_N = np.zeros(num_events), np.zeros(num_events)
    link = np.array([_NOTHING, 0, _NOTHING])
    asked = np.zeros((4, layer_M[-1] + 1), np.int64)
    asked[BLOCKED] = _NOTHING
    actions_I = np.full(len(layer_M), FULL)
    busy_M = np.full(len(layer_M), _NOTHING)
    remaining_ms = 0.0
    if len(scores_SM) == 1:
        set_scores(features, scores_SM[0])
    for event in range(num_events):
        step, layer, row = step_N[event], int(layer_N[event]), row_N[event]
        start, end = offsets_N[event], offsets_N[event + 1]
        evicted, wasted = counts_RC[row, EVICTIONS], groups[WASTED, 0]
        if empties_N[event]:
            count_useless(experts, counts_RC)
            forget(features, experts, groups)
            _drop(experts, link)
            asked[HEAD] = asked[END]
        # until its router has chosen, the layer's own residents are still to have their turn
        at = (start, step, layer - 1, row)
        wait_ms, expert_ms = 0.0, 0.0
        for part in range(4):
            if part == THINKING:
                # what the predictor will say cannot be asked for yet
                time_ms = token_step_ms_N[event]
            elif part == BEFORE_EXPERTS:
                time_ms = dense_ms_N[event]
                if len(scores_SM) > 1 and (event == 0 or step != step_N[event - 1]):
                    set_scores(features, scores_SM[step])
                first, last = ask_offsets_Z[2 * event], ask_offsets_Z[2 * event + 1]
                _ask(experts, link, asked, layer_N, target_Q, ask_offsets_Q, asked_X, first, last)
            elif part == THINKING_AGAIN:
                # what has not begun is too late: the event loads it itself
                asked[HEAD, layer] = asked[END, layer]
                at = (end, step, layer, row)
                actions = actions_I[: end - start]
                actions[:] = FULL
                if decides_N[event]:
                    members, shares = members_A[start:end], shares_A[start:end]
                    demand(features, experts[PRECISION], members, shares, step, layer, actions)
                    resolve(experts, members, actions, busy_M, event, len(weight_VM))
                for access in range(start, end):
                    expert = members_A[access]
                    late = expert == link[LOADING] and actions[access - start] <= FULL
                    if late:
                        wait_ms += remaining_ms
                        _finish(experts, link)
                    outcome, computes, precision = use_as_told(
                        features,
                        experts,
                        groups,
                        residents,
                        counts_RC,
                        given_up_RW,
                        weight_VM,
                        units_VM,
                        shares_A,
                        actions[access - start],
                        expert,
                        access,
                        step,
                        row_A[access] if len(row_A) else row,
                        NEVER_PROTECTED if bypass else 2 * event + 1,
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
                    make_room(rank, features, experts, groups, residents, counts_RC, group, limit, stamp, at)
                    if not overrun:
                        stamp = NOBODY_IS_SPARED
                        make_room(rank, features, experts, groups, residents, counts_RC, group, limit, stamp, at)
                    _drop(experts, link)
                # demand loads first; what the predictor needs beyond that is the prefetches'
                time_ms = layer_step_ms_N[event] - wait_ms
            else:
                time_ms = expert_ms
                first, last = ask_offsets_Z[2 * event + 1], ask_offsets_Z[2 * event + 2]
                _ask(experts, link, asked, layer_N, target_Q, ask_offsets_Q, asked_X, first, last)
            if time_ms > 0 and (link[LOADING] != _NOTHING or link[FARTHEST] >= event):
                remaining_ms = _work(
                    rank,
                    features,
                    experts,
                    groups,
                    residents,
                    counts_RC,
                    link,
                    asked,
                    asked_X,
                    priorities_X,
                    weight_VM,
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
        evictions_N[event] = counts_RC[row, EVICTIONS] - evicted
        wasted_N[event] = groups[WASTED, 0] - wasted
    count_useless(experts, counts_RC)
    return counts_RC, given_up_RW, misses_N, time_N, stall_N, outcome_A, evictions_N, wasted_N
