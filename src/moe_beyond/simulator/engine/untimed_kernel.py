# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""The event-atomic loop, compiled.

Before an event, what the policy prefetches is admitted. Hits are judged on what is resident when the event starts;
misses are loaded for it. After it its experts are kept, and the policy's lowest ranks are evicted until the budget is
kept again: never the event's own experts while there are others, unless the policy bypasses: then all compete.

Shape suffixes: N events, A accesses, M experts of the model, F features, S steps, G groups that share a budget,
R rows of counts, C counters, I places in a list, T tokens, L MoE layers, E experts in a layer, H layers ahead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types as t

from moe_beyond.simulator.engine import cache
from moe_beyond.simulator.engine.policy import NEXT_USE
from moe_beyond.simulator.jit import F32, F64, I32, I64, RANK, Bools, compiled

# types of arguments
_I4, _I8, _FLAGS = t.int32[::1], t.int64[::1], t.boolean[::1]
COMMON: Any = (_I4, _I8, _I4, _I4, _I8, _I8, _FLAGS, _I8, t.float32[:, ::1], t.float32[:, :, :, ::1], _I8, _I8)
"""Those from `members_A` to `layer_M`, which both loops take."""
_TABLES: Any = (t.float64[:, ::1], t.int64[:, ::1], t.int64[:, ::1], t.int32[:, ::1], t.int64[:, ::1])
_RANK = t.FunctionType(RANK)


@compiled(borrows=True)
def _prefetch(
    rank: Any,
    features: F64,
    experts: I64,
    groups: I64,
    residents: I32,
    counts_RC: I64,
    prefetched: I32,
    stamp: int,
    at: cache.At,
) -> None:
    """Admit what is not resident yet; no expert of the list, which is of one layer, evicts another of it."""
    missing = 0
    for expert in prefetched:
        experts[cache.PROTECTED, expert] = stamp
        if experts[cache.PLACE, expert] == cache.ABSENT:
            missing += experts[cache.UNITS, expert]
    if missing == 0:
        return
    group = experts[cache.GROUP, prefetched[0]]
    budget = groups[cache.BUDGET, group]
    cache.make_space(rank, features, experts, groups, residents, counts_RC, group, budget - missing, stamp, at)
    for expert in prefetched:
        if (
            experts[cache.PLACE, expert] == cache.ABSENT
            and groups[cache.USED, group] + experts[cache.UNITS, expert] <= budget
        ):
            cache.admit(features, experts, groups, residents, expert, at[3])
            counts_RC[at[3], cache.PREFETCHES] += 1
            counts_RC[at[3], cache.PREFETCH_BYTES] += experts[cache.BYTES, expert]


@compiled(_I4(_RANK, t.boolean, t.boolean, *COMMON, _I8, _I4, *_TABLES, t.int64, t.int64))
def replay(
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
    prefetch_offsets_N: I64,
    prefetch_experts: I32,
    features: F64,
    experts: I64,
    groups: I64,
    residents: I32,
    counts_RC: I64,
    events_before: int,
    accesses_before: int,
) -> I32:
    """Replay events through one cache, whose tables say afterwards what it holds: further events may follow.

    Args:
        rank: The policy's rank function.
        bypass: Whether the event's own experts compete with the residents after it.
        overrun: Whether an event that alone uses more than its budget keeps it all until its group's next event.
        members_A: Accessed experts, distinct within an event.
        offsets_N: Where each event's accesses begin and end.
        step_N: Step of each event.
        layer_N: Layer of each event.
        row_N: Row of the counts that each event adds to.
        row_A: Row that each access counts for, where several prompts share events; otherwise empty.
        empties_N: True where the cache and its memory are emptied before the event.
        next_use_A: Event of each accessed expert's next use; empty where the rank does not read it.
        scores_SM: The policy's scores: no row, one for all steps, or one a step; of M columns or 2 M.
        ahead_HTLE: What takes the place of scores of the next H layers when a router has chosen; H may be 0.
        token_S: Its row of each step; negative for steps that have none.
        layer_M: Layer of each expert.
        prefetch_offsets_N: Where the experts to fetch before each event begin and end.
        prefetch_experts: Experts to fetch, in order of priority.
        features: As `cache.new_cache` makes it, or as events before these left it; so the next four.
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
    if len(scores_SM) == 1:
        cache.set_scores(features, scores_SM[0])
    scored_step = -1
    for event in range(len(step_N)):
        step, layer, row = step_N[event], int(layer_N[event]), row_N[event]
        if empties_N[event]:
            cache.count_useless(experts, counts_RC)
            cache.forget(features, experts, groups)
        if len(scores_SM) > 1 and step != scored_step:
            cache.set_scores(features, scores_SM[step])
            scored_step = step
        ahead = prefetch_experts[prefetch_offsets_N[event] : prefetch_offsets_N[event + 1]]
        # the layer has not run yet, so its own residents are needed at once
        at = (accesses_before + offsets_N[event], step, layer - 1, row)
        _prefetch(rank, features, experts, groups, residents, counts_RC, ahead, 2 * (events_before + event), at)
        # nothing is evicted before the event has ended, so every access is judged on what was there at its start
        stamp, admissions = 2 * (events_before + event) + 1, groups[cache.ADMISSIONS, 0]
        for access in range(offsets_N[event], offsets_N[event + 1]):
            expert = members_A[access]
            if len(row_A):
                row = row_A[access]
            now = accesses_before + access
            misses_N[event] += cache.use(features, experts, groups, residents, counts_RC, expert, now, step, row)
            if len(next_use_A):
                features[NEXT_USE, expert] = next_use_A[access]
            if not bypass:
                experts[cache.PROTECTED, expert] = stamp
        if offsets_N[event] == offsets_N[event + 1]:
            continue
        # an event lies in one layer, so its first expert names the group
        group = experts[cache.GROUP, members_A[offsets_N[event]]]
        limit = groups[cache.BUDGET, group]
        at = (accesses_before + offsets_N[event + 1], step, layer, row_N[event])
        cache.make_space(rank, features, experts, groups, residents, counts_RC, group, limit, stamp, at)
        if not overrun:
            # where the event alone uses more than fits, its own lowest ranks are evicted too
            cache.make_space(
                rank, features, experts, groups, residents, counts_RC, group, limit, cache.NONE_PROTECTED, at
            )
        members = members_A[offsets_N[event] : offsets_N[event + 1]]
        cache.discount_unkept(features, experts, counts_RC, members, admissions, at[3])
        if len(ahead_HTLE) and token_S[step] >= 0:
            cache.set_scores_ahead(features, ahead_HTLE, token_S[step], layer)
    return misses_N
