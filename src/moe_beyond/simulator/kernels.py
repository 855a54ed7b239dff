# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""The event-atomic loop, compiled.

Before an event, what the policy prefetches is admitted. Hits are judged on what is resident when the event starts;
misses are loaded for it. After it its experts are kept, and the policy's lowest ranks leave until the budget is kept
again: never the event's own experts while others can leave, unless the policy bypasses: then all compete.

Shape suffixes: N events, A accesses, M experts of the model, F features, S steps, G groups that share a budget,
R rows of counts, C counters, I places in a list.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types as t

from moe_beyond.simulator.jit import RANK, compiled
from moe_beyond.simulator.policies.base import (
    ADMITTED,
    LAST_STEP,
    LAST_USE,
    NEXT_USE,
    NUM_FEATURES,
    SCORE,
    USES,
    USES_RESIDENT,
)

# columns of the counts; every value is an integer
ACCESSES, HITS, COMPULSORY, EVICTIONS, PREFETCHES, USEFUL, USELESS, DEMAND_BYTES, PREFETCH_BYTES = range(9)
NUM_COUNTERS = 9

_RESULT: Any = t.Tuple((t.int64[:, ::1], t.int32[::1]))

_ABSENT = -1
_DEMANDED = -1
# stamps count half events: 2n while event n's prefetches are admitted, 2n + 1 while its own experts are
NEVER_PROTECTED = -1
NOBODY_IS_SPARED = 2**62


class Cache(NamedTuple):
    """Residency and what is remembered of every expert."""

    features_FM: npt.NDArray[np.float64]
    place_M: npt.NDArray[np.int64]
    """Place in its group's list of residents, or _ABSENT."""
    prefetch_row_M: npt.NDArray[np.int64]
    """Row of counts of the prefetch that brought it and that nothing has used yet, or _DEMANDED."""
    protected_M: npt.NDArray[np.int64]
    """It may not leave at stamps up to this one."""
    residents_GI: npt.NDArray[np.int32]
    count_G: npt.NDArray[np.int64]
    used_G: npt.NDArray[np.int64]
    ranks_I: npt.NDArray[np.float64]
    """Scratch: ranks of the residents that `_make_room` looks at."""
    bytes_M: npt.NDArray[np.int64]
    units_M: npt.NDArray[np.int64]
    group_M: npt.NDArray[np.int64]
    budget_G: npt.NDArray[np.int64]
    counts_RC: npt.NDArray[np.int64]
    admissions_1: npt.NDArray[np.int64]
    """Admissions so far."""


@compiled()
def _admit(cache: Cache, expert: int, prefetch_row: int) -> None:
    group = cache.group_M[expert]
    place = cache.count_G[group]
    cache.residents_GI[group, place] = expert
    cache.place_M[expert] = place
    cache.count_G[group] = place + 1
    cache.used_G[group] += cache.units_M[expert]
    cache.prefetch_row_M[expert] = prefetch_row
    cache.admissions_1[0] += 1
    cache.features_FM[ADMITTED, expert] = cache.admissions_1[0]
    cache.features_FM[USES_RESIDENT, expert] = 0


@compiled()
def _remove(cache: Cache, group: int, place: int, row: int) -> None:
    expert = cache.residents_GI[group, place]
    last = cache.count_G[group] - 1
    moved = cache.residents_GI[group, last]
    cache.residents_GI[group, place] = moved
    cache.ranks_I[place] = cache.ranks_I[last]
    cache.place_M[moved] = place
    cache.place_M[expert] = _ABSENT
    cache.count_G[group] = last
    cache.used_G[group] -= cache.units_M[expert]
    cache.counts_RC[row, EVICTIONS] += 1
    if cache.prefetch_row_M[expert] != _DEMANDED:
        cache.counts_RC[cache.prefetch_row_M[expert], USELESS] += 1
        cache.prefetch_row_M[expert] = _DEMANDED


