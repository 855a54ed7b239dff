"""A slow, obvious event-atomic cache: sets and loops, written from the contract, sharing no code with the kernels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from moe_beyond.simulator.schedule.events import Events


@dataclass
class Outcome:
    """What the reference counted."""

    hits: list[int] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)
    prefetched: int = 0
    useful: int = 0
    useless: int = 0


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
        events: What is asked for.
        policy: Name of the rule; "static" ranks by `scores`.
        capacities: Slots of each group.
        group_of: Group of each expert.
        keep_warm: Whether cache and memory survive from prompt to prompt.
        overrun: Whether an event that alone wants more than its budget keeps it until the group's next event.
        scores: For "static", a score of each expert.
        wanted: Experts to prefetch before each event, a list a event.
    """
    lists = [events.members_A[events.offsets_N[n] : events.offsets_N[n + 1]].tolist() for n in range(events.num_events)]
    prompts = events.prompt_S[events.step_N].tolist()
    outcome = Outcome()
    resident: set[int] = set()
    unused: set[int] = set()
    last: dict[int, int] = {}
    uses: Counter[int] = Counter()
    uses_resident: Counter[int] = Counter()
    admitted: dict[int, int] = {}
    last_step: dict[int, int] = {}
    steps = events.step_N.tolist()
    clock = 0

    def next_use(expert: int, now: int) -> float:
        for later in range(now + 1, len(lists)):
            if not keep_warm and prompts[later] != prompts[now]:
                return np.inf
            if expert in lists[later]:
                return later
        return np.inf

    def order(expert: int, now: int) -> tuple[float, int, int]:
        if policy == "lfu":
            first: float = uses[expert]
        elif policy == "lfu_resident":
            first = uses_resident[expert]
        elif policy == "fifo":
            first = admitted[expert]
        elif policy == "lfru":
            first = uses[expert] / (clock + 1 - last[expert])
        elif policy == "least_stale":
            first = admitted[expert] + 1e9 * (last_step.get(expert) == steps[now])
        elif scores is not None:
            first = scores[expert]
        elif policy.startswith("belady"):
            first = -next_use(expert, now)
        else:
            first = last.get(expert, -1)
        return (first, last.get(expert, -1), expert)

    def shrink(group: int, limit: int, spared: set[int], now: int) -> None:
        while True:
            mine = {e for e in resident if group_of[e] == group}
            candidates = mine - spared
            if len(mine) <= limit or not candidates:
                return
            victim = min(candidates, key=lambda e: order(e, now))
            resident.discard(victim)
            if victim in unused:
                unused.discard(victim)
                outcome.useless += 1

    for now, members in enumerate(lists):
        if not keep_warm and now and prompts[now] != prompts[now - 1]:
            outcome.useless += len(unused)
            for memory in (resident, unused, last, last_step, uses):
                memory.clear()
        ahead = wanted[now] if wanted else []
        for expert in ahead:
            if expert in resident:
                continue
            group = group_of[expert]
            shrink(group, capacities[group] - 1, set(ahead), now)
            if sum(group_of[e] == group for e in resident) < capacities[group]:
                resident.add(expert)
                unused.add(expert)
                outcome.prefetched += 1
        outcome.hits.append(sum(e in resident for e in members))
        outcome.found += [e in resident for e in members]
        for expert in members:
            if expert in unused:
                unused.discard(expert)
                outcome.useful += 1
            clock += 1
            last[expert] = clock
            last_step[expert] = steps[now]
            uses[expert] += 1
            if expert not in resident:
                admitted[expert] = clock
                uses_resident[expert] = 0
            uses_resident[expert] += 1
        resident |= set(members)
        for group in {group_of[e] for e in members}:
            shrink(group, capacities[group], set() if policy in ("static", "belady") else set(members), now)
            if not overrun:
                shrink(group, capacities[group], set(), now)
    outcome.useless += len(unused)
    return outcome
