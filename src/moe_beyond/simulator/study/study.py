"""The simulate stage's work: every policy at every capacity and on every device, on every test split."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moe_beyond.errors import InputError
from moe_beyond.intervals import Resamples
from moe_beyond.parallel import run_tasks
from moe_beyond.predictor.base import Predictor
from moe_beyond.predictor.baselines import Popularity
from moe_beyond.predictor.from_hidden import FromHidden
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.simulator.bounds.belady import Belady
from moe_beyond.simulator.bounds.hit_curves import belady_curve
from moe_beyond.simulator.bounds.time_bound import TimeBound, time_bound
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.results import Replay
from moe_beyond.simulator.engine.timing import TimedReplay
from moe_beyond.simulator.jit import F32, I64
from moe_beyond.simulator.policies.catalogue import build, known
from moe_beyond.simulator.policies.guesses import Guesses, GuessPrefetch
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.predictions import Predictions, prefetch_width
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.study.case import Case, case_of, first_tokens
from moe_beyond.simulator.study.grid import Facts, PolicyReplays, replay_policy
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.traces.schema import Trace, TraceMetadata

Place = tuple[str, int]
"""A device's name and a capacity in experts."""


@dataclass(frozen=True)
class Charged:
    """A predictor with what is charged for its steps, in milliseconds on one thread.

    Attributes:
        predictor: Predicts the experts.
        token_step_ms: Charged ahead of every decoded token.
        layer_step_ms: Charged after the router of every layer but the last.
        variant: Whether it is the first predictor again with another layer step: no rival to it, and where its token
            step works alone the same, so that it is not replayed again.
    """

    predictor: Predictor
    token_step_ms: float
    layer_step_ms: float = 0.0
    variant: bool = False

    @classmethod
    def of(cls, predictor: OnnxPredictor, *, variant: bool = False) -> Charged:
        """With what is charged in its folder."""
        return cls(predictor, predictor.charge.token_step_ms, predictor.charge.layer_step_ms, variant)

    @classmethod
    def reader(cls, predictor: FromHidden, training: Trace) -> Charged:
        """A reader of hidden states, measured here; what predicts a layer itself works ahead of the first one too."""
        width = 0 if training.hidden is None else training.hidden.width
        step_ms = predictor.charged_ms(predictor.step_ms(training.metadata, width))
        return cls(predictor, 0.0 if predictor.first_ahead else step_ms, step_ms)


@dataclass(frozen=True)
class Ablated:
    """One step of the ablation: what was added, and its replays."""

    added: str
    replays: PolicyReplays


@dataclass(frozen=True)
class SplitReplays:
    """All replays of one split.

    Attributes:
        split: Name of the split.
        trace: Its routing.
        case: What is replayed and timed.
        policies: Of each policy in order; those without replays hold the reason.
        bounds: The clairvoyant bound of each device and capacity; empty where nothing is decoded.
        ablation: Ours put together piece by piece, at the headline capacity; empty without a predictor.
        predictions: Of each predictor.
        own: Names of the first predictor and of its variants.
        chosen: The way of using the first predictor at each device and capacity, chosen on validation prompts.
    """

    split: str
    trace: Trace
    case: Case
    policies: tuple[PolicyReplays, ...]
    bounds: Mapping[Place, TimeBound]
    ablation: tuple[Ablated, ...]
    predictions: tuple[Predictions, ...]
    own: tuple[str, ...]
    chosen: Mapping[Place, str]

    @property
    def metadata(self) -> TraceMetadata:
        """The model's shape."""
        return self.trace.metadata

    @property
    def decoded_P(self) -> I64:
        """Decoded tokens of each prompt."""
        return np.asarray(self.case.events.prompt_tokens_PF[:, 1])

    def at(self, capacity_experts: int) -> dict[str, Replay]:
        """The replays of one capacity by policy."""
        replays = [replay for policy in self.policies for replay in policy.replays]
        return {replay.policy: replay for replay in replays if replay.capacity_experts == capacity_experts}

    def timed_at(self, place: Place) -> dict[str, TimedReplay]:
        """What was timed on a device at a capacity, by policy; nothing where nothing is decoded."""
        found = {
            timed.replay.policy: timed
            for policy in self.policies
            for timed in policy.timed
            if (timed.device.name, timed.replay.capacity_experts) == place
        }
        return found if self.decoded_P.any() else {}

    @property
    def facts(self) -> dict[str, Facts]:
        """Facts of every policy by name."""
        return {policy.facts.policy: policy.facts for policy in self.policies}

    def draws(self, seed: int) -> Resamples:
        """Resamples of the prompts behind every interval."""
        return Resamples.draw(self.trace.num_prompts, self.case.settings.bootstrap_samples, seed)

    def policies_of_ours(self) -> list[Policy]:
        """The ways of using the first predictor; none without one."""
        return _policies(self.predictions[:1], self.case.settings)

    @property
    def places(self) -> list[Place]:
        """Every device and timed capacity, devices first."""
        return [(device.name, slots) for device in self.case.devices for slots in self.case.timed_slots]

    def best_without_predictor(self, place: Place) -> TimedReplay | None:
        """The fastest policy that the first predictor does not drive."""
        return self.fastest(place, lambda facts: not any(map(facts.is_driven_by, self.own)))

    def fastest(self, place: Place, may_win: Callable[[Facts], bool]) -> TimedReplay | None:
        """The fastest policy at a place, chosen with hindsight on these very prompts; None: there is none.

        Args:
            place: Device and capacity.
            may_win: Which of the policies that can be built and keep the model's outputs are compared.
        """
        facts = self.facts
        found = [timed for name, timed in self.timed_at(place).items() if facts[name].can_win and may_win(facts[name])]
        return min(found, key=lambda timed: timed.ms_per_token, default=None)


