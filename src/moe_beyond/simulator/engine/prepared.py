"""What a policy sees and says of a trace, worked out once for all budgets, devices and latencies.

Shape suffixes: N events, A accesses, M experts of the model, S steps, V precisions, R rows of counts (a prompt and a
phase), P prompts, F phases, C counters, W ways of giving up weight, G groups that share a budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.cache import ACCESSES, NUM_COUNTERS, SKIPPED
from moe_beyond.simulator.engine.policy import ChangedDemand, Policy, Prefetches
from moe_beyond.simulator.engine.results import Replay
from moe_beyond.simulator.engine.usage import GAVE_UP_PRECISION, GAVE_UP_SKIPPED, NUM_GIVEN_UP
from moe_beyond.simulator.schedule.events import Events

_PARTS_OF_A_UNIT = 1000
"""Where experts of several sizes share a budget in slots, a slot is divided into this many parts."""

Common = tuple[
    npt.NDArray[np.int32],
    npt.NDArray[np.int64],
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
    npt.NDArray[np.int64],
    npt.NDArray[np.int64],
    npt.NDArray[np.bool_],
    npt.NDArray[np.int64],
    npt.NDArray[np.float32],
    npt.NDArray[np.int64],
]
"""The arguments of both compiled loops from `members_A` to `layer_M`."""


@dataclass(frozen=True)
class Prepared:
    """A policy's view of a trace.

    Attributes:
        policy: The policy.
        events: What it asks for: the trace's events without what it does without from the start.
        common: Arguments that both compiled loops take.
        prefetches: What it asks for ahead.
        size_VM: Bytes of each expert at each precision as a share of the traced ones, float64.
        left_out_RC: Counts of what it does without from the start, int64.
        given_up_RW: Router weight of that, in tokens of the whole model, float64.
    """

    policy: Policy
    events: Events
    common: Common
    prefetches: Prefetches
    size_VM: npt.NDArray[np.float64]
    left_out_RC: npt.NDArray[np.int64]
    given_up_RW: npt.NDArray[np.float64]

    @property
    def needs_the_general_loop(self) -> bool:
        """Whether it reads weights or changes its demand while the replay runs."""
        return self.policy.demand is not None or self.policy.needs_weights or len(self.size_VM) > 1

    @property
    def weight_VM(self) -> npt.NDArray[np.int64]:
        """Bytes of each expert at each precision, int64."""
        return np.asarray(np.rint(self.events.expert_bytes_M * self.size_VM), np.int64)

    def units(self, budget: Budget) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """What each expert takes of a budget at each precision, int64 [V, M], and the budget, int64 [G]."""
        most, budget_G = self.policy.most_experts(self.events.metadata), budget.budget_G
        if most is not None:
            budget_G = np.minimum(budget_G, most * budget.units_M.max())
        if (self.size_VM == 1).all():
            return np.tile(budget.units_M, (len(self.size_VM), 1)), budget_G
        units_VM = np.rint(budget.units_M * _PARTS_OF_A_UNIT * self.size_VM)
        return np.maximum(units_VM, 1).astype(np.int64), budget_G * _PARTS_OF_A_UNIT

    def result(
        self,
        budget: Budget,
        counts_RC: npt.NDArray[np.int64],
        given_up_RW: npt.NDArray[np.float64] | None,
        misses_N: npt.NDArray[np.int32],
    ) -> Replay:
        """What a loop counted, with what the policy did without from the start.

        Args:
            budget: How much the cache held.
            counts_RC: As a loop returns it.
            given_up_RW: Sums of shares of single layers, as a loop returns it; None for none.
            misses_N: As a loop returns it.
        """
        num_prompts = self.events.num_prompts
        given_up = self.given_up_RW
        if given_up_RW is not None:
            given_up = given_up + given_up_RW / self.events.metadata.num_layers
        return Replay(
            policy=self.policy.name,
            capacity_experts=budget.capacity_experts,
            counts_PFC=(counts_RC + self.left_out_RC).reshape(num_prompts, 2, NUM_COUNTERS),
            tokens_PF=self.events.prompt_tokens_PF,
            misses_N=misses_N,
            given_up_PFW=given_up.reshape(num_prompts, 2, NUM_GIVEN_UP),
        )


def prepare(events: Events, policy: Policy, *, keep_warm: bool) -> Prepared:
    """Ask the policy what it knows ahead of the replay; counts have a row for each prompt and phase.

    Raises:
        InputError: The policy needs router weights, and the trace has none; or it decides token by token what to do
            without, and tokens of several prompts run at once, or every access is an event of its own.
    """
    if events.schedule is not None and (policy.demand is not None or policy.decides_by_token):
        raise InputError(
            f"policy {policy.name}: decides token by token what to do without, and a batch asks for several tokens at "
            "once; replay it with a batch of 1"
        )
    if events.shares_A is None and (policy.needs_weights or policy.demand is not None):
        raise InputError(
            f"policy {policy.name}: needs router weights, the trace of {events.metadata.model_id} has none; record "
            "them (extract.weights: true), or choose another policy"
        )
    if policy.needs_weights and events.num_events > events.num_steps * events.metadata.num_layers:
        raise InputError(
            f"policy {policy.name}: decides among the experts of an event, and a sequential replay has one in each; "
            "replay it without --sequential"
        )
    change = policy.changed_demand(events) or ChangedDemand.none(events)
    left_out_RC, given_up_RW = _left_out(events, policy, change)
    wanted = events if change.keep_A.all() else _without(events, ~change.keep_A)
    no_future = np.zeros(0, np.int64)
    common = (
        wanted.members_A,
        wanted.offsets_N,
        wanted.step_N,
        wanted.layer_N,
        wanted.row_N,
        wanted.row_A,
        np.zeros(wanted.num_events, bool) if keep_warm else wanted.starts_prompt_N,
        wanted.next_use_A(within_prompt=not keep_warm) if policy.knows_future else no_future,
        np.ascontiguousarray(policy.scores_SM(wanted), dtype=np.float32),
        np.arange(len(wanted.expert_bytes_M)) // wanted.metadata.num_experts,
    )
    size_VM = np.asarray(policy.precisions)[:, None] * change.bytes_share_M
    return Prepared(policy, wanted, common, policy.prefetches(wanted), size_VM, left_out_RC, given_up_RW)


def _without(events: Events, gone_A: npt.NDArray[np.bool_]) -> Events:
    kept_before_A = np.concatenate([[0], np.cumsum(~gone_A)])
    return replace(
        events,
        members_A=events.members_A[~gone_A],
        offsets_N=kept_before_A[events.offsets_N],
        shares_A=None if events.shares_A is None else events.shares_A[~gone_A],
        owner_A=None if events.owner_A is None else events.owner_A[~gone_A],
    )


def _left_out(
    events: Events, policy: Policy, change: ChangedDemand
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Counts and weight of the accesses that a policy does without from the start, or wants in fewer bits.

    Raises:
        InputError: There are some, and the trace has no weights to say what they were worth.
    """
    num_rows = 2 * events.num_prompts
    counts_RC, given_up_RW = np.zeros((num_rows, NUM_COUNTERS), np.int64), np.zeros((num_rows, NUM_GIVEN_UP))
    low_A = change.keep_A & (change.bytes_share_M[events.members_A] < 1)
    if change.keep_A.all() and not low_A.any():
        return counts_RC, given_up_RW
    if events.shares_A is None:
        raise InputError(
            f"policy {policy.name}: gives up router weight, and the trace of {events.metadata.model_id} does not hold "
            "it; record weights (extract.weights: true), or choose another policy"
        )
    event_A = np.repeat(np.arange(events.num_events), np.diff(events.offsets_N))
    row_A = events.row_A if len(events.row_A) else events.row_N[event_A]
    left_out_R = np.bincount(row_A[~change.keep_A], minlength=num_rows)
    counts_RC[:, ACCESSES] = counts_RC[:, SKIPPED] = left_out_R
    # a step of several tokens is one event a layer for all of them
    worth_A = events.shares_A / events.metadata.num_layers * events.num_tokens_S[events.step_N[event_A]]
    for way, which_A in ((GAVE_UP_SKIPPED, ~change.keep_A), (GAVE_UP_PRECISION, low_A)):
        given_up_RW[:, way] = np.bincount(row_A[which_A], worth_A[which_A], minlength=num_rows)
    return counts_RC, given_up_RW
