"""Adaptive replacement within each layer, as a rank (ARC: Megiddo and Modha, FAST 2003).

ARC keeps those seen once apart from those seen again, remembers whom it let go of either, and moves the border between
them towards the side whose ghosts are asked for. A rank function is called whenever somebody must leave, so that is
when it catches up with what has come and gone; its lists live in the two score rows, which nobody else writes.

Shape suffixes: F features, M experts of the model, E routed experts in a layer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.jit import RANK, compiled
from moe_beyond.simulator.policies.base import LAST_USE, LAYER, RANKS, SCORE, SECOND_SCORE, USES, USES_RESIDENT

# what the row SCORE says of an expert
_UNKNOWN, _ONCE, _AGAIN, _GHOST_ONCE, _GHOST_AGAIN = 0.0, 1.0, 2.0, 3.0, 4.0
# of two ranks in different lists the list decides; accesses stay below 2 ** 52
_LIST = 4503599627370496.0


@compiled()
def _catch_up(features_FM: npt.NDArray[np.float64], is_resident_E: npt.NDArray[np.bool_], base: int) -> float:
    """Bring a layer's lists up to date with who is resident; returns the border: how many seen once may stay."""
    ghosts_once, ghosts_again, capacity = 0, 0, 0
    for e in range(len(is_resident_E)):
        ghosts_once += features_FM[SCORE, base + e] == _GHOST_ONCE
        ghosts_again += features_FM[SCORE, base + e] == _GHOST_AGAIN
        capacity += is_resident_E[e]
    border = features_FM[SECOND_SCORE, base]
    for e in range(len(is_resident_E)):
        expert = base + e
        state = features_FM[SCORE, expert]
        if features_FM[USES, expert] == 0 and not is_resident_E[e]:
            # nothing is known of it: never used, or the cache has been emptied
            state = _UNKNOWN
        elif not is_resident_E[e]:
            if state == _ONCE:
                state = _GHOST_ONCE
            elif state == _AGAIN:
                state = _GHOST_AGAIN
        elif state == _GHOST_ONCE:
            border = min(capacity, border + max(1.0, ghosts_again / max(1, ghosts_once)))
            state = _AGAIN
        elif state == _GHOST_AGAIN:
            border = max(0.0, border - max(1.0, ghosts_once / max(1, ghosts_again)))
            state = _AGAIN
        elif state == _UNKNOWN:
            state = _ONCE
        if state == _ONCE and features_FM[USES_RESIDENT, expert] > 1:
            state = _AGAIN
        features_FM[SCORE, expert] = state
    features_FM[SECOND_SCORE, base] = border
    return float(border)


@compiled()
def _forget_ghosts(features_FM: npt.NDArray[np.float64], base: int, num_experts: int, capacity: int) -> None:
    """Of each kind of ghosts remember the latest, as many as the layer holds experts."""
    for kind in (_GHOST_ONCE, _GHOST_AGAIN):
        count = 0
        for expert in range(base, base + num_experts):
            count += features_FM[SCORE, expert] == kind
        while count > capacity:
            oldest = -1
            for expert in range(base, base + num_experts):
                if features_FM[SCORE, expert] == kind and (
                    oldest < 0 or features_FM[LAST_USE, expert] < features_FM[LAST_USE, oldest]
                ):
                    oldest = expert
            features_FM[SCORE, oldest] = _UNKNOWN
            count -= 1


@compiled(RANK)
def adaptive_replacement(
    features_FM: npt.NDArray[np.float64], residents: npt.NDArray[np.int32], now: int, step: int, layer: int
) -> None:
    """Rank of ARC: the list that is over its side of the border leaves first, in it the least recently used.

    The residents must be of one layer. Where experts leave in one event, the border is the same for all of them.
    """
    num_layers = int(features_FM[LAYER, features_FM.shape[1] - 1]) + 1
    num_experts = features_FM.shape[1] // num_layers
    base = residents[0] // num_experts * num_experts
    is_resident_E = np.zeros(num_experts, np.bool_)
    for expert in residents:
        is_resident_E[expert - base] = True
    border = _catch_up(features_FM, is_resident_E, base)
    _forget_ghosts(features_FM, base, num_experts, len(residents))
    seen_once = 0
    for expert in residents:
        seen_once += features_FM[SCORE, expert] == _ONCE
    first_list = _ONCE if seen_once > border else _AGAIN
    for place, expert in enumerate(residents):
        stays = features_FM[SCORE, expert] != first_list
        features_FM[RANKS, place] = features_FM[LAST_USE, expert] + (_LIST if stays else 0.0)
