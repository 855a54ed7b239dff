"""What no cache can beat: Belady's MIN, which knows every future use.

L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966. Both
forms are event-atomic: an event's experts are all in hand while it runs, and what is kept is chosen after it.
"""

from __future__ import annotations

import numpy as np

from moe_beyond.simulator.engine.policy import NEXT_USE, RANKS, Policy
from moe_beyond.simulator.jit import F64, I32, I64, RANK, compiled


@compiled(RANK, borrows=True)
def nearest_use(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
    """Rank of the farthest next use: lowest where it is farthest."""
    for place, expert in enumerate(residents):
        features_FM[RANKS, place] = -features_FM[NEXT_USE, expert]


class Belady(Policy):
    """Keeps the experts that are used next, and none of an event's own that others beat: fewest loads of all policies.

    The bound holds for caches in slots. With experts of different sizes in a budget of bytes it is a good rule only.
    """

    name = "belady"
    title = "Belady (bound)"
    bypass = True
    knows_future = True
    rank = staticmethod(nearest_use)


class BeladyForced(Policy):
    """Belady under the engines' rule that what an event loads stays: the bound of policies without bypass."""

    name = "belady_forced"
    title = "Belady, forced admission (bound)"
    knows_future = True
    rank = staticmethod(nearest_use)


@compiled()
def belady_hits(members_A: I32, next_use_A: I64, num_model_experts: int, capacity: int) -> int:
    """Hits of forced MIN over single accesses, starting empty: the fast way where nothing else is needed.

    A miss looks at all residents, which lie side by side; finding the largest of a few hundred numbers that way is
    faster than keeping them in order.
    """
    next_use_I = np.full(capacity, -1)
    expert_I = np.zeros(capacity, np.int32)
    place_M = np.full(num_model_experts, -1)
    size, hits = 0, 0
    for access in range(len(members_A)):
        expert = members_A[access]
        place = place_M[expert]
        if place >= 0:
            hits += 1
        else:
            if size < capacity:
                place = size
                size += 1
            else:
                farthest = next_use_I[0]
                for i in range(1, capacity):
                    farthest = max(farthest, next_use_I[i])
                place = 0
                while next_use_I[place] != farthest:
                    place += 1
                place_M[expert_I[place]] = -1
            place_M[expert] = place
            expert_I[place] = expert
        next_use_I[place] = next_use_A[access]
    return hits
