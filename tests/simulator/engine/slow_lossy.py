"""A slow, obvious cache for policies that do without: precisions, skipping, stand-ins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from moe_beyond.simulator.schedule.events import Events

SKIPS, STANDS_IN, LOADS = "skip", "stand in", "at most"
Decision = tuple[str, int]
"""(SKIPS, 0), (STANDS_IN, expert), or (LOADS, precision): the expert at that precision or a better one."""


@dataclass
class Outcome:
    """What the reference counted."""

    counts: Counter[str] = field(default_factory=Counter)
    weight_lost: Counter[str] = field(default_factory=Counter)


def replay(
    events: Events,
    decide: Callable[[int, float, dict[int, int], list[int]], Decision],
    units: list[list[int]],
    capacity: int,
) -> Outcome:
    """LRU over decode events whose misses are decided one by one on what is resident when the event starts.

    Args:
        events: What is wanted, with shares.
        decide: From an expert, its share, the precision of each resident and the event's members.
        units: What each expert takes, by precision.
        capacity: Units of the whole cache.
    """
    assert events.shares_A is not None
    outcome = Outcome()
    resident: dict[int, int] = {}
    last: dict[int, int] = {}
    access = 0
    for event in range(events.num_events):
        members = events.members_A[events.offsets_N[event] : events.offsets_N[event + 1]].tolist()
        shares = events.shares_A[events.offsets_N[event] : events.offsets_N[event + 1]].tolist()
        is_decode = events.token_S[events.step_N[event]] >= 0
        before = dict(resident)
        told = [
            decide(expert, share, before, members) if is_decode else (LOADS, 0)
            for expert, share in zip(members, shares, strict=True)
        ]
        busy = {expert for expert, (what, _) in zip(members, told, strict=True) if what == LOADS}
        computing = set(busy)
        for expert, share, (said, detail) in zip(members, shares, told, strict=True):
            worker = expert
            impossible = said == STANDS_IN and (detail not in before or detail in busy)
            what = SKIPS if impossible else said
            if what == SKIPS:
                outcome.counts["skipped"] += 1
                outcome.weight_lost["skipped"] += share
            elif what == STANDS_IN:
                outcome.counts["substituted"] += 1
                outcome.weight_lost["substituted"] += share
                worker = detail
                busy.add(detail)
                computing.add(detail)
            elif expert in resident and resident[expert] <= detail:
                outcome.counts["hits"] += 1
            else:
                outcome.counts["misses"] += 1
                outcome.counts["low"] += detail > 0
                resident[expert] = detail
            if what == LOADS and resident[expert] > 0:
                outcome.weight_lost["precision"] += share
            if what != SKIPS:
                last[worker] = access
            access += 1
        for spared in (computing, set()):
            while sum(units[resident[e]][e] for e in resident) > capacity and set(resident) - spared:
                del resident[min(set(resident) - spared, key=lambda e: last[e])]
    return outcome
