"""A cache that a running model steps, event by event: `stepper` with the arrays that it works on.

It counts as a replay does. Whoever steps it loads the experts, in real time: it says which, and in which order.

Shape suffixes: I members of an event, M experts of the model, V precisions, R rows of counts (a prompt and a phase),
P prompts, F phases, L MoE layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.engine import cache, stepper
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import SCORE, Policy
from moe_beyond.simulator.engine.policy_inputs import units_of
from moe_beyond.simulator.engine.results import Replay
from moe_beyond.simulator.engine.stepper import BEGIN, NOTHING
from moe_beyond.simulator.engine.usage import LOST_PRECISION, LOST_SKIPPED, NUM_LOSSES, full_precision
from moe_beyond.simulator.jit import F32, F64, I32, I64, Bools
from moe_beyond.traces.schema import TraceMetadata

__all__ = ["NOTHING", "Routed", "SteppedCache"]

_NO_SHARES, _NO_ROWS = np.zeros(0, np.float32), np.zeros(0, np.int64)


@dataclass(frozen=True)
class Routed:
    """What was decided for the members of an event; none of them where the policy skips all.

    Attributes:
        members_I: int32, the experts that the router chose and the policy did not skip from the start.
        outcome_I: int8, a number of `usage`.
        computes_I: int64, the expert that computes for each of them, or -1.
        precision_I: int64, at which precision, or -1.
    """

    members_I: I32
    outcome_I: npt.NDArray[np.int8]
    computes_I: I64
    precision_I: I64


class SteppedCache:
    """The state of one policy at one budget.

    Attributes:
        event: Number of the event that runs; events count on over all prompts, L of them a step.
        step: Its step; -1 before the first.
    """

    def __init__(
        self,
        policy: Policy,
        meta: TraceMetadata,
        budget: Budget,
        num_prompts: int,
        *,
        lookahead: int,
        bytes_share_M: F64 | None = None,
        size_VM: F64 | None = None,
        overrun: bool = False,
    ) -> None:
        """An empty cache.

        Args:
            policy: What is evicted, and what is skipped or replaced.
            meta: The model's shape and the size of its experts.
            budget: How much the cache holds.
            num_prompts: Prompts that will run.
            lookahead: For how many layers beyond the present one prefetches may start.
            bytes_share_M: Bytes of each expert as a share of the whole ones, as the policy says; None: 1. Below 1 its
                weight counts as lost to low precision.
            size_VM: What they are at each precision where they exist; None: as the policy says.
            overrun: As for `replay.replay`.
        """
        self._policy, self._meta, self._budget, self._overrun = policy, meta, budget, overrun
        self._lookahead = lookahead if policy.lookahead is None else policy.lookahead
        num_experts = meta.num_model_experts
        share_M = np.ones(num_experts) if bytes_share_M is None else bytes_share_M
        size_VM = np.asarray(policy.precisions)[:, None] * share_M if size_VM is None else size_VM
        self._is_low_M = None if bytes_share_M is None else share_M < 1
        whole_M = np.repeat(np.asarray(meta.expert_bytes, np.int64), meta.num_experts)
        self.bytes_VM: I64 = np.asarray(np.rint(whole_M * size_VM), np.int64)
        self._units_VM, budget_G = units_of(policy, meta, budget, size_VM)
        layer_M = np.arange(num_experts) // meta.num_experts
        self._features, self._experts, self._groups, self._residents, self._counts_RC = cache.new_cache(
            layer_M, self.bytes_VM[0], self._units_VM[0], budget.group_M, budget_G, 2 * num_prompts
        )
        self._weight_lost_RW = np.zeros((2 * num_prompts, NUM_LOSSES))
        self._link, self._requests = stepper.new_link(meta.num_layers)
        # a layer has two places, so that a request is written beside the one that it replaces
        self._experts_X = np.zeros(2 * num_experts, np.int32)
        self._priorities_X = np.zeros(2 * num_experts, np.float32)
        self._postponed: dict[int, I32] = {}
        self._busy_M = np.full(num_experts, NOTHING)
        self._actions_I, self._computes_I, self._precision_I = np.empty((3, num_experts), np.int64)
        self._outcome_I = np.zeros(num_experts, np.int8)
        self.event, self.step, self._now, self._row, self._num_tokens = 0, -1, 0, 0, 0
        self._routed, self._tokens_PF = False, np.zeros((num_prompts, 2), np.int64)

    @property
    def capacity_experts(self) -> int:
        """Experts that fit; of a budget in bytes, how many of the smallest."""
        return self._budget.capacity_experts

    @property
    def most_residents(self) -> int:
        """Experts that may be resident at once, each at its fewest bytes."""
        return int(self._groups[cache.BUDGET].sum() // self._units_VM.min())

    @property
    def layer(self) -> int:
        """Index of the MoE layer that runs."""
        return self.event % self._meta.num_layers

    @property
    def loading(self) -> int:
        """The expert whose prefetch is under way, or NOTHING."""
        return int(self._link[stepper.LOADING])

    @property
    def has_requests(self) -> bool:
        """Whether anything may be requested for this event or a later one."""
        return bool(self._link[stepper.FARTHEST] >= self.event)

    @property
    def resident_M(self) -> Bools:
        """True for experts that have a place in the cache, also those whose prefetch is under way."""
        return np.asarray(self._experts[cache.PLACE] != cache.ABSENT)

    def begin_step(self, prompt: int, num_tokens: int, *, decodes: bool) -> None:
        """The model begins with one token of a prompt, or with its whole prefill.

        Args:
            prompt: Its number, from 0.
            num_tokens: Tokens of the step.
            decodes: Whether it is a decode step.
        """
        self.step += 1
        self._row, self._num_tokens = 2 * prompt + decodes, num_tokens
        self._tokens_PF[prompt, int(decodes)] += num_tokens

    def set_scores(self, scores_M: F32) -> None:
        """Make a row of the policy's scores readable for ranks: M values, or 2 M."""
        cache.set_scores(self._features, scores_M)

    def request(self, target: int, experts_W: npt.NDArray[np.integer], scores_E: F32 | None = None) -> None:
        """Request experts of a layer for an event that has not begun, in order of priority.

        It counts once the event is no more than the lookahead away, and replaces what was requested for it before.
        Scores are those of the layer's experts from now on.
        """
        if scores_E is not None:
            layer, experts = target % self._meta.num_layers, self._meta.num_experts
            self._features[SCORE, layer * experts : (layer + 1) * experts] = scores_E
        if target - self.event > self._lookahead:
            self._postponed[target] = experts_W.astype(np.int32)
            return
        self._postponed.pop(target, None)
        layer = target % self._meta.num_layers
        first = 2 * layer * self._meta.num_experts
        if self._requests[BEGIN, layer] == first:
            first += self._meta.num_experts
        self._experts_X[first : first + len(experts_W)] = experts_W
        stepper.add_request(
            self._experts, self._link, self._requests, self._experts_X, layer, target, first, first + len(experts_W)
        )

    def start_prefetch(self) -> int:
        """The link is free: the expert that it loads next, which now has its place, or NOTHING."""
        if not self.has_requests:
            return NOTHING
        # as in a replay: until its router has chosen, the layer has not run
        layer = self.layer if self._routed else self.layer - 1
        return int(
            stepper.start_prefetch(
                self._policy.rank,
                self._features,
                self._experts,
                self._groups,
                self._residents,
                self._counts_RC,
                self._link,
                self._requests,
                self._experts_X,
                self._priorities_X,
                self.bytes_VM,
                self._units_VM,
                self.event,
                self.layer,
                (self._now, self.step, layer, self._row),
            )
        )

    def finish_prefetch(self) -> None:
        """The expert whose prefetch was under way is there."""
        stepper.finish_prefetch(self._experts, self._link)

    def route(self, members_I: I32, shares_I: F32 | None = None, keep_I: Bools | None = None) -> Routed:
        """The event's router has chosen.

        Args:
            members_I: Model-wide ids, distinct; of one token in the router's order, else as `events.members_of` has
                them.
            shares_I: Each member's share of the router weight; needed by policies that read weights.
            keep_I: False for members that the policy skips; None: it keeps all.
        """
        shares_I = _NO_SHARES if shares_I is None else shares_I
        if keep_I is not None and not keep_I.all():
            skipped = int((~keep_I).sum())
            self._counts_RC[self._row, [cache.ACCESSES, cache.SKIPPED]] += skipped
            self._weight_lost_RW[self._row, LOST_SKIPPED] += shares_I[~keep_I].sum() * self._num_tokens
            members_I, shares_I = members_I[keep_I], shares_I[keep_I]
        if self._is_low_M is not None:
            low = shares_I[self._is_low_M[members_I]].sum()
            self._weight_lost_RW[self._row, LOST_PRECISION] += low * self._num_tokens
        demand, count = self._policy.demand, len(members_I)
        stepper.route(
            self._policy.rank,
            demand or full_precision,
            demand is not None and bool(self._row % 2),
            self._policy.bypass,
            self._overrun,
            self._features,
            self._experts,
            self._groups,
            self._residents,
            self._counts_RC,
            self._weight_lost_RW,
            self._link,
            self._requests,
            self.bytes_VM,
            self._units_VM,
            self._busy_M,
            np.ascontiguousarray(members_I, np.int32),
            np.ascontiguousarray(shares_I, np.float32),
            _NO_ROWS,
            _NO_ROWS,
            0,
            count,
            self._now,
            self.event,
            self.step,
            self.layer,
            self._row,
            self._actions_I,
            self._outcome_I,
            self._computes_I,
            self._precision_I,
        )
        self._now += count
        self._routed = True
        return Routed(
            members_I, self._outcome_I[:count].copy(), self._computes_I[:count].copy(), self._precision_I[:count].copy()
        )

    def end_event(self) -> None:
        """The event's experts have computed: the next event begins."""
        self.event += 1
        self._routed = False
        if self.layer:
            self.release()

    def result(self) -> Replay:
        """What was counted so far, as a replay gives it; prefetches that may still be used count as useless."""
        counts_RC = self._counts_RC.copy()
        cache.count_useless(self._experts, counts_RC)
        num_prompts = len(self._tokens_PF)
        return Replay(
            policy=self._policy.name,
            capacity_experts=self._budget.capacity_experts,
            counts_PFC=counts_RC.reshape(num_prompts, 2, -1),
            tokens_PF=self._tokens_PF,
            misses_N=np.zeros(0, np.int32),
            weight_lost_PFW=(self._weight_lost_RW / self._meta.num_layers).reshape(num_prompts, 2, NUM_LOSSES),
        )

    def release(self) -> None:
        """Requests whose event has come near count from now on: at a step's first event after the token step."""
        near: Sequence[int] = [target for target in self._postponed if target - self.event <= self._lookahead]
        for target in sorted(near):
            self.request(target, self._postponed[target])