def replay_splits(
    splits: Mapping[str, Trace],
    training: Trace,
    validation: Trace,
    predictors: Sequence[Charged],
    settings: SimulateSettings,
    *,
    rivals: Sequence[Charged] = (),
) -> list[SplitReplays]:
    """Replay every split.

    Args:
        splits: Test traces by name.
        training: The training split: the only one that a policy may learn from.
        validation: What chooses how the first predictor is used.
        predictors: Predictors that prefetch and evict; the first one is ours.
        settings: Capacities and rules.
        rivals: Readers of hidden states (`predictor.from_hidden`), which prefetch over LRU and over the first
            predictor's eviction where a split has hidden states, at the headline's capacity; the first of them over LRU
            at every capacity.

    Raises:
        InputError: A split is of another model than the training split; a policy or device that is not known; a policy
            listed by name that the traces do not allow.
    """
    for name, trace in {"validation": validation, **splits}.items():
        training.metadata.require_same_model(trace.metadata, name)
    listed, not_replayed = listed_policies(training, settings)
    popularity_LE = Popularity.fit(training).popularity_LE
    chosen = _choose(validation, popularity_LE, predictors, settings)
    jobs: list[tuple[Case, Policy, bool]] = []
    prepared = []
    for trace in splits.values():
        # all predictions are made beforehand: other processes need no hidden states
        case = case_of(replace(trace, hidden=None), settings)
        predictions = [_predictions(charged, trace, case.events, popularity_LE) for charged in predictors]
        ablation = _ablation(predictions, settings)
        every = [policy.beside(trace) for policy in listed]
        for charged, one in zip(predictors, predictions, strict=True):
            every += [way for way in _policies([one], settings) if not charged.variant or way.layer_step_ms > 0]
        every.sort(key=lambda policy: policy.knows_future)  # bounds last
        at_headline = replace(case, slots=(case.headline_slots,), timed_slots=(case.headline_slots,))
        own = [(case, policy, True) for policy in every]
        for place, rival in enumerate(rivals if trace.hidden is not None else ()):
            over_lru, *over_ours = _guessing(rival, trace, predictions)
            own.append((at_headline if place else case, over_lru, False))
            own += [(at_headline, policy, False) for policy in over_ours]
        jobs += [*own, *((at_headline, policy, False) for _, policy in ablation)]
        prepared.append((case, predictions, ablation, len(own)))
    done = iter(_run(jobs, settings.workers))
    results: list[SplitReplays] = []
    for (name, trace), (case, predictions, ablation, count) in zip(splits.items(), prepared, strict=True):
        policies = (*itertools.islice(done, count), *not_replayed)
        ablated = tuple(Ablated(added, next(done)) for added, _ in ablation)
        names = tuple(
            one.name
            for place, (one, charged) in enumerate(zip(predictions, predictors, strict=True))
            if place == 0 or charged.variant
        )
        results.append(
            SplitReplays(name, trace, case, policies, _bounds(case), ablated, tuple(predictions), names, chosen)
        )
        if not results[-1].decoded_P.any():
            Console(stderr=True, soft_wrap=True).print(
                f"{name}: nothing is decoded, so nothing is timed; simulate.prefill: token_by_token decodes all of it"
            )
    return results


def listed_policies(training: Trace, settings: SimulateSettings) -> tuple[list[Policy], list[PolicyReplays]]:
    """The policies that no predictor drives, and those that the training split does not allow.

    Raises:
        InputError: A name that is not known, or a listed one that the training split does not allow.
    """
    names = list(known()) if settings.policies is None else list(settings.policies)
    names += [name for name in (Lru.name, Belady.name) if name not in names]
    policies: list[Policy] = []
    not_replayed: list[PolicyReplays] = []
    for name in names:
        try:
            policies.append(build(name, training, settings.published_policies))
        except InputError as error:
            if settings.policies is not None:
                raise
            facts = Facts(name, name, None, False, False, False, False)
            not_replayed.append(PolicyReplays(facts, not_replayed=str(error)))
    return policies, not_replayed


