"""The simulate stage's work: every policy at every capacity on every test split.

Shape suffixes: T tokens, L MoE layers, E routed experts in a layer, H layers ahead.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moe_beyond.errors import InputError
from moe_beyond.predictor.base import Predictor
from moe_beyond.simulator.bounds import Belady, BeladyForced
from moe_beyond.simulator.curves import belady_curve
from moe_beyond.simulator.device import load_device
from moe_beyond.simulator.events import Events, events_of
from moe_beyond.simulator.grid import PolicyReplays, Setting, Timed, replay_policy
from moe_beyond.simulator.policies.anticipate import Anticipate
from moe_beyond.simulator.policies.base import Policy
from moe_beyond.simulator.policies.catalogue import build, known
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.static import StaticPopularity
from moe_beyond.simulator.prefetch import Prefetch
from moe_beyond.simulator.results import Replay
from moe_beyond.simulator.settings import SimulateSettings
from moe_beyond.simulator.timing import bound_ms
from moe_beyond.traces.capture_parallel import run_tasks
from moe_beyond.traces.schema import Trace, TraceMetadata

BOUNDS = (Belady.name, BeladyForced.name)


@dataclass(frozen=True)
class Answers:
    """What a predictor says of a split.

    Attributes:
        name: Of the predictor, in tables.
        probabilities_TLE: Its token step's answer.
        layers_HTLE: Its layer step's; None where it has none.
        popularity_LE: How often a token of the training split used each expert.
        width: Experts that are fetched at most.
    """

    name: str
    probabilities_TLE: npt.NDArray[np.float32]
    layers_HTLE: npt.NDArray[np.float32] | None
    popularity_LE: npt.NDArray[np.float32]
    width: int

    def anticipate(self, *, bypass: bool = True) -> Anticipate:
        """Eviction by the predicted next use."""
        return Anticipate(self.name, self.probabilities_TLE, self.popularity_LE, bypass)

    def prefetch(self, eviction: Policy, threshold: float, *, layers: bool = False) -> Prefetch:
        """Prefetching the most probable, by the token step or by both."""
        layers_HTLE = self.layers_HTLE if layers else None
        return Prefetch(self.name, self.probabilities_TLE, self.width, eviction, threshold, layers_HTLE)

    def policies(self, threshold: float) -> list[Policy]:
        """Prefetch and eviction by prediction, prefetch over LRU, the same with layer steps, eviction alone."""
        anticipate = self.anticipate()
        steps = (False,) if self.layers_HTLE is None else (False, True)
        fetching = [
            self.prefetch(eviction, threshold, layers=layers) for layers in steps for eviction in (anticipate, Lru())
        ]
        return [*fetching, anticipate]


@dataclass(frozen=True)
class Ablated:
    """One step of the ablation: what was added, and what it came to."""

    added: str
    replays: PolicyReplays


@dataclass(frozen=True)
class SplitReplays:
    """All replays of one split.

    Attributes:
        split: Name of the split.
        trace: Its routing.
        setting: What is replayed and timed.
        policies: What came of each policy, in their order; those without replays say why.
        bounds_ms: The clairvoyant bound of each device and capacity.
        ablation: Ours put together piece by piece, at the headline capacity; empty without a predictor.
        answers: What each predictor says.
    """

    split: str
    trace: Trace
    setting: Setting
    policies: tuple[PolicyReplays, ...]
    bounds_ms: Mapping[tuple[str, int], float]
    ablation: tuple[Ablated, ...]
    answers: tuple[Answers, ...]

    @property
    def metadata(self) -> TraceMetadata:
        """The model's shape."""
        return self.trace.metadata

    @property
    def replays(self) -> list[Replay]:
        """One a policy and capacity."""
        return [replay for policy in self.policies for replay in policy.replays]

    @property
    def timed(self) -> list[Timed]:
        """One a policy, device, capacity and predictor latency."""
        return [timed for policy in self.policies for timed in policy.timed]

    def at(self, capacity_experts: int) -> dict[str, Replay]:
        """The replays of one capacity by policy."""
        return {r.policy: r for r in self.replays if r.capacity_experts == capacity_experts}


def replay_splits(
    splits: Mapping[str, Trace], training: Trace, predictors: Sequence[Predictor], settings: SimulateSettings
) -> list[SplitReplays]:
    """Replay every split.

    Args:
        splits: Test traces by name.
        training: The training split: the only one that a policy may learn from.
        predictors: Predictors that prefetch and evict; the first one's policies are taken apart in the ablation.
        settings: Capacities and rules.

    Raises:
        InputError: A split is of another model than the training split; a policy or device that is not known; a policy
            asked for by name that the traces do not allow.
    """
    for name, trace in splits.items():
        training.metadata.require_same_model(trace.metadata, name)
    listed, left_out = listed_policies(training, settings)
    popularity_M = StaticPopularity.fit(training).popularity_M / np.float32(training.num_tokens)
    popularity_LE = popularity_M.reshape(training.metadata.num_layers, -1)
    prepared = [_prepare(trace, predictors, popularity_LE, settings) for trace in splits.values()]
    ablations = [_ablation(answers, settings) for _, answers in prepared]
    jobs: list[tuple[Setting, Policy]] = []
    for (setting, answers), ablation in zip(prepared, ablations, strict=True):
        ours = [policy for answer in answers for policy in answer.policies(settings.prefetch_threshold)]
        reachable = [policy for policy in listed if policy.name not in BOUNDS]
        bounds = [policy for policy in listed if policy.name in BOUNDS]
        jobs += [(setting, policy) for policy in (*reachable, *ours, *bounds)]
        jobs += [(setting.headline_only(), policy) for _, policy in ablation]
    done = iter(_run(jobs, settings))
    results: list[SplitReplays] = []
    for (name, trace), (setting, answers), ablation in zip(splits.items(), prepared, ablations, strict=True):
        count = len(jobs) // len(splits) - len(ablation)
        policies = (*itertools.islice(done, count), *left_out)
        ablated = tuple(Ablated(added, next(done)) for added, _ in ablation)
        bounds_ms = _bounds_ms(setting)
        results.append(SplitReplays(name, trace, setting, policies, bounds_ms, ablated, tuple(answers)))
    return results


