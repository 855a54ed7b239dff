"""One policy, one trace, some budgets: what was hit, missed, moved."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from moe_beyond.simulator.engine import cache, orders, untimed_kernel
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.policy_inputs import Common, Prepared, prepare
from moe_beyond.simulator.engine.results import Replay
from moe_beyond.simulator.engine.timed_loop import Times, just_in_time, run
from moe_beyond.simulator.jit import I32, I64
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
    events = prepared.events
    if prepared.needs_general_loop:
        prefetches, times = just_in_time(prepared), Times.none(prepared)
        return in_threads(lambda budget: run(prepared, prefetches, budget, times, overrun=overrun).replay, budgets)
    ahead = prepared.prefetches.just_in_time(events.num_events)

    def one(budget: Budget) -> Replay:
        running = Cache(prepared, budget, 2 * events.num_prompts)
        misses_N = running.run(prepared.common, ahead, overrun=overrun)
        return prepared.result(budget, running.counts_RC(), None, misses_N)

    return in_threads(one, budgets)


class Cache:
    """A cache that starts empty and runs events, part after part.

    Args:
        prepared: The policy and the sizes of experts, of the first part or of all.
        budget: How much it holds.
        num_rows: Rows of counts, a prompt and a phase each.
    """

    def __init__(self, prepared: Prepared, budget: Budget, num_rows: int) -> None:
        units_VM, budget_G = prepared.units(budget)
        self._policy, bytes_M = prepared.policy, prepared.bytes_VM[0]
        self._tables: Any = cache.new_cache(
            prepared.common.layer_M, bytes_M, units_VM[0], budget.group_M, budget_G, num_rows
        )
        self._seen = 0, 0

    def run(self, common: Common, ahead: tuple[I64, I32], *, overrun: bool) -> I32:
        """Run events; returns the misses of each.

        Args:
            common: What the policy reads of them.
            ahead: What is fetched before each, as `Prefetches.just_in_time` has it.
            overrun: As for `replay`.
        """
        state, order = (*self._tables, *self._seen), orders.order_of(self._policy)
        if order is None or len(ahead[1]):
            arguments: list[Any] = [*common, *ahead, *state]
            misses_N = untimed_kernel.replay(self._policy.rank, self._policy.bypass, overrun, *arguments)
        else:
            events = common.members_A, common.offsets_N, common.step_N, common.row_N, common.row_A, common.empties_N
            misses_N = orders.replay(order, overrun, *events, *state)
        self._seen = self._seen[0] + len(common.step_N), self._seen[1] + len(common.members_A)
        return misses_N

    def counts_RC(self) -> I64:
        """What was counted; nothing may run after it, for what lies there unused now is useless."""
        _, experts, _, _, counts_RC = self._tables
        cache.count_useless(experts, counts_RC)
        return np.asarray(counts_RC, np.int64)


def in_threads(work: Callable[..., Result], *arguments: Iterable[Any]) -> list[Result]:
    """`map`, a thread a core: compiled loops hold no interpreter lock. The order is that of the arguments."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, *arguments))
