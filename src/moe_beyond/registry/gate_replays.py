"""Challenger and champion on the same prompts of the gate: what each prompt costs and hits with either of them.

Both prefetch over a plain LRU cache, which any engine has, by the token step and then by the layer step, as they are
used: only the predictors differ.

Shape suffixes: P prompts, T tokens, L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from moe_beyond.devices.device import load_device
from moe_beyond.errors import InputError
from moe_beyond.intervals import Ratio
from moe_beyond.predictor.base import Predictor
from moe_beyond.predictor.latency import Latency
from moe_beyond.predictor.recall import recall_by_prompt
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.timing import timed_replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.predictions import Predictions, prefetch_width
from moe_beyond.simulator.study.case import capacity_experts, case_of
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.traces.schema import Trace

Metric = Literal["ms_per_token", "hit_rate", "recall_at_k", "layer_recall_at_k"]
METRICS: tuple[Metric, ...] = get_args(Metric)
LOWER_IS_BETTER: frozenset[Metric] = frozenset({"ms_per_token"})
_ROUNDS = 3


@dataclass(frozen=True)
class Contestant:
    """A predictor that is compared.

    Attributes:
        name: `challenger` or `champion`.
        version: In the registry; None where it has none yet.
        predictor: Predicts for the traces.
        latency: Charged to every token and layer, before the device's slowdown.
    """

    name: str
    version: str | None
    predictor: Predictor
    latency: Latency


@dataclass(frozen=True)
class Score:
    """One contestant on every split of the gate.

    Attributes:
        name: `challenger` or `champion`.
        version: In the registry; None where it has none yet.
        latency: As charged on the device.
        splits: Metrics of each split by name.
    """

    name: str
    version: str | None
    latency: Latency
    splits: Mapping[str, Mapping[Metric, Ratio]]

    def pooled(self, metric: Metric) -> Ratio:
        """A metric over the prompts of all splits."""
        parts = [split[metric] for split in self.splits.values()]
        return Ratio(
            np.concatenate([part.numerator_P for part in parts]), np.concatenate([part.denominator_P for part in parts])
        )

    @property
    def worst_domain(self) -> tuple[str, float]:
        """The split of the lowest hit rate, and that hit rate."""
        rates = {name: split["hit_rate"].value for name, split in self.splits.items()}
        worst = min(rates, key=lambda name: rates[name])
        return worst, rates[worst]


def score(
    contestant: Contestant, splits: Mapping[str, Trace], settings: PublishSettings, simulate: SimulateSettings
) -> Score:
    """Replay every split with a predictor's prefetching.

    Args:
        contestant: The predictor. One without a layer step prefetches by its token step alone.
        splits: Traces by name, of the predictor's model.
        settings: Device, capacity, metric.
        simulate: How prefill, batches, widths and expert sizes are replayed, as in the simulate stage.

    Raises:
        InputError: The predictor is of another model, or the metric has nothing to count.
    """
    measured, device = {}, load_device(settings.device)
    for split, trace in splits.items():
        case, charge = case_of(trace, simulate), contestant.latency
        predictions = Predictions(contestant.predictor, trace, case.events, charge.token_step_ms, charge.layer_step_ms)
        width = prefetch_width(trace.metadata, simulate.step_tokens, simulate.prefetch_width)
        threshold = simulate.prefetch_threshold
        policy = predictions.prefetch(Lru(), width, threshold, layers=predictions.has_layer_step)
        budget = Budget.slots(trace.metadata, capacity_experts(trace.metadata, settings.capacity))
        rules = {"keep_warm": simulate.keep_warm, "overrun": simulate.overrun}
        timed = timed_replay(case.events, policy, budget, device, case.workload, **rules)
        token_TLE, layers_HTLE = predictions.probabilities_TLE, predictions.layer_probabilities_HTLE
        measured[split] = {
            "ms_per_token": timed.time,
            "hit_rate": timed.hits if timed.hits.counts else timed.replay.hit_ratio,
            "recall_at_k": recall_by_prompt(trace, token_TLE),
            "layer_recall_at_k": recall_by_prompt(trace, token_TLE if layers_HTLE is None else layers_HTLE[0]),
        }
    charged = contestant.latency.times(device.predictor_slowdown)
    result = Score(contestant.name, contestant.version, charged, measured)  # type: ignore[arg-type]  # keys are the metrics' names
    if not result.pooled(settings.metric).counts:
        raise InputError(
            f"publish.metric: {settings.metric} counts decoded tokens and the gate's traces have none; set "
            "simulate.prefill to token_by_token, or the metric to hit_rate"
        )
    return result


def latencies(predictors: Sequence[OnnxPredictor], repeats: int) -> list[Latency]:
    """What is charged for each: the charge in its bundle, or what it takes here where that is more.

    Measured alternately, so that a busy machine slows all of them; the fastest of three rounds.
    """
    rounds = [[(one.token_step_ms(repeats), one.layer_step_ms(repeats)) for one in predictors] for _ in range(_ROUNDS)]
    measured = [tuple(map(min, zip(*times, strict=True))) for times in zip(*rounds, strict=True)]
    return [
        Latency(max(one.charge.token_step_ms, token_ms), max(one.charge.layer_step_ms, layer_ms), one.charge.table_ms)
        for one, (token_ms, layer_ms) in zip(predictors, measured, strict=True)
    ]