def listed_policies(training: Trace, settings: SimulateSettings) -> tuple[list[Policy], list[PolicyReplays]]:
    """The policies that no predictor drives, and those that the training split does not allow.

    Raises:
        InputError: A name that is not known, or one asked for that the training split does not allow.
    """
    names = list(known()) if settings.policies is None else list(settings.policies)
    if Belady.name not in names:
        names.append(Belady.name)
    policies: list[Policy] = []
    left_out: list[PolicyReplays] = []
    for name in names:
        try:
            policies.append(build(name, training, settings.published_policies))
        except InputError as error:
            if settings.policies is not None:
                raise
            left_out.append(PolicyReplays.without(name, str(error)))
    return policies, left_out


def asked_for(trace: Trace, settings: SimulateSettings) -> Events:
    """The events of a trace under the rules of the settings."""
    return events_of(trace, settings.prefill, batch=settings.batch, waves=not settings.keep_warm)


def answers_of(
    trace: Trace, events: Events, predictor: Predictor, popularity_LE: npt.NDArray[np.float32], width: int
) -> Answers:
    """Ask a predictor about a split, its layer step too where it has one."""
    layers_HTLE = None
    if hasattr(predictor, "layer_probabilities_HTLE"):
        layers_HTLE = events.by_step(predictor.layer_probabilities_HTLE(trace), axis=1)
    probabilities_TLE = events.by_step(predictor.probabilities_TLE(trace))
    return Answers(predictor.name.replace(" ", "_"), probabilities_TLE, layers_HTLE, popularity_LE, width)


def capacities(meta: TraceMetadata, shares: Sequence[float]) -> list[int]:
    """Capacities in experts, rising; shares that come to the same number of experts count once."""
    return sorted({capacity_experts(meta, share) for share in shares})


def capacity_experts(meta: TraceMetadata, share: float) -> int:
    """A share of the model's experts as a whole number, at least one."""
    return max(1, round(share * meta.num_model_experts))


def _prepare(
    trace: Trace,
    predictors: Sequence[Predictor],
    popularity_LE: npt.NDArray[np.float32],
    settings: SimulateSettings,
) -> tuple[Setting, list[Answers]]:
    events, meta = asked_for(trace, settings), trace.metadata
    timed = settings.capacities if settings.timed_capacities is None else settings.timed_capacities
    setting = Setting(
        events=events,
        slots=tuple(capacities(meta, settings.capacities)),
        timed_slots=tuple(capacities(meta, timed)),
        headline_slots=capacity_experts(meta, settings.headline_capacity),
        devices=tuple(load_device(device) for device in settings.devices),
        settings=settings,
    )
    # a step wants that many at most
    width = settings.prefetch_width or meta.top_k * settings.batch
    return setting, [answers_of(trace, events, predictor, popularity_LE, width) for predictor in predictors]


def _ablation(answers: Sequence[Answers], settings: SimulateSettings) -> list[tuple[str, Policy]]:
    """Ours put together piece by piece; every step keeps what the steps before it added."""
    if not answers:
        return []
    ours, threshold = answers[0], max(settings.prefetch_threshold, settings.ablation_threshold)
    steps: list[tuple[str, Policy]] = [("lru", Lru())]
    steps.append(("prefetch by token step", ours.prefetch(Lru(), 0.0)))
    layers = ours.layers_HTLE is not None
    if layers:
        steps.append(("prefetch by layer step", ours.prefetch(Lru(), 0.0, layers=True)))
    steps.append((f"only above {threshold:g}", ours.prefetch(Lru(), threshold, layers=layers)))
    for label, bypass in (("eviction by predicted next use", False), ("bypass", True)):
        steps.append((label, ours.prefetch(ours.anticipate(bypass=bypass), threshold, layers=layers)))
    return [*steps, ("belady", Belady())]


def _run(jobs: list[tuple[Setting, Policy]], settings: SimulateSettings) -> list[PolicyReplays]:
    """Every job, shared among processes, in the order of the jobs."""
    results: dict[int, PolicyReplays] = {}
    columns = (TextColumn("replaying policies"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        tasks = ((index, setting, policy) for index, (setting, policy) in enumerate(jobs))
        bar = progress.add_task("", total=len(jobs))
        for index, result in run_tasks(replay_policy, tasks, settings.workers):
            results[index] = result
            progress.advance(bar)
    return [results[index] for index in range(len(jobs))]


def _bounds_ms(setting: Setting) -> dict[tuple[str, int], float]:
    events, workload = setting.events, setting.workload(0.0)
    curve = belady_curve(events, keep_warm=setting.settings.keep_warm, largest=setting.slots[-1])
    return {
        (device.name, slots): bound_ms(events, events.num_accesses - int(curve.hits_D[slots]), device, workload)
        for device in setting.devices
        for slots in setting.timed_slots
    }
