"""Which plan to ship: chosen on one half of the prompts, confirmed on the other, so that luck does not decide.

The first half is divided again: policies and splits are fitted to one quarter of all prompts and chosen on the next,
then they are fitted anew to both and measured on the second half, which took no part in any choice.

Shape suffix: P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from moe_beyond.advisor.plans import ANTICIPATE, CacheSize, Fetch, Plan, TrainingData
from moe_beyond.devices.device import Device
from moe_beyond.devices.workload import Workload, dense_size
from moe_beyond.errors import InputError
from moe_beyond.intervals import Interval, Resamples
from moe_beyond.predictor.base import LayerPredictor
from moe_beyond.settings import DEFAULT_SEED
from moe_beyond.simulator.bounds.hit_curves import belady_curve
from moe_beyond.simulator.bounds.time_bound import TimeBound, time_bound
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy_inputs import prepare
from moe_beyond.simulator.engine.timing import TimedReplay, timed_sweep
from moe_beyond.simulator.policies import catalogue
from moe_beyond.simulator.policies.fitted_split import LayerLruFitted
from moe_beyond.simulator.policies.on_demand import LayerLru, Lru
from moe_beyond.simulator.policies.predictions import Predictions, prefetch_width, scaled_width
from moe_beyond.simulator.policies.settings import PolicySettings
from moe_beyond.simulator.schedule.events import Events, Prefill, events_of
from moe_beyond.traces.schema import Trace, TraceMetadata

LEAST_PROMPTS = 8
THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
WIDTHS = (0.5, 1.5, 2.0, 3.0)
"""Beside the router's own k."""
LESS_MEMORY, MORE_MEMORY = (0.25, 0.5, 0.75), (1.25, 1.5, 2.0, 3.0)
PINNED = (0.25, 0.5, 0.75)
"""Shares of the cache that pins take, the rest an LRU."""
SWAPS = ("swap_1", "swap_16")
"""Engines' policies with a number that are tried beside the catalogue's."""
PINS, WARM = "pinned_lru_", "warm_lru_"
USUAL = (Plan(Lru.name), Plan(LayerLru.name, "even"))
"""What engines do today."""


@dataclass(frozen=True)
class AdviceSettings:
    """What the advice is for.

    Attributes:
        device: Where the model is to run.
        size: Of the cache of experts.
        token_step_ms: Charged for the predictor's token step on one thread, before the device's slowdown.
        layer_step_ms: And for its layer step, after every router but a token's last.
        lookahead: For how many layers beyond the present one prefetches may be under way.
        batch: Prompts that run at once.
        block: Tokens that a decode step verifies, as for `events.events_of`.
        accepted_share: Of them the part that is kept.
        dense_bytes: All resident weights beside the experts; None: as traced, else assumed to be as large as a token's
            experts.
        overrun: Whether caches keep what an event has just used, even above their size.
        lossy: Whether plans may change the model's outputs.
        max_tokens: About how many tokens are replayed: every n-th prompt is taken where there are more.
        samples: Resamples behind intervals.
        seed: Of the resamples and of fitted policies.
    """

    device: Device
    size: CacheSize
    token_step_ms: float = 0.0
    layer_step_ms: float = 0.0
    lookahead: int = 2
    batch: int = 1
    block: int = 1
    accepted_share: float | None = None
    dense_bytes: int | None = None
    overrun: bool = False
    lossy: bool = False
    max_tokens: int = 12_000
    samples: int = 1000
    seed: int = DEFAULT_SEED

    @property
    def step_tokens(self) -> int:
        """Tokens of a decode step at most."""
        return self.batch * self.block


@dataclass(frozen=True)
class Measured:
    """One plan on some prompts.

    Attributes:
        plan: The plan.
        budget: Its cache.
        timed: Its replay.
        needs_another_router: Whether it works only with a model that was trained to choose experts a layer earlier.
    """

    plan: Plan
    budget: Budget
    timed: TimedReplay
    needs_another_router: bool

    @property
    def ms_per_token(self) -> float:
        """Mean time of a decoded token."""
        return self.timed.ms_per_token


