# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""Hits at every capacity in one pass, for LRU and for Belady's MIN with bypass.

Both are stack algorithms (Mattson, Gecsei, Slutz, Traiger, "Evaluation techniques for storage hierarchies", IBM Systems
Journal 9(2), 1970): what a cache holds, every larger one holds too, so each access has one depth, and it hits in all
caches at least that large. Event-atomic: depths are those at the event's start.

Shape suffixes: M experts of the model, F phases (0 prefill, 1 decode), D depths 0 to M, N events, A accesses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.jit import F64, I32, I64, Bools, compiled, count_ones
from moe_beyond.simulator.schedule.events import Events


@dataclass(frozen=True)
class Curve:
    """Hits of one policy at every capacity.

    Attributes:
        policy: Name of the policy.
        hits_FD: int64 [2, M+1]; `hits_FD[phase, c]` are the hits of a cache of c experts.
        accesses_F: int64 [2].
    """

    policy: str
    hits_FD: I64
    accesses_F: I64

    @property
    def hits_D(self) -> I64:
        """Hits of both phases at each capacity."""
        return np.asarray(self.hits_FD.sum(axis=0))

    @property
    def hit_rate_D(self) -> F64:
        """Hit rate of both phases at each capacity."""
        return np.asarray(self.hits_D / max(1, int(self.accesses_F.sum())))


def lru_curve(events: Events, *, keep_warm: bool = True) -> Curve:
    """LRU of the whole model at every capacity; equals a replay of `policies.on_demand.Lru` at each."""
    depths_FD, accesses_F = _lru_depths(
        events.members_A, events.offsets_N, _phases(events), events.empties_N(keep_warm), len(events.expert_bytes_M)
    )
    return Curve("lru", depths_FD.cumsum(axis=1), accesses_F)


def belady_curve(events: Events, *, keep_warm: bool = True, largest: int | None = None) -> Curve:
    """Belady's MIN with bypass at every capacity; equals a replay of `bounds.Belady` at each.

    Args:
        events: The accesses.
        keep_warm: Keep the cache from one prompt to the next.
        largest: Capacity above which no value is needed: the curve stays flat there, and the pass is shorter.
    """
    depths_FD, accesses_F = _belady_depths(
        events.members_A,
        events.offsets_N,
        events.next_use_A(within_prompt=not keep_warm),
        _phases(events),
        events.empties_N(keep_warm),
        len(events.expert_bytes_M),
        largest or len(events.expert_bytes_M),
    )
    return Curve("belady", depths_FD.cumsum(axis=1), accesses_F)


def _phases(events: Events) -> I64:
    return events.is_decode_S.astype(np.int64)[events.step_N]


@compiled()
def _flip(words: npt.NDArray[np.uint64], per_block: I64, position: int, change: int) -> None:
    """Set (change 1) or clear (change -1) the mark of one position."""
    words[position >> 6] ^= np.uint64(1) << np.uint64(position & 63)
    per_block[position >> 7] += change


@compiled()
def _marked_after(words: npt.NDArray[np.uint64], after_block: I64, position: int) -> int:
    """Marks at positions above `position`, as of the event's start."""
    word = position >> 6
    # two shifts: a shift by 64 is undefined
    count = after_block[position >> 7] + count_ones((words[word] >> np.uint64(position & 63)) >> np.uint64(1))
    # a choice of values, not of paths: which of a pair a word is cannot be foreseen
    later = words[word | 1] if word & 1 == 0 else np.uint64(0)
    return int(count + count_ones(later))


