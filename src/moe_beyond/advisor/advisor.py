"""Which plan to ship: chosen on one half of the prompts, confirmed on the other, so that nobody is misled by luck.

The first half is divided again: policies and splits learn on one quarter of all prompts and are chosen on the next,
then they learn anew on both and are measured on the second half, which took no part in any choice.

Shape suffixes: P prompts, B resamples of prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from moe_beyond.advisor.plans import ANTICIPATE, Fetch, Lessons, Plan, Room, budget_of, policy_of
from moe_beyond.devices.device import Device
from moe_beyond.devices.workload import Workload
from moe_beyond.errors import InputError
from moe_beyond.intervals import Interval, Resamples
from moe_beyond.predictor.base import LayerPredictor
from moe_beyond.simulator.bounds.curves import belady_curve
from moe_beyond.simulator.bounds.time import TimeBound, time_bound
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.timing import TimedReplay, timed_replay
from moe_beyond.simulator.policies import catalogue
from moe_beyond.simulator.policies.fitted_split import LayerLruFitted
from moe_beyond.simulator.policies.on_demand import LayerLru, Lru
from moe_beyond.simulator.policies.predictions import Predictions, prefetch_width
from moe_beyond.simulator.policies.settings import PolicySettings
from moe_beyond.simulator.schedule.events import Events, Prefill, events_of
from moe_beyond.traces.schema import Trace, TraceMetadata

LEAST_PROMPTS = 8
THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
WIDTHS = (0.5, 1.5, 2.0, 3.0)
"""Beside the router's own k."""
MORE_MEMORY = (1.25, 1.5, 2.0, 3.0)
USUAL = (Plan(Lru.name), Plan(LayerLru.name, "even"))
"""What engines do today."""


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        device: Where the model is to run.
        room: Memory for the cache of experts.
        token_step_ms: Charged for the predictor's token step on one thread, before the device's slowdown.
        layer_step_ms: And for its layer step, after every router but a token's last.
        lookahead: For how many layers beyond the present one prefetches may be under way.
        batch: Prompts that run at once.
        dense_bytes: All resident weights beside the experts; None: assumed to weigh what a token's experts do.
        lossy: Whether plans may give up router weight.
        max_tokens: About how many tokens are replayed: every n-th prompt is taken where there are more.
        samples: Resamples behind intervals.
        seed: Of the resamples and of fitted policies.
    """

    device: Device
    room: Room
    token_step_ms: float = 0.0
    layer_step_ms: float = 0.0
    lookahead: int = 2
    batch: int = 1
    dense_bytes: int | None = None
    lossy: bool = False
    max_tokens: int = 12_000
    samples: int = 1000
    seed: int = 7


@dataclass(frozen=True)
class Measured:
    """One plan on some prompts.

    Attributes:
        plan: The plan.
        budget: Its cache.
        timed: Its replay.
    """

    plan: Plan
    budget: Budget
    timed: TimedReplay

    @property
    def ms_per_token(self) -> float:
        """Mean time of a decoded token."""
        return self.timed.ms_per_token


@dataclass(frozen=True)
class MoreMemory:
    """What a larger cache would give: the chosen plan on the second half."""

    room: Room
    measured: Measured


@dataclass(frozen=True)
class Advice:
    """The answer.

    Attributes:
        question: What was asked.
        metadata: The model's shape.
        prefill: How prefill was replayed; `token_by_token` where the trace holds nothing else.
        num_prompts: Prompts to learn from, to choose on and to confirm on.
        tried: Every plan on the prompts to choose on, fastest first.
        refused: Policies that could not be tried, and why.
        best: The fastest of them on the second half.
        runner_up: The fastest of another kind, on the second half.
        interval: Time of a token under the fastest, by prompt.
        ahead: By how much the runner-up is slower, paired by prompt.
        today: The faster of what engines do today.
        saved: By how much that is slower, paired by prompt.
        resident_ms: Time of a token if all experts lay in memory.
        bound_ms: Time of a token under perfect foresight at this budget.
        capacity_experts: Experts that the cache holds.
        dense_bytes: Resident weights beside the experts.
        more_memory: Larger caches.
    """

    question: Question
    metadata: TraceMetadata
    prefill: Prefill
    num_prompts: tuple[int, int, int]
    tried: tuple[Measured, ...]
    refused: dict[str, str]
    best: Measured
    runner_up: Measured
    interval: Interval
    ahead: Interval
    today: Measured
    saved: Interval
    resident_ms: float
    bound_ms: float
    capacity_experts: int
    dense_bytes: int
    more_memory: tuple[MoreMemory, ...]

    @property
    def share_of_bound(self) -> float:
        """How much of what perfect foresight would reach the chosen plan does."""
        return self.bound_ms / self.best.ms_per_token


@dataclass(frozen=True)
class _Part:
    """Prompts, what they ask for, and what the predictor says of them."""

    trace: Trace
    events: Events
    answers: Predictions | None


class Advisor:
    """Tries plans on parts of one trace."""

    def __init__(self, trace: Trace, question: Question, predictor: LayerPredictor | None = None) -> None:
        """Divide the prompts.

        Raises:
            InputError: Too few prompts, a budget that holds no expert, or a predictor of another model.
        """
        question.room.budget(trace.metadata)
        trace, self.prefill = _decoded(trace)
        if trace.num_prompts < LEAST_PROMPTS:
            raise InputError(
                f"trace: {trace.num_prompts} prompts with decoded tokens; {LEAST_PROMPTS} are the least to choose on "
                "one half and to confirm on the other; record more"
            )
        step = max(1, -(-trace.num_tokens // question.max_tokens))
        step = min(step, trace.num_prompts // LEAST_PROMPTS)
        kept = np.arange(0, trace.num_prompts, step)
        self.question, self.predictor, self.meta = question, predictor, trace.metadata
        self.refused: dict[str, str] = {}
        # neighbours are often of one domain: deal them out in turn
        self.learn, choose = trace.select(kept[0::4]), trace.select(kept[2::4])
        self.half = trace.select(kept[0::2])
        self.choose, self.confirm = self._part(choose), self._part(trace.select(kept[1::2]))

    def advise(self) -> Advice:
        """Choose and confirm."""
        # of plans that are equally fast the one that fetches least
        tried = sorted(self._try_all(), key=lambda measured: (measured.ms_per_token, _width(measured.plan)))
        best = tried[0]
        second = next((other for other in tried if _kind(other.plan) != _kind(best.plan)), tried[-1])
        lessons = self._lessons(self.half)
        plans = dict.fromkeys([best.plan, second.plan, *USUAL])
        confirmed = {plan: self._measure(plan, lessons, self.confirm, self.question.room) for plan in plans}
        first, usual = confirmed[best.plan], min((confirmed[plan] for plan in USUAL), key=lambda m: m.ms_per_token)
        resamples = Resamples.draw(self.confirm.trace.num_prompts, self.question.samples, self.question.seed)
        budget = self.question.room.budget(self.meta)
        bound = self._bound(budget.capacity_experts)
        return Advice(
            question=self.question,
            metadata=self.meta,
            prefill=self.prefill,
            num_prompts=(self.learn.num_prompts, self.choose.trace.num_prompts, self.confirm.trace.num_prompts),
            tried=tuple(tried),
            refused=self.refused,
            best=first,
            runner_up=confirmed[second.plan],
            interval=resamples.ratio(first.timed.time),
            ahead=_slower(confirmed[second.plan], first, resamples),
            today=usual,
            saved=_slower(usual, first, resamples),
            resident_ms=bound.compute_ms_per_token,
            bound_ms=bound.ms_per_token,
            capacity_experts=min(budget.capacity_experts, self.meta.num_model_experts),
            dense_bytes=int(self._workload.dense_bytes_L.sum()),
            more_memory=tuple(self._more_memory(best.plan, lessons)),
        )

    def _part(self, trace: Trace) -> _Part:
        # a cold cache is not asked for: continuous batching
        events = events_of(trace, self.prefill, batch=self.question.batch)
        if self.predictor is None:
            return _Part(trace, events, None)
        question = self.question
        said = Predictions(self.predictor, trace, events, question.token_step_ms, question.layer_step_ms)
        return _Part(trace, events, said)

    def _lessons(self, training: Trace) -> Lessons:
        # stores of the published size would take minutes; a tenth already holds every domain
        settings = PolicySettings(matrices=100, maps=100, seed=self.question.seed)
        return Lessons(training, self.prefill, self.question.batch, settings)

    def _try_all(self) -> Iterator[Measured]:
        lessons, room = self._lessons(self.learn), self.question.room
        plain = [measured for plan in self._plain_plans(lessons) if (measured := self._attempt(plan, lessons, room))]
        yield from plain
        if self.choose.answers is None:
            return
        # under the two best evictions that do not fetch ahead themselves, and under the predictor's own
        still = [m.plan for m in sorted(plain, key=lambda m: m.ms_per_token) if not m.timed.replay.total.prefetches]
        evictions = [*still[:2], *(plan for plan in still[2:] if plan.policy == ANTICIPATE)]
        for eviction, layers in product(evictions, (False, True)):
            yield from self._search_fetch(eviction, lessons, layers=layers)

    def _plain_plans(self, lessons: Lessons) -> Iterator[Plan]:
        for name in catalogue.known():
            if name == LayerLruFitted.name:
                continue  # LRU with a fitted split, which is tried of every policy of single layers
            try:
                policy = lessons.policy(name)
            except InputError as error:
                self.refused[name] = str(error)
                continue
            if policy.knows_future or (_may_lose(policy, self.choose.events) and not self.question.lossy):
                continue
            yield from (Plan(name, split) for split in (("even", "fitted") if policy.per_layer else ("shared",)))
        if self.choose.answers is not None:
            yield from (Plan(ANTICIPATE, "shared"), Plan(ANTICIPATE, "fitted"))

    def _search_fetch(self, eviction: Plan, lessons: Lessons, *, layers: bool) -> Iterator[Measured]:
        """Thresholds at the router's width, then widths at the best of them."""
        k = prefetch_width(self.meta, self.question.batch)
        found = [self._fetching(eviction, Fetch(k, threshold, layers), lessons) for threshold in THRESHOLDS]
        best = min(found, key=lambda measured: measured.ms_per_token).plan.fetch
        if best is None:
            raise AssertionError("only plans that fetch were tried")
        for share in WIDTHS:
            width = min(max(1, round(share * k)), self.meta.num_experts)
            found.append(self._fetching(eviction, replace(best, width=width), lessons))
        yield from found

    def _fetching(self, eviction: Plan, fetch: Fetch, lessons: Lessons) -> Measured:
        return self._measure(replace(eviction, fetch=fetch), lessons, self.choose, self.question.room)

    def _attempt(self, plan: Plan, lessons: Lessons, room: Room) -> Measured | None:
        try:
            return self._measure(plan, lessons, self.choose, room)
        except InputError as error:
            self.refused[plan.policy] = str(error)
            return None

    def _measure(self, plan: Plan, lessons: Lessons, part: _Part, room: Room) -> Measured:
        policy = policy_of(plan, lessons, part.answers)
        budget = budget_of(plan, policy, lessons, self.meta, room)
        device, workload = self.question.device, self._workload
        return Measured(plan, budget, timed_replay(part.events, policy, budget, device, workload))

    @cached_property
    def _workload(self) -> Workload:
        return Workload.of(self.meta, self.question.lookahead, dense_bytes=self.question.dense_bytes)

    def _bound(self, capacity: int) -> TimeBound:
        """No plan that prefetches nothing during prefills decodes a token faster, on average."""
        events, slots = self.confirm.events, min(capacity, self.meta.num_model_experts)
        return time_bound(events, belady_curve(events, largest=slots), slots, self.question.device, self._workload)

    def _more_memory(self, plan: Plan, lessons: Lessons) -> Iterator[MoreMemory]:
        asked = self.question.room
        all_of_it = self.meta.num_experts * (sum(self.meta.expert_bytes) if asked.in_bytes else self.meta.num_layers)
        totals = sorted({min(round(asked.total * factor), all_of_it) for factor in MORE_MEMORY})
        for room in (replace(asked, total=total) for total in totals if total > asked.total):
            yield MoreMemory(room, self._measure(plan, lessons, self.confirm, room))