@compiled()
def _make_room(rank: Any, cache: Cache, group: int, limit: int, stamp: int, now: int, step: int, row: int) -> None:
    """Let the lowest ranks leave until the group uses at most `limit`, or only protected ones are left."""
    if cache.used_G[group] <= limit:
        return
    features_FM, residents, ranks = cache.features_FM, cache.residents_GI[group], cache.ranks_I
    for place in range(cache.count_G[group]):
        expert = residents[place]
        protected = cache.protected_M[expert] >= stamp
        ranks[place] = np.inf if protected else rank(features_FM, expert, now, step)
    while cache.used_G[group] > limit:
        best = -1
        lowest = np.inf
        for place in range(cache.count_G[group]):
            if ranks[place] < lowest:
                best, lowest = place, ranks[place]
            elif ranks[place] == lowest and best >= 0:
                a, b = residents[place], residents[best]
                # only experts that nothing has used yet share a last use
                if (features_FM[LAST_USE, a], a) < (features_FM[LAST_USE, b], b):
                    best = place
        if best < 0:
            return
        _remove(cache, group, best, row)


@compiled()
def _count_useless(cache: Cache) -> None:
    for expert in range(len(cache.place_M)):
        if cache.prefetch_row_M[expert] != _DEMANDED:
            cache.counts_RC[cache.prefetch_row_M[expert], USELESS] += 1


@compiled()
def _empty(cache: Cache) -> None:
    """Forget everything."""
    _count_useless(cache)
    cache.place_M[:] = _ABSENT
    cache.prefetch_row_M[:] = _DEMANDED
    cache.count_G[:] = 0
    cache.used_G[:] = 0
    cache.features_FM[LAST_USE] = -1
    cache.features_FM[LAST_STEP] = -1
    cache.features_FM[USES] = 0


@compiled()
def _prefetch(
    rank: Any, cache: Cache, experts: npt.NDArray[np.int32], stamp: int, now: int, step: int, row: int
) -> None:
    """Admit what is not resident yet; nothing of the list pushes out another of it."""
    for expert in experts:
        cache.protected_M[expert] = stamp
    for expert in experts:
        if cache.place_M[expert] != _ABSENT:
            continue
        group = cache.group_M[expert]
        limit = cache.budget_G[group] - cache.units_M[expert]
        _make_room(rank, cache, group, limit, stamp, now, step, row)
        if cache.used_G[group] <= limit:
            _admit(cache, expert, row)
            cache.counts_RC[row, PREFETCHES] += 1
            cache.counts_RC[row, PREFETCH_BYTES] += cache.bytes_M[expert]


@compiled()
def _use(cache: Cache, expert: int, now: int, step: int, row: int) -> bool:
    """Count one access; admit the expert where it was missed. Returns whether it was."""
    counts_C = cache.counts_RC[row]
    features_FM = cache.features_FM
    missed = cache.place_M[expert] == _ABSENT
    counts_C[ACCESSES] += 1
    if missed:
        counts_C[DEMAND_BYTES] += cache.bytes_M[expert]
        counts_C[COMPULSORY] += features_FM[USES, expert] == 0
        _admit(cache, expert, _DEMANDED)
    else:
        counts_C[HITS] += 1
        if cache.prefetch_row_M[expert] != _DEMANDED:
            cache.counts_RC[cache.prefetch_row_M[expert], USEFUL] += 1
            cache.prefetch_row_M[expert] = _DEMANDED
    features_FM[LAST_USE, expert] = now
    features_FM[LAST_STEP, expert] = step
    features_FM[USES, expert] += 1
    features_FM[USES_RESIDENT, expert] += 1
    return bool(missed)


