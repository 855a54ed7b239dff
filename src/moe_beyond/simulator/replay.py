"""One policy, one trace, some budgets: what was hit, missed, moved."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator import kernels
from moe_beyond.simulator.budget import Budget
from moe_beyond.simulator.cache import NUM_COUNTERS
from moe_beyond.simulator.events import Events
from moe_beyond.simulator.policies.base import Policy
from moe_beyond.simulator.results import Replay

Result = TypeVar("Result")


class Prepared(NamedTuple):
    """What a policy sees of a trace: the arguments from `members_A` to `bytes_M` of the compiled loops, in order."""

    members_A: npt.NDArray[np.int32]
    offsets_N: npt.NDArray[np.int64]
    step_N: npt.NDArray[np.int32]
    layer_N: npt.NDArray[np.int32]
    row_N: npt.NDArray[np.int64]
    empties_N: npt.NDArray[np.bool_]
    next_use_A: npt.NDArray[np.int64]
    scores_SM: npt.NDArray[np.float32]
    prefetch_offsets_N: npt.NDArray[np.int64]
    prefetch_experts: npt.NDArray[np.int32]
    layer_M: npt.NDArray[np.int64]
    bytes_M: npt.NDArray[np.int64]


def replay(events: Events, policy: Policy, budget: Budget, *, keep_warm: bool = True, overrun: bool = False) -> Replay:
    """Replay events through a cache that starts empty.

    Args:
        events: What is asked for.
        policy: Who leaves and what is fetched ahead.
        budget: How much the cache holds.
        keep_warm: Keep cache and counts from one prompt to the next; otherwise every prompt starts empty.
        overrun: An event that alone wants more than the budget keeps it all until the next event, as engines do that
            never evict what they have just used. Off, a budget is a budget, which bounds and comparisons need.

    Returns:
        Counts per prompt and phase. The same input gives the same counts on every machine: ties are broken by id.
    """
    return sweep(events, policy, [budget], keep_warm=keep_warm, overrun=overrun)[0]


def sweep(
    events: Events, policy: Policy, budgets: Sequence[Budget], *, keep_warm: bool = True, overrun: bool = False
) -> list[Replay]:
    """Replay the same events through a cache of each budget; what the policy foresees is worked out once."""
    prepared = prepare(events, policy, keep_warm=keep_warm)

    def run(budget: Budget) -> Replay:
        counts_RC, misses_N = kernels.replay(
            policy.rank,
            policy.bypass,
            overrun,
            *prepared,
            budget.units_M,
            budget.group_M,
            budget.budget_G,
            2 * events.num_prompts,
        )
        return Replay(
            policy=policy.name,
            capacity_experts=budget.capacity_experts,
            counts_PFC=counts_RC.reshape(events.num_prompts, 2, NUM_COUNTERS),
            tokens_PF=events.prompt_tokens_PF,
            misses_N=misses_N,
        )

    return in_threads(run, budgets)


def prepare(events: Events, policy: Policy, *, keep_warm: bool) -> Prepared:
    """Ask the policy what it knows ahead of the replay; counts have a row for each prompt and phase."""
    prefetches = policy.prefetches(events)
    row_S = events.prompt_S.astype(np.int64) * 2 + events.is_decode_S
    return Prepared(
        members_A=events.members_A,
        offsets_N=events.offsets_N,
        step_N=events.step_N,
        layer_N=events.layer_N,
        row_N=row_S[events.step_N],
        empties_N=np.zeros(events.num_events, bool) if keep_warm else events.starts_prompt_N,
        next_use_A=events.next_use_A(within_prompt=not keep_warm) if policy.knows_future else np.zeros(0, np.int64),
        scores_SM=np.ascontiguousarray(policy.scores_SM(events), dtype=np.float32),
        prefetch_offsets_N=prefetches.offsets_N,
        prefetch_experts=prefetches.experts,
        layer_M=np.arange(len(events.expert_bytes_M)) // events.metadata.num_experts,
        bytes_M=events.expert_bytes_M,
    )


def in_threads(work: Callable[..., Result], *arguments: Iterable[Any]) -> list[Result]:
    """`map`, a thread a core: compiled loops hold no interpreter lock. The order is that of the arguments."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, *arguments))