def _decoded(trace: Trace) -> tuple[Trace, Prefill]:
    """The prompts that decode something; where none does, all of them, their prefill taken token by token."""
    decodes_P = np.diff(trace.prompt_offsets) > trace.num_prefill_P
    if not decodes_P.any():
        return trace, "token_by_token"
    return (trace if decodes_P.all() else trace.select(np.nonzero(decodes_P)[0])), "batched"


def _may_lose(policy: Policy, events: Events) -> bool:
    return policy.demand is not None or policy.changed_demand(events) is not None


def _width(plan: Plan) -> int:
    return 0 if plan.fetch is None else plan.fetch.width


def _kind(plan: Plan) -> tuple[str, bool]:
    """Plans that differ in more than numbers."""
    return plan.policy, plan.fetch is not None


def _slower(other: Measured, best: Measured, resamples: Resamples) -> Interval:
    return resamples.difference(other.timed.time, best.timed.time)


def advise(trace: Trace, question: Question, predictor: LayerPredictor | None = None) -> Advice:
    """Which plan decodes a token in the least time.

    Args:
        trace: Prompts that the predictor has not learned from.
        question: Device, memory and rules.
        predictor: What may fetch ahead and evict; None: plans without one.

    Raises:
        InputError: Too few prompts, a budget that holds no expert, or a predictor of another model.
    """
    return Advisor(trace, question, predictor).advise()


__all__ = ["Advice", "Advisor", "Measured", "MoreMemory", "Question", "advise"]