@dataclass(frozen=True)
class Advice:
    """The recommended plan, and what it was compared with.

    Attributes:
        settings: What the advice is for.
        metadata: The model's shape.
        prefill: How prefill was replayed; `token_by_token` where the trace holds nothing else.
        num_prompts: Prompts to fit to, to choose on and to confirm on.
        tried: Every plan on the prompts to choose on, fastest first.
        not_tried: Policies that could not be tried, and why.
        best: The fastest of them on the second half.
        runner_up: The fastest of another kind, on the second half.
        interval: Time of a token under the fastest, by prompt.
        ahead: By how much the runner-up is slower, paired by prompt.
        today: The faster of what engines do today.
        saved: By how much that is slower, paired by prompt.
        bound: The clairvoyant bound at this cache size.
        capacity_experts: Experts that the cache holds.
        workload: What there is to move and to compute.
        other_memory: The best plan with smaller and larger caches on the second half, by rising size.
        without_blocks: The fastest of that plan and of what engines do today, where every step decodes one token;
            None: it does.
    """

    settings: AdviceSettings
    metadata: TraceMetadata
    prefill: Prefill
    num_prompts: tuple[int, int, int]
    tried: tuple[Measured, ...]
    not_tried: dict[str, str]
    best: Measured
    runner_up: Measured
    interval: Interval
    ahead: Interval
    today: Measured
    saved: Interval
    bound: TimeBound
    capacity_experts: int
    workload: Workload
    other_memory: dict[CacheSize, Measured]
    without_blocks: Measured | None

    @property
    def more_memory(self) -> dict[CacheSize, Measured]:
        """The larger ones of `other_memory`."""
        return {size: more for size, more in self.other_memory.items() if size.total > self.settings.size.total}

    @property
    def dense_bytes(self) -> int:
        """Resident weights beside the experts."""
        return int(self.workload.dense_bytes_L.sum())

    @property
    def share_of_bound(self) -> float:
        """The bound's time over that of the best plan."""
        return self.bound.ms_per_token / self.best.ms_per_token


@dataclass(frozen=True)
class _Part:
    """Prompts, their events, and the predictions for them."""

    trace: Trace
    events: Events
    predictions: Predictions | None


