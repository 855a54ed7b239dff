# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""The event-atomic loop of `untimed_kernel` where ranks are an order that is kept, compiled: nothing is searched.

The order of last uses, or of admissions, changes at one end only: what is used or admitted goes to the end of its
group's list, and the next to be evicted is found at the front, however large the cache is. What is counted is the same.

Shape suffixes: N events, A accesses, M experts of the model, F features, G groups that share a budget, R rows of
counts, C counters, I places in a list.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import types as t

from moe_beyond.simulator.engine import cache
from moe_beyond.simulator.engine.policy import ADMITTED, LAST_USE, RANKS, Policy, Rank
from moe_beyond.simulator.jit import F64, I32, I64, RANK, Bools, compiled

_I4, _I8, _TABLE = t.int32[::1], t.int64[::1], t.int64[:, ::1]


@functools.cache
def by_feature(feature: int) -> Rank:
    """The rank function that reads one row of the features: the expert with the lowest value is evicted."""

    @compiled(RANK, borrows=True)
    def rank(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
        for place, expert in enumerate(residents):
            features_FM[RANKS, place] = features_FM[feature, expert]

    return rank


def order_of(policy: Policy) -> int | None:
    """The row of the features that the policy's residents are kept in the order of; None: it has no such order."""
    # told by the function: a class that inherits an order may rank by something else
    orders = (LAST_USE, ADMITTED)
    return None if policy.bypass else next((row for row in orders if by_feature(row) is policy.rank), None)


@compiled()
def _unlink(later: I64, sooner: I64, expert: int) -> None:
    later[sooner[expert]] = later[expert]
    sooner[later[expert]] = sooner[expert]


@compiled()
def _append(later: I64, sooner: I64, expert: int, end: int) -> None:
    later[expert] = end
    sooner[expert] = sooner[end]
    later[sooner[end]] = expert
    sooner[end] = expert


@compiled()
def _evict(
    later: I64,
    sooner: I64,
    features: F64,
    experts: I64,
    groups: I64,
    residents: I32,
    counts_RC: I64,
    group: int,
    stamp: int,
    row: int,
) -> None:
    """Evict from the front until the group keeps its budget, or only protected experts remain."""
    end = experts.shape[1] + group
    expert = later[end]
    while groups[cache.USED, group] > groups[cache.BUDGET, group] and expert != end:
        following = later[expert]
        if experts[cache.PROTECTED, expert] < stamp:
            _unlink(later, sooner, expert)
            cache.remove(features, experts, groups, residents, counts_RC, expert, row)
        expert = following


@compiled(
    _I4(
        t.int64, t.boolean, _I4, _I8, _I4, _I8, _I8, t.boolean[::1],
        t.float64[:, ::1], _TABLE, _TABLE, t.int32[:, ::1], _TABLE, t.int64, t.int64,
    )
)  # fmt: skip
def replay(
    order: int,
    overrun: bool,
    members_A: I32,
    offsets_N: I64,
    step_N: I32,
    row_N: I64,
    row_A: I64,
    empties_N: Bools,
    features: F64,
    experts: I64,
    groups: I64,
    residents: I32,
    counts_RC: I64,
    events_before: int,
    accesses_before: int,
) -> I32:
    """As `untimed_kernel.replay`, for a policy of an order and without prefetches.

    Args:
        order: As `order_of` gives it.
        overrun: As there; so all others.
        members_A: Accessed experts.
        offsets_N: Where each event's accesses begin and end.
        step_N: Step of each event.
        row_N: Row of the counts that each event adds to.
        row_A: Row that each access counts for, or empty.
        empties_N: True where the cache is emptied before the event.
        features: Of the cache.
        experts: Of the cache.
        groups: Of the cache.
        residents: Of the cache.
        counts_RC: What is counted, added to.
        events_before: Events that the cache has seen.
        accesses_before: And their accesses.

    Returns:
        The misses of each event, int32 [N].
    """
    misses_N = np.zeros(len(step_N), np.int32)
    num_experts, num_groups = experts.shape[1], groups.shape[1]
    # lists in rings: of the i-th group's, the place after the last expert and before the first is num_experts + i
    later, sooner = np.arange(num_experts + num_groups), np.arange(num_experts + num_groups)
    # events before these may have left residents; a stable sort leaves equal ones, not used yet, in the order of ids
    for expert in np.argsort(features[order], kind="mergesort"):
        if experts[cache.PLACE, expert] != cache.ABSENT:
            _append(later, sooner, expert, num_experts + experts[cache.GROUP, expert])
    for event in range(len(step_N)):
        if empties_N[event]:
            cache.count_useless(experts, counts_RC)
            cache.forget(features, experts, groups)
            for end in range(num_experts, num_experts + num_groups):
                later[end] = sooner[end] = end
        first, last = offsets_N[event], offsets_N[event + 1]
        if first == last:
            continue
        stamp, admissions = 2 * (events_before + event) + 1, groups[cache.ADMISSIONS, 0]
        row, end = row_N[event], num_experts + experts[cache.GROUP, members_A[first]]
        for access in range(first, last):
            expert = members_A[access]
            if len(row_A):
                row = row_A[access]
            now = accesses_before + access
            missed = cache.use(features, experts, groups, residents, counts_RC, expert, now, step_N[event], row)
            misses_N[event] += missed
            if order == LAST_USE and not missed:
                _unlink(later, sooner, expert)
            if order == LAST_USE or missed:
                _append(later, sooner, expert, end)
            experts[cache.PROTECTED, expert] = stamp
        row, group = row_N[event], end - num_experts
        _evict(later, sooner, features, experts, groups, residents, counts_RC, group, stamp, row)
        if not overrun:
            _evict(later, sooner, features, experts, groups, residents, counts_RC, group, cache.NONE_PROTECTED, row)
        cache.discount_unkept(features, experts, counts_RC, members_A[first:last], admissions, row)
    return misses_N
