"""Challenger and champion on the same test traces: what each prompt costs and hits with either of them.

Both prefetch over a plain LRU cache, which any engine has, by the token step and then by the layer step, as they are
used: what differs is the predictors' doing alone.

Shape suffixes: P prompts, S steps, T tokens, L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.metrics import hits_at_k
from moe_beyond.predictor.base import Predictor
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.simulator.budget import Budget
from moe_beyond.simulator.device import load_device
from moe_beyond.simulator.events import Events
from moe_beyond.simulator.experiment import asked_for, capacity_experts
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.prefetch import Prefetch
from moe_beyond.simulator.results import MIB
from moe_beyond.simulator.settings import SimulateSettings
from moe_beyond.simulator.timing import TimedReplay, Workload, timed_sweep
from moe_beyond.traces.schema import Trace

Metric = Literal["ms_per_token", "hit_rate", "recall_at_k", "layer_recall_at_k"]
METRICS: tuple[Metric, ...] = get_args(Metric)
LOWER_IS_BETTER: frozenset[Metric] = frozenset({"ms_per_token"})
_ROUNDS = 3


@dataclass(frozen=True)
class Ratio:
    """A metric as two sums over each prompt, so that any resample of prompts has its own value.

    Attributes:
        top_P: Numerator of each prompt, float64: milliseconds, hits.
        bottom_P: Denominator of each prompt, float64: decoded tokens, accesses.
    """

    top_P: npt.NDArray[np.float64]
    bottom_P: npt.NDArray[np.float64]

    @property
    def value(self) -> float:
        """The metric over all prompts."""
        return float(self.top_P.sum() / self.bottom_P.sum())


@dataclass(frozen=True)
class Latency:
    """Median times on one thread, on this machine.

    Attributes:
        token_ms: Of a token step.
        layer_ms: Of the layer step of one layer.
    """

    token_ms: float
    layer_ms: float


@dataclass(frozen=True)
class Contestant:
    """A predictor that takes part.

    Attributes:
        name: `challenger` or `champion`.
        version: In the registry; None where it has none yet.
        predictor: Answers for the traces.
        latency: From `latencies`; charged to every token and layer.
    """

    name: str
    version: str | None
    predictor: Predictor
    latency: Latency


@dataclass(frozen=True)
class Score:
    """One contestant on every test split.

    Attributes:
        name: `challenger` or `champion`.
        version: In the registry; None where it has none yet.
        latency: Of the predictor.
        splits: Metrics of each split by name.
    """

    name: str
    version: str | None
    latency: Latency
    splits: Mapping[str, Mapping[Metric, Ratio]]

    def pooled(self, metric: Metric) -> Ratio:
        """A metric over the prompts of all splits."""
        parts = [split[metric] for split in self.splits.values()]
        return Ratio(np.concatenate([p.top_P for p in parts]), np.concatenate([p.bottom_P for p in parts]))

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
        splits: Test traces by name, of the predictor's model.
        settings: Device, capacity, metric.
        simulate: How prefill, batches, widths and expert sizes are replayed, as in the simulate stage.

    Raises:
        InputError: The predictor is of another model, or the metric has nothing to count.
    """
    measured = {}
    for split, trace in splits.items():
        token_TLE = contestant.predictor.probabilities_TLE(trace)
        layers_HTLE = None
        if hasattr(contestant.predictor, "layer_probabilities_HTLE"):
            layers_HTLE = contestant.predictor.layer_probabilities_HTLE(trace)
        events = asked_for(trace, simulate)
        timed = _replay(events, (token_TLE, layers_HTLE), contestant.latency, settings, simulate)
        decoded_P = timed.replay.tokens_PF[:, 1].astype(float)
        measured[split] = {
            "ms_per_token": Ratio(events.by_prompt(timed.step_ms_S), decoded_P),
            "hit_rate": Ratio(timed.replay.hits_P.astype(float), timed.replay.accesses_P.astype(float)),
            "recall_at_k": _recall(trace, token_TLE),
            "layer_recall_at_k": _recall(trace, token_TLE if layers_HTLE is None else layers_HTLE[0]),
        }
    result = Score(contestant.name, contestant.version, contestant.latency, measured)  # type: ignore[arg-type]  # keys are the metrics' names
    if result.pooled(settings.metric).bottom_P.sum() == 0:
        raise InputError(
            f"publish.metric: {settings.metric} counts decoded tokens and the test traces have none; set "
            "simulate.prefill to token_by_token, or the metric to hit_rate"
        )
    return result


def latencies(predictors: Sequence[OnnxPredictor], repeats: int) -> list[Latency]:
    """Median times of each, in turns so that a busy machine slows all of them; the quietest of three rounds."""
    rounds = [[(p.latency_ms(repeats), p.layer_latency_ms(repeats)) for p in predictors] for _ in range(_ROUNDS)]
    return [Latency(*map(min, zip(*times, strict=True))) for times in zip(*rounds, strict=True)]


def _replay(
    events: Events,
    answers: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None],
    latency: Latency,
    settings: PublishSettings,
    simulate: SimulateSettings,
) -> TimedReplay:
    meta, (token_TLE, layers_HTLE) = events.metadata, answers
    policy = Prefetch(
        "predictor",
        events.by_step(token_TLE),
        # a step of several prompts wants that many at most
        simulate.prefetch_width or meta.top_k * simulate.batch,
        Lru(),
        simulate.prefetch_threshold,
        None if layers_HTLE is None else events.by_step(layers_HTLE, axis=1),
    )
    size = None if simulate.timed_expert_mib is None else round(simulate.timed_expert_mib * MIB)
    token_ms, layer_ms = (ms * settings.latency_factor for ms in (latency.token_ms, latency.layer_ms))
    workload = Workload.like_its_experts(events, token_ms, simulate.lookahead_layers, size, layer_ms)
    budget = Budget.slots(meta, capacity_experts(meta, settings.capacity))
    devices = [load_device(settings.device)]
    return timed_sweep(events, policy, [budget], devices, workload, keep_warm=simulate.keep_warm)[0]


def _recall(trace: Trace, probabilities_TLE: npt.NDArray[np.float32]) -> Ratio:
    prompt_T = np.repeat(np.arange(trace.num_prompts), np.diff(trace.prompt_offsets))
    hits_T = hits_at_k(probabilities_TLE, trace.experts_TLK).sum(axis=1, dtype=np.int64)
    accesses_P = np.diff(trace.prompt_offsets) * trace.metadata.token_cycle
    return Ratio(np.bincount(prompt_T, hits_T, trace.num_prompts).astype(float), accesses_P.astype(float))
