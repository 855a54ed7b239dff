"""A slow, obvious event-atomic cache: sets and loops, written from the contract, sharing no code with the kernels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from moe_beyond.simulator.schedule.events import Events
from tests.simulator.strategies import members


@dataclass
class Outcome:
    """What the reference counted."""

    hits: list[int] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)
    prefetched: int = 0
    useful: int = 0
    useless: int = 0


@dataclass
class Memory:
    """What is known of an expert: clock and step of its last use, uses, uses since its admission, and when that was."""

    last: int = -1
    step: int = -1
    uses: int = 0
    uses_resident: int = 0
    admitted: int = 0


def replay(
    events: Events,
    policy: str,
    capacities: dict[int, int],
    group_of: dict[int, int],
    *,
    keep_warm: bool = True,
    overrun: bool = False,
    scores: list[float] | None = None,
    wanted: list[list[int]] | None = None,
) -> Outcome:
    """Replay events in plain Python.

    Args:
        events: What is wanted.
        policy: Name of the rule; "static" ranks by `scores`.
        capacities: Slots of each group.
        group_of: Group of each expert.
        keep_warm: Whether cache and memory survive from prompt to prompt.
        overrun: Whether an event that alone wants more than its budget keeps it until the group's next event.
        scores: For "static", a score of each expert.
        wanted: Experts to prefetch before each event, a list a event.
    """
    lists, steps = members(events), events.step_N.tolist()
    prompts = events.prompt_S[events.step_N].tolist()
    outcome, clock = Outcome(), 0
    resident: set[int] = set()
    unused: set[int] = set()
    known: defaultdict[int, Memory] = defaultdict(Memory)

    def next_use(expert: int, now: int) -> float:
        for later in range(now + 1, len(lists)):
            if not keep_warm and prompts[later] != prompts[now]:
                return np.inf
            if expert in lists[later]:
                return later
        return np.inf

    def order(expert: int, now: int) -> tuple[float, int, int]:
        of = known[expert]
        first: float = {
            "lfu": of.uses,
            "lfu_resident": of.uses_resident,
            "fifo": of.admitted,
            "lfru": of.uses / (clock + 1 - of.last),
            "least_stale": of.admitted + 1e9 * (of.step == steps[now]),
        }.get(policy, of.last)
        if scores is not None:
            first = scores[expert]
        elif policy.startswith("belady"):
            first = -next_use(expert, now)
        return (first, of.last, expert)

    def shrink(group: int, limit: int, spared: set[int], now: int) -> None:
        while True:
            mine = {e for e in resident if group_of[e] == group}
            if len(mine) <= limit or not mine - spared:
                return
            victim = min(mine - spared, key=lambda e: order(e, now))
            resident.discard(victim)
            outcome.useless += victim in unused
            unused.discard(victim)

    for now, wants in enumerate(lists):
        if not keep_warm and now and prompts[now] != prompts[now - 1]:
            outcome.useless += len(unused)
            for memory in (resident, unused, known):
                memory.clear()
        ahead = wanted[now] if wanted else []
        for expert in ahead:
            group = group_of[expert]
            if expert not in resident:
                shrink(group, capacities[group] - 1, set(ahead), now)
                if sum(group_of[e] == group for e in resident) < capacities[group]:
                    resident.add(expert)
                    unused.add(expert)
                    outcome.prefetched += 1
        outcome.found += [e in resident for e in wants]
        outcome.hits.append(sum(e in resident for e in wants))
        for expert in wants:
            outcome.useful += expert in unused
            unused.discard(expert)
            clock += 1
            of = known[expert]
            if expert not in resident:
                of.admitted, of.uses_resident = clock, 0
            of.last, of.step, of.uses, of.uses_resident = clock, steps[now], of.uses + 1, of.uses_resident + 1
        resident |= set(wants)
        for group in {group_of[e] for e in wants}:
            shrink(group, capacities[group], set() if policy in ("static", "belady") else set(wants), now)
            if not overrun:
                shrink(group, capacities[group], set(), now)
    outcome.useless += len(unused)
    return outcome
