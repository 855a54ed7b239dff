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

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types as t

from moe_beyond.simulator.cache import (
    ABSENT,
    NEVER_PROTECTED,
    NOBODY_IS_SPARED,
    PREFETCH_BYTES,
    PREFETCHES,
    Cache,
    admit,
    count_useless,
    empty,
    make_room,
    new_cache,
    use,
)
from moe_beyond.simulator.jit import RANK, compiled
from moe_beyond.simulator.policies.base import NEXT_USE, SCORE

_NOTHING = -1
_WHILE_LOADING = 2**61


class Link(NamedTuple):
    """What is queued and what is under way; arrays of one element, because a compiled tuple cannot change."""

    head: npt.NDArray[np.int64]
    """Next of the prefetch list to start."""
    tail: npt.NDArray[np.int64]
    """End of what may be started now."""
    loading: npt.NDArray[np.int64]
    """Expert whose prefetch is under way, or _NOTHING."""
    protected_until: npt.NDArray[np.int64]
    """Its protection once it is there."""
    remaining_ms: npt.NDArray[np.float64]


@compiled()
def _finish(cache: Cache, link: Link) -> None:
    cache.protected_M[link.loading[0]] = link.protected_until[0]
    link.loading[0] = _NOTHING


@compiled()
def _drop(cache: Cache, link: Link) -> None:
    """Give up the prefetch under way, where it has lost its place."""
    if link.loading[0] != _NOTHING and cache.place_M[link.loading[0]] == ABSENT:
        cache.protected_M[link.loading[0]] = NEVER_PROTECTED
        link.loading[0] = _NOTHING


@compiled()
def _ask(cache: Cache, link: Link, experts: npt.NDArray[np.int32], event: int) -> None:
    """Queue the prefetches of a coming event, and spare what is there already until it has asked."""
    for expert in experts:
        if expert == link.loading[0]:
            link.protected_until[0] = max(link.protected_until[0], 2 * event)
        else:
            cache.protected_M[expert] = max(cache.protected_M[expert], 2 * event)
    link.tail[0] += len(experts)


@compiled()
def _work(
    rank: Any,
    cache: Cache,
    link: Link,
    prefetch_experts: npt.NDArray[np.int32],
    transfer_ms_M: npt.NDArray[np.float64],
    time_ms: float,
    event: int,
    now: int,
    step: int,
    layer: int,
    row: int,
) -> None:
    """Let the link prefetch for `time_ms`."""
    while time_ms > 0:
        if link.loading[0] == _NOTHING:
            if link.head[0] >= link.tail[0]:
                return
            expert = prefetch_experts[link.head[0]]
            link.head[0] += 1
            if cache.place_M[expert] != ABSENT:
                continue
            group = cache.group_M[expert]
            limit = cache.budget_G[group] - cache.units_M[expert]
            make_room(rank, cache, group, limit, 2 * event, now, step, layer, row)
            if cache.used_G[group] > limit:
                continue
            admit(cache, expert, row)
            cache.counts_RC[row, PREFETCHES] += 1
            cache.counts_RC[row, PREFETCH_BYTES] += cache.bytes_M[expert]
            link.loading[0] = expert
            link.protected_until[0] = cache.protected_M[expert]
            link.remaining_ms[0] = transfer_ms_M[expert]
            cache.protected_M[expert] = _WHILE_LOADING
        if link.remaining_ms[0] > time_ms:
            link.remaining_ms[0] -= time_ms
            return
        time_ms -= link.remaining_ms[0]
        _finish(cache, link)


@compiled()
def _wait_ms(
    cache: Cache, link: Link, members: npt.NDArray[np.int32], transfer_ms_M: npt.NDArray[np.float64]
) -> tuple[float, int]:
    """How long the event waits for its experts, and how many of them were prefetched too late to be there."""
    wait_ms, late = 0.0, 0
    for expert in members:
        if expert == link.loading[0]:
            wait_ms += link.remaining_ms[0]
            late += 1
            _finish(cache, link)
        elif cache.place_M[expert] == ABSENT:
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
        t.float64[::1],
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
    prior_M: npt.NDArray[np.float64],
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
    cache = new_cache(prior_M, layer_M, bytes_M, units_M, group_M, budget_G, num_rows)
    link = Link(
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
        np.full(1, _NOTHING),
        np.zeros(1, np.int64),
        np.zeros(1, np.float64),
    )
    time_N, stall_N, late_R = np.zeros(num_events), np.zeros(num_events), np.zeros(num_rows, np.int64)
    if len(scores_SM) == 1:
        cache.features_FM[SCORE] = scores_SM[0]
    asked = 0
    for event in range(num_events):
        step, layer, row = step_N[event], layer_N[event], row_N[event]
        start, end = offsets_N[event], offsets_N[event + 1]
        if empties_N[event]:
            empty(cache)
            _drop(cache, link)
        _work(rank, cache, link, prefetch_experts, transfer_ms_M, think_ms_N[event], event, start, step, layer, row)
        if event == 0 or step != step_N[event - 1]:
            if len(scores_SM) > 1:
                cache.features_FM[SCORE] = scores_SM[step]
            asked = event
            link.head[0] = link.tail[0] = prefetch_offsets_N[event]
        while asked <= event + lookahead and asked < num_events and step_N[asked] == step:
            _ask(cache, link, prefetch_experts[prefetch_offsets_N[asked] : prefetch_offsets_N[asked + 1]], asked)
            asked += 1
        _work(rank, cache, link, prefetch_experts, transfer_ms_M, dense_ms_N[event], event, start, step, layer, row)
        stall_N[event], late = _wait_ms(cache, link, members_A[start:end], transfer_ms_M)
        late_R[row] += late
        # what has not begun is too late: the event has loaded it itself
        link.head[0] = max(link.head[0], prefetch_offsets_N[event + 1])
        for access in range(start, end):
            expert = members_A[access]
            use(cache, expert, access, step, row)
            if len(next_use_A):
                cache.features_FM[NEXT_USE, expert] = next_use_A[access]
            if not bypass:
                cache.protected_M[expert] = max(cache.protected_M[expert], 2 * event + 1)
        group = group_M[members_A[start]]
        make_room(rank, cache, group, budget_G[group], 2 * event + 1, end, step, layer, row)
        make_room(rank, cache, group, budget_G[group], NOBODY_IS_SPARED, end, step, layer, row)
        _drop(cache, link)
        _work(rank, cache, link, prefetch_experts, transfer_ms_M, expert_ms_N[event], event, end, step, layer, row)
        time_N[event] = think_ms_N[event] + dense_ms_N[event] + stall_N[event] + expert_ms_N[event]
    count_useless(cache)
    return cache.counts_RC, time_N, stall_N, late_R
