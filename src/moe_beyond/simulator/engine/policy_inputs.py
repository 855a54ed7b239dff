"""What a policy computes from a trace, once for all budgets, devices and latencies.

Shape suffixes: N events, A accesses, M experts of the model, S steps, V precisions, R rows of counts (a prompt and a
phase), P prompts, F phases, C counters, W ways of losing weight, G groups that share a budget, T tokens, L MoE layers,
E experts in a layer, H layers ahead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.cache import ACCESSES, NUM_COUNTERS, SKIPPED
from moe_beyond.simulator.engine.policy import ChangedDemand, Policy, Prefetches
from moe_beyond.simulator.engine.results import Replay
from moe_beyond.simulator.engine.usage import LOST_PRECISION, LOST_SKIPPED, NUM_LOSSES
from moe_beyond.simulator.jit import F32, F64, I32, I64, Bools
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.traces.schema import TraceMetadata

_NONE_AHEAD = np.zeros((0, 0, 0, 0), np.float32)
_PARTS_OF_A_UNIT = 1000
"""Where experts of several sizes share a budget in slots, a slot is divided into this many parts."""


class Common(NamedTuple):
    """Arguments of both compiled loops, in their order; `untimed_kernel.replay` says what each is."""

    members_A: I32
    offsets_N: I64
    step_N: I32
    layer_N: I32
    row_N: I64
    row_A: I64
    empties_N: Bools
    next_use_A: I64
    scores_SM: F32
    ahead_HTLE: F32
    token_S: I64
    layer_M: I64


@dataclass(frozen=True)
class Prepared:
    """A policy's view of a trace.

    Attributes:
        policy: The policy.
        events: What it uses: the trace's events without what it skips from the start.
        common: Arguments that both compiled loops take.
        prefetches: Its prefetch requests.
        size_VM: Bytes of each expert at each precision as a share of the traced ones, float64.
        skipped_RC: Counts of what it skips from the start, int64.
        weight_lost_RW: Router weight of that, in tokens of the whole model, float64.
    """

    policy: Policy
    events: Events
    common: Common
    prefetches: Prefetches
    size_VM: F64
    skipped_RC: I64
    weight_lost_RW: F64

    @property
    def needs_general_loop(self) -> bool:
        """Whether it needs the loop with a clock: it reads weights, or changes its demand while the replay runs."""
        return self.policy.demand is not None or self.policy.needs_weights or len(self.size_VM) > 1

    @property
    def bytes_VM(self) -> I64:
        """Bytes of each expert at each precision, int64."""
        return np.asarray(np.rint(self.events.expert_bytes_M * self.size_VM), np.int64)

    def units(self, budget: Budget) -> tuple[I64, I64]:
        """What each expert takes of a budget at each precision, int64 [V, M], and the budget, int64 [G]."""
        return units_of(self.policy, self.events.metadata, budget, self.size_VM)

    def result(self, budget: Budget, counts_RC: I64, weight_lost_RW: F64 | None, misses_N: I32) -> Replay:
        """What a loop counted, with what the policy skipped from the start.

        Args:
            budget: How much the cache held.
            counts_RC: As a loop returns it.
            weight_lost_RW: Sums of shares of single layers, as a loop returns it; None for none.
            misses_N: As a loop returns it.
        """
        num_prompts = self.events.num_prompts
        weight_lost = self.weight_lost_RW
        if weight_lost_RW is not None:
            weight_lost = weight_lost + weight_lost_RW / self.events.metadata.num_layers
        return Replay(
            policy=self.policy.name,
            capacity_experts=budget.capacity_experts,
            counts_PFC=(counts_RC + self.skipped_RC).reshape(num_prompts, 2, NUM_COUNTERS),
            tokens_PF=self.events.prompt_tokens_PF,
            misses_N=misses_N,
            weight_lost_PFW=weight_lost.reshape(num_prompts, 2, NUM_LOSSES),
        )


def units_of(policy: Policy, meta: TraceMetadata, budget: Budget, size_VM: F64) -> tuple[I64, I64]:
    """What each expert takes of a budget at each precision, int64 [V, M], and the budget, int64 [G].

    Args:
        policy: May keep no more than so many experts.
        meta: The model's shape.
        budget: How much the cache holds.
        size_VM: Bytes of each expert at each precision as a share of the traced ones.
    """
    most, budget_G = policy.most_experts(meta), budget.budget_G
    if most is not None:
        budget_G = np.minimum(budget_G, most * budget.units_M.max())
    if (size_VM == 1).all():
        return np.tile(budget.units_M, (len(size_VM), 1)), budget_G
    units_VM = np.rint(budget.units_M * _PARTS_OF_A_UNIT * size_VM)
    return np.maximum(units_VM, 1).astype(np.int64), budget_G * _PARTS_OF_A_UNIT


def prepare(events: Events, policy: Policy, *, keep_warm: bool) -> Prepared:
    """Compute what the policy decides ahead of the replay; counts have a row for each prompt and phase.

    Raises:
        InputError: The policy needs router weights, and the trace has none; or it decides token by token what to skip,
            and a step runs several tokens, or every access is an event of its own; or it skips, and runs verify blocks.
    """
    if events.trace is not None:
        policy = policy.beside(events.trace)
    if events.schedule is not None and (policy.demand is not None or policy.decides_by_token):
        raise InputError(
            f"policy {policy.name}: decides token by token what to skip, and a step runs several tokens at once; "
            "replay it with a batch of 1, without verify blocks"
        )
    if policy.needs_weights or policy.demand is not None:
        events.require_shares(policy.name)
    if policy.needs_weights and events.num_events > events.num_steps * events.metadata.num_layers:
        raise InputError(
            f"policy {policy.name}: decides among the experts of an event, and a sequential replay has one in each; "
            "replay it without --sequential"
        )
    change = policy.changed_demand(events) or ChangedDemand.none(events)
    if events.in_blocks and not change.keep_A.all():
        raise InputError(
            f"policy {policy.name}: decides what to skip, and of a verify block nobody knows which tokens are kept; "
            "replay it without verify blocks"
        )
    skipped_RC, weight_lost_RW = _skipped_ahead(events, policy, change)
    used = events if change.keep_A.all() else _without(events, ~change.keep_A)
    common = Common(
        members_A=used.members_A,
        offsets_N=used.offsets_N,
        step_N=used.step_N,
        layer_N=used.layer_N,
        row_N=used.row_N,
        row_A=np.zeros(0, np.int64) if used.owner_A is None else used.row_A,
        empties_N=used.empties_N(keep_warm),
        next_use_A=used.next_use_A(within_prompt=not keep_warm) if policy.knows_future else np.zeros(0, np.int64),
        scores_SM=np.ascontiguousarray(policy.scores_SM(used), dtype=np.float32),
        ahead_HTLE=_NONE_AHEAD if policy.ahead_HTLE is None else np.ascontiguousarray(policy.ahead_HTLE),
        token_S=used.token_S,
        layer_M=np.arange(len(used.expert_bytes_M)) // used.metadata.num_experts,
    )
    size_VM = np.asarray(policy.precisions)[:, None] * change.bytes_share_M
    return Prepared(policy, used, common, policy.prefetches(used), size_VM, skipped_RC, weight_lost_RW)


def _without(events: Events, skipped_A: Bools) -> Events:
    kept_before_A = np.concatenate([[0], np.cumsum(~skipped_A)])
    return replace(
        events,
        members_A=events.members_A[~skipped_A],
        offsets_N=kept_before_A[events.offsets_N],
        shares_A=None if events.shares_A is None else events.shares_A[~skipped_A],
        owner_A=None if events.owner_A is None else events.owner_A[~skipped_A],
    )


def _skipped_ahead(events: Events, policy: Policy, change: ChangedDemand) -> tuple[I64, F64]:
    """Counts and weight of the accesses that a policy skips from the start, or loads in fewer bits.

    Raises:
        InputError: There are some, and the trace has no weights to measure them by.
    """
    num_rows = 2 * events.num_prompts
    counts_RC, weight_lost_RW = np.zeros((num_rows, NUM_COUNTERS), np.int64), np.zeros((num_rows, NUM_LOSSES))
    low_A = change.keep_A & (change.bytes_share_M[events.members_A] < 1)
    if change.keep_A.all() and not low_A.any():
        return counts_RC, weight_lost_RW
    shares_A = events.require_shares(policy.name)
    row_A = events.row_A
    skipped_R = np.bincount(row_A[~change.keep_A], minlength=num_rows)
    counts_RC[:, ACCESSES] = counts_RC[:, SKIPPED] = skipped_R
    # a step of several tokens is one event a layer for all of them
    worth_A = shares_A / events.metadata.num_layers * events.num_tokens_S[events.step_N[events.event_A]]
    for way, which_A in ((LOST_SKIPPED, ~change.keep_A), (LOST_PRECISION, low_A)):
        weight_lost_RW[:, way] = np.bincount(row_A[which_A], worth_A[which_A], minlength=num_rows)
    return counts_RC, weight_lost_RW