@compiled()
def _lru_depths(members_A: I32, offsets_N: I64, phase_N: I64, empties_N: Bools, num_experts: int) -> tuple[I64, I64]:
    """How many accesses lie at each depth of the stack of recency, int64 [F, D]; column 0 stays 0.

    Positions in time are bits, set where an expert was last used: its depth is the number of bits after its own. Bits
    are counted in words, words in pairs, and pairs once an event.
    """
    depths_FD = np.zeros((2, num_experts + 1), np.int64)
    accesses_F = np.zeros(2, np.int64)
    # six times the marks there can be: closing the gaps is rare, and walks are short
    num_blocks = (6 * num_experts) // 128 + 2
    words = np.zeros(2 * num_blocks, np.uint64)
    per_block, after_block = np.zeros(num_blocks, np.int64), np.zeros(num_blocks, np.int64)
    expert_at = np.zeros(128 * num_blocks, np.int32)
    position_M = np.full(num_experts, -1, np.int32)
    now = 0
    for event in range(len(phase_N)):
        start, end = offsets_N[event], offsets_N[event + 1]
        phase = phase_N[event]
        accesses_F[phase] += end - start
        if empties_N[event]:
            position_M[:] = -1
            now = _close_gaps(words, per_block, expert_at, position_M, 0)
        if now + end - start > len(expert_at):
            now = _close_gaps(words, per_block, expert_at, position_M, now)
        after_block[now >> 7] = 0
        for block in range((now >> 7) - 1, -1, -1):
            after_block[block] = after_block[block + 1] + per_block[block + 1]
        for access in range(start, end):
            position = position_M[members_A[access]]
            if position >= 0:
                depths_FD[phase, 1 + _marked_after(words, after_block, position)] += 1
        for access in range(start, end):
            expert = members_A[access]
            if position_M[expert] >= 0:
                _flip(words, per_block, position_M[expert], -1)
            _flip(words, per_block, now, 1)
            position_M[expert] = now
            expert_at[now] = expert
            now += 1
    return depths_FD, accesses_F


@compiled()
def _close_gaps(words: npt.NDArray[np.uint64], per_block: I64, expert_at: I32, position_M: I32, end: int) -> int:
    """Move all last uses to the front, in their order; returns the first free position."""
    kept = 0
    for position in range(end):
        expert = expert_at[position]
        if position_M[expert] == position:
            expert_at[kept] = expert
            position_M[expert] = kept
            kept += 1
    words[:] = 0
    per_block[:] = 0
    for position in range(kept):
        _flip(words, per_block, position, 1)
    return kept


@compiled()
def _belady_depths(
    members_A: I32, offsets_N: I64, next_use_A: I64, phase_N: I64, empties_N: Bools, num_experts: int, largest: int
) -> tuple[I64, I64]:
    """How many accesses lie at each depth of the stack of MIN, int64 [F, D].

    A cache of c holds the first c of the stack. After an event it holds the c soonest used of what it held and the
    event's own experts; so walking down, each place takes the soonest used of what stood there and of what was pushed
    down.
    """
    depths_FD = np.zeros((2, num_experts + 1), np.int64)
    accesses_F = np.zeros(2, np.int64)
    stack = np.zeros(num_experts, np.int32)
    place_M = np.full(num_experts, -1)
    next_M = np.zeros(num_experts, np.int64)
    pushed = np.zeros(num_experts, np.int32)
    size = 0
    for event in range(len(phase_N)):
        if empties_N[event]:
            place_M[:] = -1
            size = 0
        start, end = offsets_N[event], offsets_N[event + 1]
        accesses_F[phase_N[event]] += end - start
        num_pushed = 0
        for access in range(start, end):
            expert = members_A[access]
            if place_M[expert] >= 0:
                depths_FD[phase_N[event], place_M[expert] + 1] += 1
                stack[place_M[expert]] = -1
            elif size < largest:
                stack[size] = -1
                size += 1
            place_M[expert] = -1
            next_M[expert] = next_use_A[access]
            num_pushed = _push(pushed, num_pushed, expert, next_M)
        place = 0
        # the one still pushed down at the end of the stack is evicted
        while num_pushed and place < size:
            standing = stack[place]
            soonest = pushed[num_pushed - 1]
            if standing < 0:
                num_pushed -= 1
                stack[place] = soonest
                place_M[soonest] = place
            elif next_M[soonest] < next_M[standing]:
                stack[place] = soonest
                place_M[soonest] = place
                place_M[standing] = -1
                num_pushed = _push(pushed, num_pushed - 1, standing, next_M)
            place += 1
    return depths_FD, accesses_F


@compiled()
def _push(pushed: I32, count: int, expert: int, next_M: I64) -> int:
    """Insert into the list that ends with the soonest used; returns its length."""
    i = count
    while i > 0 and next_M[pushed[i - 1]] < next_M[expert]:
        pushed[i] = pushed[i - 1]
        i -= 1
    pushed[i] = expert
    return count + 1
