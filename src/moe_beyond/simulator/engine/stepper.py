# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""What happens to a cache in each moment of an event, compiled: one set of functions, stepped from two sides.

A replay calls them with a clock that it computes (`timed_kernel`), a running model with the clock of the wall (`live`).
Both call, for each event in turn:

- `add_request` for what is requested before the event, from the end of the predictor's token step on;
- `start_prefetch` whenever the link is free, and `finish_prefetch` when it has loaded that expert;
- `route` when the event's router has chosen: everything is decided and counted there;
- `add_request` for what is requested by then, from the end of the predictor's layer step on;
- `start_prefetch` and `finish_prefetch` again while the experts compute.

`empty` empties the cache between prompts. The rules are those that `timed_kernel` lists.

Shape suffixes: A accesses, M experts of the model, X requested experts, L layers, V precisions, R rows of counts,
C counters, G groups that share a budget, W ways of losing weight, I members of an event.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types as t

from moe_beyond.simulator.engine import cache
from moe_beyond.simulator.engine.policy import FULL, NEXT_USE
from moe_beyond.simulator.engine.usage import LATE, resolve, use_as_decided
from moe_beyond.simulator.jit import DEMAND, F32, F64, I32, I64, RANK, compiled

NOTHING = -1
_WHILE_LOADING = 2**61

# places of the link's state
LOADING, UNTIL, FARTHEST = range(3)
"""LOADING: expert whose prefetch is under way, or NOTHING. UNTIL: its protection once it is there. FARTHEST: the last
event with a request."""

# rows of the table of requests, a column a layer
BEGIN, HEAD, END, BLOCKED = range(4)
"""The request for the layer's coming event: from BEGIN to END, of which HEAD is the next to start. BLOCKED: the event
in which there was no space for it."""

I8s = npt.NDArray[np.int8]
# types of arguments
_I4, _I8, _F4, _F8_2, _I8_2 = t.int32[::1], t.int64[::1], t.float32[::1], t.float64[:, ::1], t.int64[:, ::1]
_INT = t.int64
CACHE: Any = (_F8_2, _I8_2, _I8_2, t.int32[:, ::1], _I8_2)
"""The tables of a cache, in the order of `cache.new_cache`."""
_AT: Any = t.UniTuple(_INT, 4)
_RANK, _DEMAND = t.FunctionType(RANK), t.FunctionType(DEMAND)


@compiled()
def new_link(num_layers: int) -> tuple[I64, I64]:
    """The state of a link that loads nothing, and a table of no requests, int64 [3] and [4, L]."""
    requests = np.zeros((4, num_layers), np.int64)
    requests[BLOCKED] = NOTHING
    return np.array([NOTHING, 0, NOTHING]), requests


@compiled(t.void(_I8_2, _I8), borrows=True)
def finish_prefetch(experts: I64, link: I64) -> None:
    """The expert under way is there."""
    experts[cache.PROTECTED, link[LOADING]] = link[UNTIL]
    experts[cache.PRECISION, link[LOADING]] = 0
    link[LOADING] = NOTHING


@compiled(borrows=True)
def _drop(experts: I64, link: I64) -> None:
    """Cancel the prefetch under way, where its expert was evicted."""
    if link[LOADING] != NOTHING and experts[cache.PLACE, link[LOADING]] == cache.ABSENT:
        experts[cache.PROTECTED, link[LOADING]] = link[UNTIL]
        link[LOADING] = NOTHING


@compiled()
def empty(features: F64, experts: I64, groups: I64, counts_RC: I64, link: I64, requests: I64) -> None:
    """Empty the cache and the history of its experts; prefetches under way and to come are dropped."""
    cache.count_useless(experts, counts_RC)
    cache.forget(features, experts, groups)
    _drop(experts, link)
    requests[HEAD] = requests[END]


@compiled(borrows=True)
def _protect(experts: I64, link: I64, named: I32, old: int, new: int) -> None:
    """Move the protection of experts that is `old` or less to `new`."""
    for expert in named:
        if expert == link[LOADING]:
            link[UNTIL] = new if link[UNTIL] <= old else link[UNTIL]
        elif experts[cache.PROTECTED, expert] <= old:
            experts[cache.PROTECTED, expert] = new


@compiled(t.void(_I8_2, _I8, _I8_2, _I4, _INT, _INT, _INT, _INT), borrows=True)
def add_request(
    experts: I64, link: I64, requests: I64, experts_X: I32, layer: int, target: int, begin: int, end: int
) -> None:
    """Request `experts_X[begin:end]` for an event of a layer, in place of an earlier request for it.

    The experts named are protected until the end of the event; from the evictions of that event's own accesses only
    until its router has chosen.
    """
    stamp = 2 * target
    link[FARTHEST] = max(link[FARTHEST], target)
    withdrawn = experts_X[requests[BEGIN, layer] : requests[END, layer]]
    _protect(experts, link, withdrawn, stamp, cache.NEVER_PROTECTED)
    requests[BEGIN, layer] = requests[HEAD, layer] = begin
    requests[END, layer] = end
    _protect(experts, link, experts_X[begin:end], stamp, stamp)


@compiled(borrows=True)
def _highest_priority(
    experts: I64, link: I64, requests: I64, experts_X: I32, priorities_X: F32, event: int, layer: int
) -> int:
    """The layer whose next prefetch has the highest priority, of equal ones the soonest, or NOTHING."""
    num_layers = requests.shape[1]
    best, highest = NOTHING, np.float32(-np.inf)
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


