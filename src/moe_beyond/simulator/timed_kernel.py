# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""The event loop with a clock: one link, shared by prefetch and demand, beside a processor.

A layer first computes what needs no routed expert (attention, shared experts, the router); then its experts are
known. What is missing is loaded on demand, ahead of any prefetch: one under way is paused, and goes on afterwards. When
all are there, the experts compute. While the processor works the link prefetches, in the policy's order, what the
policy wants for this layer and the next `lookahead` ones of the same step. A prefetch that has not begun when its layer
asks is dropped; one under way is waited for.

Shape suffixes as in `kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types as t

from moe_beyond.simulator.cache import (
    ABSENT,
    BUDGET,
    BYTES,
    GROUP,
    NEVER_PROTECTED,
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
from moe_beyond.simulator.jit import RANK, compiled
from moe_beyond.simulator.policies.base import NEXT_USE

_NOTHING = -1
_WHILE_LOADING = 2**61


# places of the link's state
HEAD, TAIL, LOADING, UNTIL = range(4)
"""HEAD: next of the prefetch list to start. TAIL: end of what may be started now. LOADING: expert whose prefetch is
under way, or _NOTHING. UNTIL: its protection once it is there."""


@compiled()
def _finish(experts: Experts, link: npt.NDArray[np.int64]) -> None:
    experts[PROTECTED, link[LOADING]] = link[UNTIL]
    link[LOADING] = _NOTHING


@compiled()
def _drop(experts: Experts, link: npt.NDArray[np.int64]) -> None:
    """Give up the prefetch under way, where it has lost its place."""
    if link[LOADING] != _NOTHING and experts[PLACE, link[LOADING]] == ABSENT:
        experts[PROTECTED, link[LOADING]] = NEVER_PROTECTED
        link[LOADING] = _NOTHING


@compiled()
def _ask(experts: Experts, link: npt.NDArray[np.int64], wanted: npt.NDArray[np.int32], event: int) -> None:
    """Queue the prefetches of a coming event, and spare what is there already until it has asked."""
    for expert in wanted:
        if expert == link[LOADING]:
            link[UNTIL] = max(link[UNTIL], 2 * event)
        else:
            experts[PROTECTED, expert] = max(experts[PROTECTED, expert], 2 * event)
    link[TAIL] += len(wanted)


@compiled()
def _work(
    rank: Any,
    features: Features,
    experts: Experts,
    groups: Groups,
    residents: Residents,
    counts_RC: CountTable,
    link: npt.NDArray[np.int64],
    remaining_ms: float,
    queue: npt.NDArray[np.int32],
    transfer_ms_M: npt.NDArray[np.float64],
    time_ms: float,
    event: int,
    at: At,
) -> float:
    """Let the link prefetch for `time_ms`; returns what remains of the prefetch under way."""
    while time_ms > 0:
        if link[LOADING] == _NOTHING:
            if link[HEAD] >= link[TAIL]:
                return remaining_ms
            expert = queue[link[HEAD]]
            link[HEAD] += 1
            if experts[PLACE, expert] != ABSENT:
                continue
            group = experts[GROUP, expert]
            limit = groups[BUDGET, group] - experts[UNITS, expert]
            stamp = 2 * event
            make_room(rank, features, experts, groups, residents, counts_RC, group, limit, stamp, at)
            if groups[USED, group] > limit:
                continue
            admit(features, experts, groups, residents, expert, at[3])
            counts_RC[at[3], PREFETCHES] += 1
            counts_RC[at[3], PREFETCH_BYTES] += experts[BYTES, expert]
            link[LOADING] = expert
            link[UNTIL] = experts[PROTECTED, expert]
            remaining_ms = transfer_ms_M[expert]
            experts[PROTECTED, expert] = _WHILE_LOADING
        if remaining_ms > time_ms:
            return remaining_ms - time_ms
        time_ms -= remaining_ms
        _finish(experts, link)
    return remaining_ms


@compiled()
def _wait_ms(
    experts: Experts,
    link: npt.NDArray[np.int64],
    remaining_ms: float,
    members: npt.NDArray[np.int32],
    transfer_ms_M: npt.NDArray[np.float64],
) -> tuple[float, int]:
    """How long the event waits for its experts, and how many of them were prefetched too late to be there."""
    wait_ms, late = 0.0, 0
    for expert in members:
        if expert == link[LOADING]:
            wait_ms += remaining_ms
            late += 1
            _finish(experts, link)
        elif experts[PLACE, expert] == ABSENT:
            wait_ms += transfer_ms_M[expert]
    return wait_ms, late


_RESULT: Any = t.Tuple((t.int64[:, ::1], t.float64[::1], t.float64[::1], t.int64[::1]))


@compiled(
    _RESULT(
        t.FunctionType(RANK),
        t.boolean,
        t.int32[::1],
        t.int64[::1],
        t.int32[::1],
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
        t.int64[::1],
        t.int64,
        t.float64[::1],
        t.float64[::1],
        t.float64[::1],
        t.float64[::1],
        t.int64,
    )
)
def timed_replay(  # noqa: D417 - the first arguments are documented there
    rank: Any,
    bypass: bool,
    members_A: npt.NDArray[np.int32],
    offsets_N: npt.NDArray[np.int64],
    step_N: npt.NDArray[np.int32],
    layer_N: npt.NDArray[np.int32],
    row_N: npt.NDArray[np.int64],
    empties_N: npt.NDArray[np.bool_],
    next_use_A: npt.NDArray[np.int64],
    scores_SM: npt.NDArray[np.float32],
    prefetch_offsets_N: npt.NDArray[np.int64],
    prefetch_experts: npt.NDArray[np.int32],
    layer_M: npt.NDArray[np.int64],
    bytes_M: npt.NDArray[np.int64],
    units_M: npt.NDArray[np.int64],
    group_M: npt.NDArray[np.int64],
    budget_G: npt.NDArray[np.int64],
    num_rows: int,
    transfer_ms_M: npt.NDArray[np.float64],
    think_ms_N: npt.NDArray[np.float64],
    dense_ms_N: npt.NDArray[np.float64],
    expert_ms_N: npt.NDArray[np.float64],
    lookahead: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Replay all events with a clock; the first arguments are those of `kernels.replay`.

    Args:
        transfer_ms_M: Milliseconds that the link needs for each expert.
        think_ms_N: Time before an event in which the predictor works and nothing new can be prefetched.
        dense_ms_N: Time of the event's layer before its experts are known.
        expert_ms_N: Time of its experts once they are there.
        lookahead: For how many layers beyond the present one prefetches may start.

    Returns:
        Counts int64 [R, C], time and stall of each event in milliseconds, float64 [N], late prefetches int64 [R].
    """
    num_events = len(step_N)
    features, experts, groups, residents, counts_RC = new_cache(layer_M, bytes_M, units_M, group_M, budget_G, num_rows)
    link = np.array([0, 0, _NOTHING, 0])
    remaining_ms = 0.0
    time_N, stall_N, late_R = np.zeros(num_events), np.zeros(num_events), np.zeros(num_rows, np.int64)
    if len(scores_SM) == 1:
        set_scores(features, scores_SM[0])
    queue = prefetch_experts
    asked = 0
    for event in range(num_events):
        step, layer, row = step_N[event], layer_N[event], row_N[event]
        start, end = offsets_N[event], offsets_N[event + 1]
        at = (start, step, layer, row)
        if empties_N[event]:
            count_useless(experts, counts_RC)
            forget(features, experts, groups)
            _drop(experts, link)
        # the predictor works: what it will say cannot be asked for yet
        remaining_ms = _work(
            rank,
            features,
            experts,
            groups,
            residents,
            counts_RC,
            link,
            remaining_ms,
            queue,
            transfer_ms_M,
            think_ms_N[event],
            event,
            at,
        )
        if event == 0 or step != step_N[event - 1]:
            if len(scores_SM) > 1:
                set_scores(features, scores_SM[step])
            asked = event
            link[HEAD] = link[TAIL] = prefetch_offsets_N[event]
        while asked <= event + lookahead and asked < num_events and step_N[asked] == step:
            wanted = queue[prefetch_offsets_N[asked] : prefetch_offsets_N[asked + 1]]
            _ask(experts, link, wanted, asked)
            asked += 1
        remaining_ms = _work(
            rank,
            features,
            experts,
            groups,
            residents,
            counts_RC,
            link,
            remaining_ms,
            queue,
            transfer_ms_M,
            dense_ms_N[event],
            event,
            at,
        )
        stall_N[event], late = _wait_ms(experts, link, remaining_ms, members_A[start:end], transfer_ms_M)
        late_R[row] += late
        # what has not begun is too late: the event has loaded it itself
        link[HEAD] = max(link[HEAD], prefetch_offsets_N[event + 1])
        for access in range(start, end):
            expert = members_A[access]
            use(features, experts, groups, residents, counts_RC, expert, access, step, row)
            if len(next_use_A):
                features[NEXT_USE, expert] = next_use_A[access]
            if not bypass:
                experts[PROTECTED, expert] = max(experts[PROTECTED, expert], 2 * event + 1)
        group = group_M[members_A[start]]
        limit = budget_G[group]
        at = (end, step, layer, row)
        make_room(rank, features, experts, groups, residents, counts_RC, group, limit, 2 * event + 1, at)
        make_room(rank, features, experts, groups, residents, counts_RC, group, limit, NOBODY_IS_SPARED, at)
        _drop(experts, link)
        remaining_ms = _work(
            rank,
            features,
            experts,
            groups,
            residents,
            counts_RC,
            link,
            remaining_ms,
            queue,
            transfer_ms_M,
            expert_ms_N[event],
            event,
            at,
        )
        time_N[event] = think_ms_N[event] + dense_ms_N[event] + stall_N[event] + expert_ms_N[event]
    count_useless(experts, counts_RC)
    return counts_RC, time_N, stall_N, late_R
