"""One policy, one trace, some budgets: what was hit, missed, moved."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from moe_beyond.simulator.engine import untimed_kernel
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.policy_inputs import Prepared, prepare
from moe_beyond.simulator.engine.results import Replay
from moe_beyond.simulator.engine.timed_loop import Times, just_in_time, run
from moe_beyond.simulator.schedule.events import Events

Result = TypeVar("Result")


def replay(events: Events, policy: Policy, budget: Budget, *, keep_warm: bool = True, overrun: bool = False) -> Replay:
    """Replay events through a cache that starts empty.

    Args:
        events: The accesses.
        policy: What is evicted and prefetched.
        budget: How much the cache holds.
        keep_warm: Keep cache and counts from one prompt to the next; otherwise every prompt starts empty.
        overrun: An event that alone uses more than the budget keeps it all until the next event, as engines do that
            never evict what they have just used. Off, a budget is a budget, which bounds and comparisons need.

    Returns:
        Counts per prompt and phase. The same input gives the same counts on every machine: ties are broken by id.
    """
    return sweep(events, policy, [budget], keep_warm=keep_warm, overrun=overrun)[0]


def sweep(
    events: Events, policy: Policy, budgets: Sequence[Budget], *, keep_warm: bool = True, overrun: bool = False
) -> list[Replay]:
    """Replay the same events through a cache of each budget; what the policy decides ahead is computed once."""
    return sweep_prepared(prepare(events, policy, keep_warm=keep_warm), budgets, overrun=overrun)


def sweep_prepared(prepared: Prepared, budgets: Sequence[Budget], *, overrun: bool = False) -> list[Replay]:
    """The same for a policy that `prepare` has run already."""
    events, policy = prepared.events, prepared.policy
    if prepared.needs_general_loop:
        prefetches, times = just_in_time(prepared), Times.none(prepared)
        return in_threads(lambda budget: run(prepared, prefetches, budget, times, overrun=overrun).replay, budgets)
    offsets_N, experts = prepared.prefetches.just_in_time(events.num_events)

    def one(budget: Budget) -> Replay:
        units_VM, budget_G = prepared.units(budget)
        counts_RC, misses_N = untimed_kernel.replay(
            policy.rank,
            policy.bypass,
            overrun,
            *prepared.common,
            offsets_N,
            experts,
            prepared.bytes_VM[0],
            units_VM[0],
            budget.group_M,
            budget_G,
            2 * events.num_prompts,
        )
        return prepared.result(budget, counts_RC, None, misses_N)

    return in_threads(one, budgets)


def in_threads(work: Callable[..., Result], *arguments: Iterable[Any]) -> list[Result]:
    """`map`, a thread a core: compiled loops hold no interpreter lock. The order is that of the arguments."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, *arguments))