class Advisor:
    """Tries plans on parts of one trace."""

    def __init__(
        self,
        trace: Trace,
        settings: AdviceSettings,
        predictor: LayerPredictor | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Divide the prompts.

        Raises:
            InputError: Too few prompts, a cache that holds no expert, or a predictor of another model.
        """
        settings.size.budget(trace.metadata)
        trace, self.prefill = _decoded(trace)
        if trace.num_prompts < LEAST_PROMPTS:
            raise InputError(
                f"{trace.num_prompts} prompts with decoded tokens; {LEAST_PROMPTS} are the least to choose on "
                "one half and to confirm on the other; record more"
            )
        step = max(1, -(-trace.num_tokens // settings.max_tokens))
        step = min(step, trace.num_prompts // LEAST_PROMPTS)
        kept = np.arange(0, trace.num_prompts, step)
        self.settings, self.predictor, self.meta = settings, predictor, trace.metadata
        dense_bytes, _ = dense_size(self.meta, settings.dense_bytes, settings.device)
        self.workload = Workload.of(self.meta, settings.lookahead, dense_bytes=dense_bytes)
        self.not_tried: dict[str, str] = {}
        self.tell, self.plans_timed = tell, 0
        # neighbours are often of one domain: every part gets some of each
        self.fit, choose = trace.select(kept[0::4]), trace.select(kept[2::4])
        self.half = trace.select(kept[0::2])
        self.choose, self.confirm = (
            self._part(choose, settings.block),
            self._part(trace.select(kept[1::2]), settings.block),
        )

    def advise(self) -> Advice:
        """Choose and confirm."""
        settings = self.settings
        # of plans that are equally fast the one that prefetches least
        tried = sorted(self._try_all(), key=lambda measured: (measured.ms_per_token, _width(measured.plan)))
        best = tried[0]
        second = next((other for other in tried if _kind(other.plan) != _kind(best.plan)), tried[-1])
        data = self._training_data(self.half)
        plans = dict.fromkeys([best.plan, second.plan, *USUAL])
        confirmed = {plan: self._measure(plan, data, self.confirm) for plan in plans}
        first, usual = confirmed[best.plan], min((confirmed[plan] for plan in USUAL), key=lambda m: m.ms_per_token)
        resamples = Resamples.draw(self.confirm.trace.num_prompts, settings.samples, settings.seed)
        slots = min(settings.size.budget(self.meta).capacity_experts, self.meta.num_model_experts)
        # no plan that prefetches nothing during prefills decodes a token faster, on average
        events = self.confirm.events
        curve = belady_curve(events, largest=slots)
        bound = time_bound(events, curve, slots, settings.device, self.workload, overrun=settings.overrun)
        plain = self._part(self.confirm.trace, 1) if settings.block > 1 else None
        return Advice(
            settings=settings,
            metadata=self.meta,
            prefill=self.prefill,
            num_prompts=(self.fit.num_prompts, self.choose.trace.num_prompts, self.confirm.trace.num_prompts),
            tried=tuple(tried),
            not_tried=self.not_tried,
            best=first,
            runner_up=confirmed[second.plan],
            interval=resamples.ratio(first.timed.time),
            ahead=resamples.difference(confirmed[second.plan].timed.time, first.timed.time),
            today=usual,
            saved=resamples.difference(usual.timed.time, first.timed.time),
            bound=bound,
            capacity_experts=slots,
            workload=self.workload,
            other_memory={size: self._measure_at(best.plan, data, size) for size in self._other_sizes()},
            without_blocks=None
            if plain is None
            else min((self._measure(plan, data, plain) for plan in (best.plan, *USUAL)), key=lambda m: m.ms_per_token),
        )

    def _part(self, trace: Trace, block: int) -> _Part:
        settings = self.settings
        # the cache stays warm: continuous batching
        events = events_of(
            trace, self.prefill, batch=settings.batch, block=block, accepted_share=settings.accepted_share
        )
        if self.predictor is None:
            return _Part(trace, events, None)
        predictions = Predictions(self.predictor, trace, events, settings.token_step_ms, settings.layer_step_ms)
        return _Part(trace, events, predictions)

    def _training_data(self, trace: Trace) -> TrainingData:
        # stores of the published size would take minutes; a tenth already holds every domain
        settings = PolicySettings(matrices=100, maps=100).of_seed(self.settings.seed)
        return TrainingData(trace, self.prefill, self.settings.batch, settings)

    def _try_all(self) -> list[Measured]:
        data, measured = self._training_data(self.fit), []
        for plan in self._plain_plans(data):
            try:
                measured.append(self._measure(plan, data, self.choose))
            except InputError as error:
                self.not_tried[plan.policy] = str(error)
        if self.choose.predictions is None:
            return measured
        # under the two best evictions that do not prefetch themselves, and under the predictor's own
        on_demand = [one for one in measured if not one.timed.replay.total.prefetches]
        ranked = [one.plan for one in sorted(on_demand, key=lambda one: one.ms_per_token)]
        evictions = [*ranked[:2], *(plan for plan in ranked[2:] if plan.policy == ANTICIPATE)]
        for eviction, layers in product(evictions, (False, True)):
            measured += self._search_fetch(eviction, data, layers=layers)
        return measured

    def _plain_plans(self, data: TrainingData) -> Iterator[Plan]:
        """Every policy that may be advised, with each split that it can have, without a predictor's prefetches."""
        slots = self.settings.size.budget(self.meta).capacity_experts
        pins = sorted({round(share * slots) for share in PINNED} - {0, slots})
        warm = [f"{WARM}{width * self.meta.top_k}" for width in (1, 2)]
        for name in (*catalogue.known(), *SWAPS, *warm, *(f"{PINS}{number}" for number in pins)):
            if name == LayerLruFitted.name:
                continue  # LRU with a fitted split, which is tried of every policy of single layers
            self.tell(f"{self.plans_timed} plans timed, {name} is fitted")
            try:
                policy = data.fitted(name)
            except InputError as error:
                self.not_tried[name] = str(error)
                continue
            if policy.knows_future or (policy.is_lossy(self.choose.events) and not self.settings.lossy):
                continue
            yield from (Plan(name, split) for split in (("even", "fitted") if policy.per_layer else ("shared",)))
        if self.choose.predictions is not None:
            yield from (Plan(ANTICIPATE, "shared"), Plan(ANTICIPATE, "fitted"))

    def _search_fetch(self, eviction: Plan, data: TrainingData, *, layers: bool) -> list[Measured]:
        """Thresholds at the router's width, then widths at the best of them, then the best for the next token too."""
        k = prefetch_width(self.meta, self.settings.step_tokens)
        fetches = [Fetch(k, threshold, layers) for threshold in THRESHOLDS]
        found = [self._measure(replace(eviction, fetch=fetch), data, self.choose) for fetch in fetches]
        best = fetches[int(np.argmin([measured.ms_per_token for measured in found]))]
        for share in WIDTHS:
            width = scaled_width(self.meta, self.settings.step_tokens, share)
            found.append(self._measure(replace(eviction, fetch=replace(best, width=width)), data, self.choose))
        if self.choose.predictions is not None and self.choose.predictions.later_TLE is not None:
            plan = min(found, key=lambda measured: measured.ms_per_token).plan
            assert plan.fetch is not None  # noqa: S101 - what is searched
            found.append(self._measure(replace(plan, fetch=replace(plan.fetch, next_token=True)), data, self.choose))
        return found

    def _measure(self, plan: Plan, data: TrainingData, part: _Part) -> Measured:
        return self._measure_sizes(plan, data, part, [self.settings.size])[0]

    def _measure_sizes(self, plan: Plan, data: TrainingData, part: _Part, sizes: Sequence[CacheSize]) -> list[Measured]:
        policy = data.policy(plan, part.predictions)
        budgets = [data.budget(plan, policy, self.meta, size) for size in sizes]
        prepared = prepare(part.events, policy, keep_warm=True)
        overrun = self.settings.overrun
        timed = timed_sweep(prepared, budgets, [self.settings.device], self.workload, overrun=overrun)
        self.plans_timed += 1
        self.tell(f"{self.plans_timed} plans timed, {plan.policy} the last")
        return [
            Measured(plan, budget, one, policy.needs_another_router) for budget, one in zip(budgets, timed, strict=True)
        ]

    def _measure_at(self, plan: Plan, data: TrainingData, size: CacheSize) -> Measured:
        """On the prompts that confirm, with another cache, of which pins take the same share."""
        if plan.policy.startswith(PINS):
            pins = int(plan.policy.removeprefix(PINS)) * size.total / self.settings.size.total
            plan = replace(plan, policy=f"{PINS}{max(1, round(pins))}")
        return self._measure_sizes(plan, data, self.confirm, [size])[0]

    def _other_sizes(self) -> list[CacheSize]:
        size, num_experts = self.settings.size, self.meta.num_experts
        least = max(self.meta.expert_bytes) if size.in_bytes else 1
        everything = num_experts * (sum(self.meta.expert_bytes) if size.in_bytes else self.meta.num_layers)
        totals = {min(max(round(size.total * factor), least), everything) for factor in (*LESS_MEMORY, *MORE_MEMORY)}
        return [replace(size, total=total) for total in sorted(totals - {size.total})]


def _decoded(trace: Trace) -> tuple[Trace, Prefill]:
    """The prompts that decode something; where none does, all of them, their prefill taken token by token."""
    decodes_P = np.diff(trace.prompt_offsets) > trace.num_prefill_P
    if not decodes_P.any():
        return trace, "token_by_token"
    return (trace if decodes_P.all() else trace.select(np.nonzero(decodes_P)[0])), "batched"


def _width(plan: Plan) -> int:
    return 0 if plan.fetch is None else plan.fetch.width


def _kind(plan: Plan) -> tuple[str, bool]:
    """Plans that differ in more than numbers."""
    return plan.policy, plan.fetch is not None


def advise(
    trace: Trace,
    settings: AdviceSettings,
    predictor: LayerPredictor | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Advice:
    """Which plan decodes a token in the least time.

    Args:
        trace: Prompts that the predictor was not fitted to.
        settings: Device, memory and rules.
        predictor: What may drive prefetches and evictions; None: plans without one.
        tell: Gets, after each plan, how many were timed.

    Raises:
        InputError: Too few prompts, a cache that holds no expert, or a predictor of another model.
    """
    return Advisor(trace, settings, predictor, tell).advise()
