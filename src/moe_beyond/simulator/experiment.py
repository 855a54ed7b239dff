"""The simulate stage's work: every policy at every capacity on every test split.

Shape suffixes: T tokens, L MoE layers, E routed experts in a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_beyond.predictor.base import Predictor
from moe_beyond.simulator.bounds import Belady, BeladyForced
from moe_beyond.simulator.budget import Budget
from moe_beyond.simulator.curves import belady_curve
from moe_beyond.simulator.device import load_device
from moe_beyond.simulator.events import Events, events_of
from moe_beyond.simulator.policies.anticipate import Anticipate
from moe_beyond.simulator.policies.base import Policy
from moe_beyond.simulator.policies.on_demand import LayerLru, LeastStale, Lfru, Lfu, Lru
from moe_beyond.simulator.policies.static import StaticPopularity
from moe_beyond.simulator.prefetch import Prefetch
from moe_beyond.simulator.replay import sweep
from moe_beyond.simulator.results import MIB, Replay
from moe_beyond.simulator.settings import SimulateSettings
from moe_beyond.simulator.timing import TimedReplay, Workload, bound_ms, time_on_demand, timed_sweep
from moe_beyond.traces.schema import Trace, TraceMetadata


@dataclass(frozen=True)
class SplitReplays:
    """All replays of one split.

    Attributes:
        split: Name of the split.
        metadata: The model's shape.
        replays: One a policy and capacity, in the order of the policies.
        timed: One a policy, device and capacity.
        bounds_ms: The clairvoyant bound of each device and capacity.
        policies: The policies by name.
    """

    split: str
    metadata: TraceMetadata
    replays: tuple[Replay, ...]
    timed: tuple[TimedReplay, ...]
    bounds_ms: Mapping[tuple[str, int], float]
    policies: Mapping[str, Policy]

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
        predictors: Predictors that prefetch and evict.
        settings: Capacities and rules.

    Raises:
        InputError: A split is of another model than the training split.
    """
    for name, trace in splits.items():
        training.metadata.require_same_model(trace.metadata, name)
    static = StaticPopularity.fit(training)
    on_demand = [Lru(), Lfu(), LayerLru(), LeastStale(), Lfru(), static]
    bounds = [Belady(), BeladyForced()]
    popularity_LE = static.popularity_M.reshape(training.metadata.num_layers, -1) / np.float32(training.num_tokens)
    return [
        replay_split(
            name,
            trace,
            [*on_demand, *predicted_policies(trace, predictors, popularity_LE, settings), *bounds],
            settings,
        )
        for name, trace in splits.items()
    ]


def replay_split(name: str, trace: Trace, policies: Sequence[Policy], settings: SimulateSettings) -> SplitReplays:
    """Replay one split: every policy at every capacity, without a clock and on every device."""
    events = asked_for(trace, settings)
    devices = [load_device(device) for device in settings.devices]
    expert_bytes = None if settings.timed_expert_mib is None else round(settings.timed_expert_mib * MIB)
    workload = Workload.like_its_experts(events, settings.predictor_latency_ms, settings.lookahead_layers, expert_bytes)
    slots = capacities(trace.metadata, settings)
    replays: list[Replay] = []
    timed: list[TimedReplay] = []
    for policy in policies:
        budgets = [Budget.slots(trace.metadata, capacity, per_layer=policy.per_layer) for capacity in slots]
        counted = sweep(events, policy, budgets, keep_warm=settings.keep_warm)
        if any(replay.total.prefetches for replay in counted):
            timed += timed_sweep(events, policy, budgets, devices, workload, keep_warm=settings.keep_warm)
        else:
            timed += [
                time_on_demand(events, replay, device, workload, predicts=policy.predicts)
                for device in devices
                for replay in counted
            ]
        replays += counted
    curve = belady_curve(events, keep_warm=settings.keep_warm, largest=slots[-1])
    bounds_ms = {
        (device.name, capacity): bound_ms(events, events.num_accesses - int(curve.hits_D[capacity]), device, workload)
        for device in devices
        for capacity in slots
    }
    by_name = {policy.name: policy for policy in policies}
    return SplitReplays(name, trace.metadata, tuple(replays), tuple(timed), bounds_ms, by_name)


def asked_for(trace: Trace, settings: SimulateSettings) -> Events:
    """The events of a trace under the rules of the settings."""
    return events_of(trace, settings.prefill, batch=settings.batch, waves=not settings.keep_warm)


def predicted_policies(
    trace: Trace,
    predictors: Sequence[Predictor],
    popularity_LE: npt.NDArray[np.float32],
    settings: SimulateSettings,
) -> list[Policy]:
    """For each predictor the ablation: prefetch and eviction by prediction, prefetch over LRU, eviction alone."""
    policies: list[Policy] = []
    for predictor in predictors:
        name = predictor.name.replace(" ", "_")
        probabilities_TLE = asked_for(trace, settings).by_step(predictor.probabilities_TLE(trace))
        anticipate = Anticipate(name, probabilities_TLE, popularity_LE)
        # a step wants that many at most
        width = settings.prefetch_width or trace.metadata.top_k * settings.batch
        policies += [
            Prefetch(name, probabilities_TLE, width, eviction, settings.prefetch_threshold)
            for eviction in (anticipate, Lru())
        ]
        policies.append(anticipate)
    return policies


def capacities(meta: TraceMetadata, settings: SimulateSettings) -> list[int]:
    """The capacities in experts, rising; shares that come to the same number of experts count once."""
    return sorted({capacity_experts(meta, share) for share in settings.capacities})


def capacity_experts(meta: TraceMetadata, share: float) -> int:
    """A share of the model's experts as a whole number, at least one."""
    return max(1, round(share * meta.num_model_experts))
