"""A list of experts by recency, compiled: every touch takes constant time, however large the cache.

The general replay looks at all residents when it evicts, so that any rank will do; where only LRU is wanted, on tens of
millions of accesses, this is faster. Shape suffixes: M experts of the model, A accesses, N events.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.jit import compiled

_ABSENT = -1


class RecencyList(NamedTuple):
    """A ring through the residents, oldest to newest; place M is where both ends meet."""

    newer: npt.NDArray[np.int32]
    """int32 [M+1]; the next more recent resident, or _ABSENT where not resident."""
    older: npt.NDArray[np.int32]
    size_1: npt.NDArray[np.int64]


@compiled()
def empty_list(num_model_experts: int) -> RecencyList:
    """No resident."""
    newer = np.full(num_model_experts + 1, _ABSENT, np.int32)
    newer[num_model_experts] = num_model_experts
    return RecencyList(newer, newer.copy(), np.zeros(1, np.int64))


@compiled()
def resident(residents: RecencyList, expert: int) -> bool:
    """Whether a touch of `expert` would hit."""
    return bool(residents.newer[expert] != _ABSENT)


@compiled()
def touch(residents: RecencyList, expert: int, capacity: int) -> bool:
    """Make `expert` the most recent, the oldest leaves when there are more than `capacity`. Returns whether it hit."""
    newer, older = residents.newer, residents.older
    ends = len(newer) - 1
    hit = resident(residents, expert)
    if hit:
        newer[older[expert]] = newer[expert]
        older[newer[expert]] = older[expert]
    elif residents.size_1[0] == capacity:
        oldest = newer[ends]
        newer[ends] = newer[oldest]
        older[newer[oldest]] = ends
        newer[oldest] = _ABSENT
    else:
        residents.size_1[0] += 1
    newest = older[ends]
    newer[newest] = expert
    older[expert] = newest
    newer[expert] = ends
    older[ends] = expert
    return hit


@compiled()
def lru_hits(members_A: npt.NDArray[np.int32], num_model_experts: int, capacity: int) -> int:
    """Hits of LRU over single accesses, starting empty."""
    residents = empty_list(num_model_experts)
    hits = 0
    for expert in members_A:
        hits += touch(residents, expert, capacity)
    return hits
