"""Adaptive replacement within each layer, as a rank (ARC: Megiddo and Modha, FAST 2003).

ARC keeps experts seen once apart from those seen again, remembers recent evictions of both as ghosts, and moves the
border between them towards the side whose ghosts are used again. A rank function is called whenever there must be an
eviction, so that is when it updates its lists by what was admitted and evicted; they are kept in the two score rows,
which nothing else writes. For one expert an event it is ARC exactly; of an event with several, all arrive together.

Shape suffixes: F features, M experts of the model, E routed experts in a layer.
"""

from __future__ import annotations

import numpy as np

from moe_beyond.simulator.engine.policy import (
    LAST_STEP,
    LAST_USE,
    LAYER,
    RANKS,
    SCORE,
    SECOND_SCORE,
    USES,
    USES_RESIDENT,
)
from moe_beyond.simulator.jit import F64, I32, RANK, Bools, compiled

# SCORE holds an expert's list; at a layer's first two experts also, in multiples of _FIELD, the border (how many seen
# once may stay, in parts) and how many fit. SECOND_SCORE holds the last use as of the latest call, by which ghosts age.
_UNKNOWN, _ONCE, _AGAIN, _GHOST_ONCE, _GHOST_AGAIN = 0.0, 1.0, 2.0, 3.0, 4.0
_FIELD = 8.0
PARTS = 1024.0
"""The border moves in parts of this size of an expert."""
# of two ranks in different lists the list decides; accesses stay below 2 ** 52
_LIST = 4503599627370496.0


@compiled()
def _list_of(features_FM: F64, expert: int) -> float:
    # much faster than a remainder
    return float(features_FM[SCORE, expert] - _FIELD * np.floor(features_FM[SCORE, expert] / _FIELD))


@compiled()
def _move(features_FM: F64, expert: int, to: float) -> None:
    features_FM[SCORE, expert] += to - _list_of(features_FM, expert)


@compiled()
def _remembered(features_FM: F64, expert: int) -> float:
    return float(np.floor(features_FM[SCORE, expert] / _FIELD))


@compiled()
def _remember(features_FM: F64, expert: int, value: float) -> None:
    features_FM[SCORE, expert] = value * _FIELD + _list_of(features_FM, expert)


@compiled()
def _count(features_FM: F64, base: int, num_experts: int, which: float) -> int:
    count = 0
    for expert in range(base, base + num_experts):
        count += _list_of(features_FM, expert) == which
    return count


@compiled()
def _note_evictions(features_FM: F64, is_resident_E: Bools, base: int) -> None:
    """Make ghosts of what was evicted, also of what has been loaded again since."""
    for e in range(len(is_resident_E)):
        expert = base + e
        which = _list_of(features_FM, expert)
        left = not is_resident_E[e]
        if is_resident_E[e] and features_FM[USES_RESIDENT, expert] == 1:
            left = features_FM[LAST_USE, expert] > features_FM[SECOND_SCORE, expert]
        stayed_since_start = features_FM[USES, expert] == features_FM[USES_RESIDENT, expert]
        if left and (features_FM[USES, expert] == 0 or (is_resident_E[e] and stayed_since_start)):
            # nothing is known of it: never used before, or the cache has been emptied
            _move(features_FM, expert, _UNKNOWN)
        elif left and which == _ONCE:
            _move(features_FM, expert, _GHOST_ONCE)
        elif left and which == _AGAIN:
            _move(features_FM, expert, _GHOST_AGAIN)


@compiled()
def _forget_ghosts(features_FM: F64, base: int, num_experts: int, which: float, most: int) -> int:
    """Of a kind of ghosts remember the latest `most`; returns how many there are."""
    count = _count(features_FM, base, num_experts, which)
    while count > max(most, 0):
        oldest = -1
        for expert in range(base, base + num_experts):
            if _list_of(features_FM, expert) == which and (
                oldest < 0 or features_FM[SECOND_SCORE, expert] < features_FM[SECOND_SCORE, oldest]
            ):
                oldest = expert
        _move(features_FM, oldest, _UNKNOWN)
        count -= 1
    return count


@compiled()
def _note_arrivals(features_FM: F64, residents: I32, base: int, capacity: int, ghosts: int) -> bool:
    """Put arrivals into the lists and move the border; returns whether a ghost of those seen again was among them.

    `ghosts` are those of experts seen once.
    """
    num_experts = features_FM.shape[1] // int(features_FM[LAYER, features_FM.shape[1] - 1] + 1)
    ghosts_again = _count(features_FM, base, num_experts, _GHOST_AGAIN)
    border, seen_again = _remembered(features_FM, base), False
    for expert in residents:
        which = _list_of(features_FM, expert)
        if features_FM[USES_RESIDENT, expert] > 0:
            if which == _GHOST_ONCE:
                border = min(capacity * PARTS, border + np.round(PARTS * max(1.0, ghosts_again / ghosts)))
                _move(features_FM, expert, _AGAIN)
            elif which == _GHOST_AGAIN:
                border = max(0.0, border - np.round(PARTS * max(1.0, ghosts / ghosts_again)))
                _move(features_FM, expert, _AGAIN)
                seen_again = True
            else:
                used_again = which == _AGAIN or features_FM[USES_RESIDENT, expert] > 1
                _move(features_FM, expert, _AGAIN if used_again else _ONCE)
        features_FM[SECOND_SCORE, expert] = features_FM[LAST_USE, expert]
    _remember(features_FM, base, border)
    return seen_again


@compiled(RANK)
def adaptive_replacement(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
    """Rank of ARC: the list that is over its side of the border is evicted first, in it the least recently used.

    The residents must be of one layer. For all evictions of one event the border is the same. What was prefetched and
    not used yet counts as seen once.
    """
    num_experts = features_FM.shape[1] // int(features_FM[LAYER, features_FM.shape[1] - 1] + 1)
    base = residents[0] // num_experts * num_experts
    is_resident_E = np.zeros(num_experts, np.bool_)
    for expert in residents:
        is_resident_E[expert - base] = True
    _note_evictions(features_FM, is_resident_E, base)
    arrived, once = 0, 0
    for expert in residents:
        which = _list_of(features_FM, expert)
        # the lists are still those of the latest call: an expert used again since counts as seen once
        once += which == _ONCE
        arrived += features_FM[USES_RESIDENT, expert] > 0 and which != _ONCE and which != _AGAIN  # noqa: PLR1714 - compiled
    capacity = int(max(_remembered(features_FM, base + 1), len(residents) - arrived))
    _remember(features_FM, base + 1, capacity)
    ghosts = _forget_ghosts(features_FM, base, num_experts, _GHOST_ONCE, capacity - once)
    _forget_ghosts(features_FM, base, num_experts, _GHOST_AGAIN, capacity - ghosts)
    seen_again = _note_arrivals(features_FM, residents, base, capacity, ghosts)
    once = 0
    for expert in residents:
        once += features_FM[LAST_STEP, expert] != step and _list_of(features_FM, expert) != _AGAIN
    border = _remembered(features_FM, base) / PARTS
    evict_once = once > 0 and (once > border or (seen_again and once == border))
    for place, expert in enumerate(residents):
        leaves = (_list_of(features_FM, expert) != _AGAIN) == evict_once
        features_FM[RANKS, place] = features_FM[LAST_USE, expert] + (0.0 if leaves else _LIST)