def _choose(
    validation: Trace, popularity_LE: F32, predictors: Sequence[Charged], settings: SimulateSettings
) -> dict[Place, str]:
    """By device and capacity the fastest way of using the first predictor on validation prompts."""
    if not predictors or not settings.devices:
        return {}
    trace = first_tokens(validation, settings.choose_tokens)
    case = case_of(replace(trace, hidden=None), settings)
    if not case.events.is_decode_S.any():
        return {}
    ours = _predictions(predictors[0], trace, case.events, popularity_LE)
    jobs = [(case, policy, False) for policy in _policies([ours], settings)]
    timed = [one for replays in _run(jobs, settings.workers) for one in replays.timed]
    fastest: dict[Place, TimedReplay] = {}
    for one in timed:
        place = (one.device.name, one.replay.capacity_experts)
        if place not in fastest or one.ms_per_token < fastest[place].ms_per_token:
            fastest[place] = one
    return {place: one.replay.policy for place, one in fastest.items()}


def _policies(predictions: Sequence[Predictions], settings: SimulateSettings) -> list[Policy]:
    """The ways of using each predictor."""
    return [
        policy
        for one in predictions
        for policy in one.policies(
            prefetch_width(one.trace.metadata, settings.step_tokens, settings.prefetch_width),
            settings.prefetch_threshold,
        )
    ]


def _guessing(rival: Charged, trace: Trace, predictions: Sequence[Predictions]) -> list[GuessPrefetch]:
    """The ways of using a reader of hidden states: over LRU, and over the first predictor's eviction."""
    reader = rival.predictor
    if not isinstance(reader, FromHidden):
        raise TypeError(f"{reader.name} reads no hidden states")
    width = trace.metadata.top_k
    guesses, name = Guesses.of(reader, trace, width), reader.name.replace(" ", "_").replace("-", "_")
    evictions: list[Policy] = [Lru(), *(one.eviction() for one in predictions[:1])]
    return [
        GuessPrefetch.over(out, name, guesses, width, token_ms=rival.token_step_ms, layer_ms=rival.layer_step_ms)
        for out in evictions
    ]


def _predictions(charged: Charged, trace: Trace, events: Events, popularity_LE: F32) -> Predictions:
    return Predictions(charged.predictor, trace, events, charged.token_step_ms, charged.layer_step_ms, popularity_LE)


def _ablation(predictions: Sequence[Predictions], settings: SimulateSettings) -> list[tuple[str, Policy]]:
    """Ours put together piece by piece; every step keeps what the steps before it added."""
    if not predictions:
        return []
    ours, threshold = predictions[0], max(settings.prefetch_threshold, settings.ablation_threshold)
    width = prefetch_width(ours.trace.metadata, settings.step_tokens, settings.prefetch_width)
    layers = ours.has_layer_step
    steps: list[tuple[str, Policy]] = [("lru", Lru())]
    steps.append(("prefetch by token step", ours.prefetch(Lru(), width)))
    if layers:
        steps.append(("prefetch by layer step", ours.prefetch(Lru(), width, layers=True)))
    steps.append((f"only above {threshold:g}", ours.prefetch(Lru(), width, threshold, layers=layers)))
    for label, bypass in (("eviction by predicted next use", False), ("bypass", True)):
        steps.append((label, ours.prefetch(ours.eviction(bypass=bypass), width, threshold, layers=layers)))
    return [*steps, ("belady", Belady())]


def _run(jobs: Sequence[tuple[Case, Policy, bool]], workers: int) -> list[PolicyReplays]:
    """Every job, shared among processes, in the order of the jobs."""
    results: dict[int, PolicyReplays] = {}
    columns = (TextColumn("replaying policies"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        tasks = ((index, *job) for index, job in enumerate(jobs))
        bar = progress.add_task("", total=len(jobs))
        for index, result in run_tasks(replay_policy, tasks, workers):
            results[index] = result
            progress.advance(bar)
    return [results[index] for index in range(len(jobs))]


def _bounds(case: Case) -> dict[Place, TimeBound]:
    events = case.events
    if not events.is_decode_S.any() or not case.devices:
        return {}
    curve = belady_curve(events, keep_warm=case.settings.keep_warm, largest=case.slots[-1])
    return {
        (device.name, slots): time_bound(events, curve, slots, device, case.workload, overrun=case.settings.overrun)
        for device in case.devices
        for slots in case.timed_slots
    }