@compiled(_INT(_RANK, *CACHE, _I8, _I8_2, _I4, _F4, _I8_2, _I8_2, _INT, _INT, _AT), borrows=True)
def start_prefetch(
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
    event: int,
    layer: int,
    at: cache.At,
) -> int:
    """Give the next requested expert its place in the cache; from then on the link loads it.

    Returns:
        The expert, or NOTHING: nothing is requested, or what is has no space.
    """
    while True:
        chosen = _highest_priority(experts, link, requests, experts_X, priorities_X, event, layer)
        if chosen == NOTHING:
            return NOTHING
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
        experts[cache.PROTECTED, expert] = _WHILE_LOADING
        return int(expert)


_RULES: Any = (_RANK, _DEMAND, t.boolean, t.boolean, t.boolean)
_EVENT: Any = (_I4, _F4, _I8, _I8, _INT, _INT, _INT, _INT, _INT, _INT, _INT)


@compiled(
    t.void(*_RULES, *CACHE, _F8_2, _I8, _I8_2, _I8_2, _I8_2, _I8, *_EVENT, _I8, t.int8[::1], _I8, _I8), borrows=True
)
def route(
    rank: Any,
    demand: Any,
    decides: bool,
    bypass: bool,
    overrun: bool,
    features: F64,
    experts: I64,
    groups: I64,
    residents: I32,
    counts_RC: I64,
    weight_lost_RW: F64,
    link: I64,
    requests: I64,
    bytes_VM: I64,
    units_VM: I64,
    busy_M: I64,
    members_A: I32,
    shares_A: F32,
    next_use_A: I64,
    row_A: I64,
    start: int,
    end: int,
    now: int,
    event: int,
    step: int,
    layer: int,
    row: int,
    actions_I: I64,
    outcome_A: I8s,
    computes_I: I64,
    precision_I: I64,
) -> None:
    """An event's router has chosen: count what is hit, load what is missed, evict what exceeds the budget.

    Args:
        rank: The policy's rank function.
        demand: The policy's demand function.
        decides: Whether it is called for this event.
        bypass: As in `untimed_kernel.replay`.
        overrun: As in `untimed_kernel.replay`.
        features: With the next four the tables of a cache.
        experts: See `cache`.
        groups: See `cache`.
        residents: See `cache`.
        counts_RC: Counts, which are added to.
        weight_lost_RW: Router weight lost, which is added to.
        link: As `new_link` makes it.
        requests: As `new_link` makes it.
        bytes_VM: Bytes of each expert at each precision.
        units_VM: What each expert takes of its budget at each precision.
        busy_M: Last event that used each expert; scratch.
        members_A: The event's experts are `members_A[start:end]`, distinct.
        shares_A: Each access's share of its event's router weight; empty where the policy needs none.
        next_use_A: Event of the next use; empty where the rank does not read it.
        row_A: Row that each access counts for; empty where all count for `row`.
        start: Where the event's accesses begin.
        end: Where they end.
        now: Accesses before the event, of all.
        event: Its number.
        step: Its step.
        layer: Its layer.
        row: Row of the counts.
        actions_I: Written: what the policy decides for each member.
        outcome_A: Written from `start` to `end`: what happened, a number of `usage`.
        computes_I: Written: the expert that computes for each member, or -1.
        precision_I: Written: at which precision, or -1.
    """
    # what has not begun is too late: the event loads it itself
    requests[HEAD, layer] = requests[END, layer]
    num_members = end - start
    actions_I[:num_members] = FULL
    if decides:
        members, actions = members_A[start:end], actions_I[:num_members]
        demand(features, experts[cache.PRECISION], members, shares_A[start:end], step, layer, actions)
        resolve(experts, members, actions, busy_M, event, len(bytes_VM))
    weighs, stamp, admissions = len(shares_A) > 0, 2 * event + 1, groups[cache.ADMISSIONS, 0]
    for i in range(num_members):
        access = start + i
        expert = members_A[access]
        late = expert == link[LOADING] and actions_I[i] <= FULL
        if late:
            finish_prefetch(experts, link)
        outcome, computes_I[i], precision_I[i] = use_as_decided(
            features,
            experts,
            groups,
            residents,
            counts_RC,
            weight_lost_RW,
            bytes_VM,
            units_VM,
            float(shares_A[access]) if weighs else 0.0,
            weighs,
            actions_I[i],
            expert,
            now + i,
            step,
            row_A[access] if len(row_A) else row,
            cache.NEVER_PROTECTED if bypass else stamp,
        )
        if len(next_use_A):
            features[NEXT_USE, expert] = next_use_A[access]
        outcome_A[access] = LATE if late else outcome
    if num_members:
        group = experts[cache.GROUP, members_A[start]]
        limit, at = groups[cache.BUDGET, group], (now + num_members, step, layer, row)
        cache.make_space(rank, features, experts, groups, residents, counts_RC, group, limit, stamp, at)
        if not overrun:
            # where the event alone uses more than fits, its own lowest ranks are evicted too
            cache.make_space(
                rank, features, experts, groups, residents, counts_RC, group, limit, cache.NONE_PROTECTED, at
            )
        _drop(experts, link)
        cache.discount_unkept(features, experts, counts_RC, members_A[start:end], admissions, row)
