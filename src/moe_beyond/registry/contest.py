"""Challenger and champion on the same test traces: what each prompt costs and hits with either of them.

Both prefetch over a plain LRU cache, which any engine has: what differs is the predictors' doing alone.

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
from moe_beyond.simulator.events import events_of
from moe_beyond.simulator.experiment import capacity_experts
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.prefetch import Prefetch
from moe_beyond.simulator.results import MIB
from moe_beyond.simulator.settings import SimulateSettings
from moe_beyond.simulator.timing import TimedReplay, Workload, timed_sweep
from moe_beyond.traces.schema import Trace

Metric = Literal["ms_per_token", "hit_rate", "recall_at_k"]
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
class Contestant:
    """A predictor that takes part.

    Attributes:
        name: `challenger` or `champion`.
        version: In the registry; None where it has none yet.
        predictor: Answers for the traces.
        latency_ms: Median time of its token step on one thread, from `latencies_ms`.
    """

    name: str
    version: str | None
    predictor: Predictor
    latency_ms: float


@dataclass(frozen=True)
class Score:
    """One contestant on every test split.

    Attributes:
        name: `challenger` or `champion`.
        version: In the registry; None where it has none yet.
        latency_ms: Median time of a token step on one thread, on this machine.
        splits: Metrics of each split by name.
    """

    name: str
    version: str | None
    latency_ms: float
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
        contestant: The predictor and its latency, which is charged to every token.
        splits: Test traces by name, of the predictor's model.
        settings: Device, capacity, metric.
        simulate: How prefill, widths and expert sizes are replayed, as in the simulate stage.

    Raises:
        InputError: The predictor is of another model, or the metric has nothing to count.
    """
    measured = {}
    for split, trace in splits.items():
        probabilities_TLE = contestant.predictor.probabilities_TLE(trace)
        timed = _replay(trace, probabilities_TLE, contestant.latency_ms * settings.latency_factor, settings, simulate)
        measured[split] = {
            "ms_per_token": _decode_ms(trace, timed, simulate),
            "hit_rate": Ratio(timed.replay.hits_P.astype(float), timed.replay.accesses_P.astype(float)),
            "recall_at_k": _recall(trace, probabilities_TLE),
        }
    result = Score(contestant.name, contestant.version, contestant.latency_ms, measured)  # type: ignore[arg-type]  # keys are the metrics' names
    if result.pooled(settings.metric).bottom_P.sum() == 0:
        raise InputError(
            f"publish.metric: {settings.metric} counts decoded tokens and the test traces have none; set "
            "simulate.prefill to token_by_token, or the metric to hit_rate"
        )
    return result


def latencies_ms(predictors: Sequence[OnnxPredictor], repeats: int) -> list[float]:
    """Median token step of each, in turns so that a busy machine slows all of them; the quietest of three rounds."""
    rounds = [[predictor.latency_ms(repeats) for predictor in predictors] for _ in range(_ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def _replay(
    trace: Trace,
    probabilities_TLE: npt.NDArray[np.float32],
    predictor_ms: float,
    settings: PublishSettings,
    simulate: SimulateSettings,
) -> TimedReplay:
    events = events_of(trace, simulate.prefill)
    size = None if simulate.timed_expert_mib is None else round(simulate.timed_expert_mib * MIB)
    workload = Workload.like_its_experts(events, predictor_ms, simulate.lookahead_layers, size)
    width = simulate.prefetch_width or trace.metadata.top_k
    policy = Prefetch("predictor", probabilities_TLE, width, Lru(), simulate.prefetch_threshold)
    budget = Budget.slots(trace.metadata, capacity_experts(trace.metadata, settings.capacity))
    devices = [load_device(settings.device)]
    return timed_sweep(events, policy, [budget], devices, workload, keep_warm=simulate.keep_warm)[0]


def _decode_ms(trace: Trace, timed: TimedReplay, simulate: SimulateSettings) -> Ratio:
    prompt_S = events_of(trace, simulate.prefill).prompt_S[timed.is_decode_S]
    ms_P = np.bincount(prompt_S, timed.step_ms_S[timed.is_decode_S], trace.num_prompts)
    return Ratio(ms_P.astype(float), np.bincount(prompt_S, minlength=trace.num_prompts).astype(float))


def _recall(trace: Trace, probabilities_TLE: npt.NDArray[np.float32]) -> Ratio:
    prompt_T = np.repeat(np.arange(trace.num_prompts), np.diff(trace.prompt_offsets))
    hits_T = hits_at_k(probabilities_TLE, trace.experts_TLK).sum(axis=1, dtype=np.int64)
    accesses_P = np.diff(trace.prompt_offsets) * trace.metadata.token_cycle
    return Ratio(np.bincount(prompt_T, hits_T, trace.num_prompts).astype(float), accesses_P.astype(float))