@compiled(
    _RESULT(
        t.FunctionType(RANK),
        t.boolean,
        t.boolean,
        t.int32[::1],
        t.int64[::1],
        t.int32[::1],
        t.int64[::1],
        t.boolean[::1],
        t.int64[::1],
        t.float32[:, ::1],
        t.int64[::1],
        t.int32[::1],
        t.int64[::1],
        t.int64[::1],
        t.int64[::1],
        t.int64[::1],
        t.int64,
    )
)
def replay(
    rank: Any,
    bypass: bool,
    overrun: bool,
    members_A: npt.NDArray[np.int32],
    offsets_N: npt.NDArray[np.int64],
    step_N: npt.NDArray[np.int32],
    row_N: npt.NDArray[np.int64],
    empties_N: npt.NDArray[np.bool_],
    next_use_A: npt.NDArray[np.int64],
    scores_SM: npt.NDArray[np.float32],
    prefetch_offsets_N: npt.NDArray[np.int64],
    prefetch_experts: npt.NDArray[np.int32],
    bytes_M: npt.NDArray[np.int64],
    units_M: npt.NDArray[np.int64],
    group_M: npt.NDArray[np.int64],
    budget_G: npt.NDArray[np.int64],
    num_rows: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Replay all events through one cache.

    Args:
        rank: The policy's rank function.
        bypass: Whether the event's own experts compete with the residents after it.
        overrun: Whether an event that alone wants more than its budget keeps it all until its group's next event.
        members_A: Accessed experts, distinct within an event.
        offsets_N: Where each event's accesses begin and end.
        step_N: Step of each event.
        row_N: Row of the counts that each event adds to.
        empties_N: True where the cache and its memory are emptied before the event.
        next_use_A: Event of each accessed expert's next use; empty where the rank does not read it.
        scores_SM: The policy's scores: no row, one for all steps, or one a step.
        prefetch_offsets_N: Where the experts to fetch before each event begin and end.
        prefetch_experts: Experts to fetch, most wanted first.
        bytes_M: Bytes of each expert.
        units_M: What each expert takes of its budget: 1 where it counts slots, its bytes where it counts bytes.
        group_M: The group whose budget each expert uses.
        budget_G: Units of each group.
        num_rows: Number of rows of counts.

    Returns:
        Counts int64 [R, C], and the misses of each event, int32 [N].
    """
    num_groups, num_experts = len(budget_G), len(group_M)
    misses_N = np.zeros(len(step_N), np.int32)
    cache = Cache(
        features_FM=np.zeros((NUM_FEATURES, num_experts)),
        place_M=np.full(num_experts, _ABSENT),
        prefetch_row_M=np.full(num_experts, _DEMANDED),
        protected_M=np.full(num_experts, NEVER_PROTECTED),
        residents_GI=np.zeros((num_groups, num_experts), np.int32),
        count_G=np.zeros(num_groups, np.int64),
        used_G=np.zeros(num_groups, np.int64),
        ranks_I=np.zeros(num_experts),
        bytes_M=bytes_M,
        units_M=units_M,
        group_M=group_M,
        budget_G=budget_G,
        counts_RC=np.zeros((num_rows, NUM_COUNTERS), np.int64),
        admissions_1=np.zeros(1, np.int64),
    )
    _empty(cache)
    if len(scores_SM) == 1:
        cache.features_FM[SCORE] = scores_SM[0]
    scored_step = -1
    for event in range(len(step_N)):
        step, row = step_N[event], row_N[event]
        if empties_N[event]:
            _empty(cache)
        if len(scores_SM) > 1 and step != scored_step:
            cache.features_FM[SCORE] = scores_SM[step]
            scored_step = step
        ahead = prefetch_experts[prefetch_offsets_N[event] : prefetch_offsets_N[event + 1]]
        _prefetch(rank, cache, ahead, 2 * event, offsets_N[event], step, row)
        # no place is given up before the event has ended, so every access is judged on what was there at its start
        stamp = 2 * event + 1
        for access in range(offsets_N[event], offsets_N[event + 1]):
            expert = members_A[access]
            misses_N[event] += _use(cache, expert, access, step, row)
            if len(next_use_A):
                cache.features_FM[NEXT_USE, expert] = next_use_A[access]
            if not bypass:
                cache.protected_M[expert] = stamp
        # an event lies in one layer, so its first expert names the group
        group = group_M[members_A[offsets_N[event]]]
        now = offsets_N[event + 1]
        _make_room(rank, cache, group, budget_G[group], stamp, now, step, row)
        if not overrun:
            # where the event alone wants more than fits, its own lowest ranks leave too
            _make_room(rank, cache, group, budget_G[group], NOBODY_IS_SPARED, now, step, row)
    _count_useless(cache)
    return cache.counts_RC, misses_N
