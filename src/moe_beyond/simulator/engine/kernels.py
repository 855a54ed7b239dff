# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""The event-atomic loop, compiled.

Before an event, what the policy prefetches is admitted. Hits are judged on what is resident when the event starts;
misses are loaded for it. After it its experts are kept, and the policy's lowest ranks leave until the budget is kept
again: never the event's own experts while others can leave, unless the policy bypasses: then all compete.

Shape suffixes: N events, A accesses, M experts of the model, F features, S steps, G groups that share a budget,
R rows of counts, C counters, I places in a list.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types as t

from moe_beyond.simulator.engine.cache import (
    ABSENT,
    BUDGET,
    BYTES,
    GROUP,
    NOBODY_IS_SPARED,
    PLACE,
    PREFETCH_BYTES,
    PREFETCHES,
    PROTECTED,
    UNITS,
    USED,
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
    use,
)
from moe_beyond.simulator.engine.policy import NEXT_USE
from moe_beyond.simulator.jit import RANK, compiled

_RESULT: Any = t.Tuple((t.int64[:, ::1], t.int32[::1]))


@compiled()
def _prefetch(
    rank: Any,
    features: Features,
    experts: Experts,
    groups: Groups,
    residents: Residents,
    counts_RC: CountTable,
    wanted: npt.NDArray[np.int32],
    stamp: int,
    at: At,
) -> None:
    """Admit what is not resident yet; nothing of the list, which is of one layer, pushes out another of it."""
    missing = 0
    for expert in wanted:
        experts[PROTECTED, expert] = stamp
        if experts[PLACE, expert] == ABSENT:
            missing += experts[UNITS, expert]
    if missing == 0:
        return
    group = experts[GROUP, wanted[0]]
    budget = groups[BUDGET, group]
    make_room(rank, features, experts, groups, residents, counts_RC, group, budget - missing, stamp, at)
    for expert in wanted:
        if experts[PLACE, expert] == ABSENT and groups[USED, group] + experts[UNITS, expert] <= budget:
            admit(features, experts, groups, residents, expert, at[3])
            counts_RC[at[3], PREFETCHES] += 1
            counts_RC[at[3], PREFETCH_BYTES] += experts[BYTES, expert]


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
    layer_N: npt.NDArray[np.int32],
    row_N: npt.NDArray[np.int64],
    row_A: npt.NDArray[np.int64],
    empties_N: npt.NDArray[np.bool_],
    next_use_A: npt.NDArray[np.int64],
    scores_SM: npt.NDArray[np.float32],
    layer_M: npt.NDArray[np.int64],
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
        layer_N: Layer of each event.
        row_N: Row of the counts that each event adds to.
        row_A: Row that each access counts for, where several prompts share events; otherwise empty.
        empties_N: True where the cache and its memory are emptied before the event.
        next_use_A: Event of each accessed expert's next use; empty where the rank does not read it.
        scores_SM: The policy's scores: no row, one for all steps, or one a step; of M columns or 2 M.
        layer_M: Layer of each expert.
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
    misses_N = np.zeros(len(step_N), np.int32)
    features, experts, groups, residents, counts_RC = new_cache(layer_M, bytes_M, units_M, group_M, budget_G, num_rows)
    if len(scores_SM) == 1:
        set_scores(features, scores_SM[0])
    scored_step = -1
    for event in range(len(step_N)):
        step, layer, row = step_N[event], int(layer_N[event]), row_N[event]
        if empties_N[event]:
            count_useless(experts, counts_RC)
            forget(features, experts, groups)
        if len(scores_SM) > 1 and step != scored_step:
            set_scores(features, scores_SM[step])
            scored_step = step
        ahead = prefetch_experts[prefetch_offsets_N[event] : prefetch_offsets_N[event + 1]]
        # the layer's own residents are still to have their turn
        at = (offsets_N[event], step, layer - 1, row)
        _prefetch(rank, features, experts, groups, residents, counts_RC, ahead, 2 * event, at)
        # no place is given up before the event has ended, so every access is judged on what was there at its start
        stamp = 2 * event + 1
        for access in range(offsets_N[event], offsets_N[event + 1]):
            expert = members_A[access]
            if len(row_A):
                row = row_A[access]
            misses_N[event] += use(features, experts, groups, residents, counts_RC, expert, access, step, row)
            if len(next_use_A):
                features[NEXT_USE, expert] = next_use_A[access]
            if not bypass:
                experts[PROTECTED, expert] = stamp
        if offsets_N[event] == offsets_N[event + 1]:
            continue
        # an event lies in one layer, so its first expert names the group
        group = group_M[members_A[offsets_N[event]]]
        limit = budget_G[group]
        at = (offsets_N[event + 1], step, layer, row_N[event])
        make_room(rank, features, experts, groups, residents, counts_RC, group, limit, stamp, at)
        if not overrun:
            # where the event alone wants more than fits, its own lowest ranks leave too
            make_room(rank, features, experts, groups, residents, counts_RC, group, limit, NOBODY_IS_SPARED, at)
    count_useless(experts, counts_RC)
    return counts_RC, misses_N
