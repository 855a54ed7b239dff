"""The value of a predictor: milliseconds per token on a device, by the simulator's clock, its own time charged.

Shape suffixes: T tokens, L MoE layers, E experts, H horizons.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from moe_beyond.devices.device import load_device
from moe_beyond.devices.workload import Workload
from moe_beyond.errors import InputError
from moe_beyond.predictor.base import Predictor
from moe_beyond.predictor.latency import Latency
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.timing import TimedReplay, timed_replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.predictions import Predictions, prefetch_width
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.study.case import capacity_experts, first_tokens, replay_events
from moe_beyond.simulator.study.settings import ReplaySettings
from moe_beyond.traces.schema import Trace
from moe_beyond.tuning.settings import TuneSettings


@dataclass(frozen=True)
class Payoff:
    """How a predictor is best used, and what that costs.

    Attributes:
        use: `token_step`, or `both_steps` where the layer step saves more time than it takes.
        ms_per_token: Mean time of a decoded token.
        hit_rate: Of decoded tokens on the device.
    """

    use: str
    ms_per_token: float
    hit_rate: float


@dataclass(frozen=True)
class Bench:
    """The replay that every candidate goes through: one trace, one device, one cache, LRU underneath.

    Attributes:
        trace: The validation prompts that are replayed.
        settings: Of the replay.
        device: Name of the device.
        capacity: The cache as a share of the model's experts.
    """

    trace: Trace
    settings: ReplaySettings
    device: str
    capacity: float

    @cached_property
    def events(self) -> Events:
        """Accesses of the prompts."""
        return replay_events(self.trace, self.settings)

    def on_demand_ms(self) -> float:
        """Milliseconds per token of LRU without any predictor: what a candidate must beat."""
        return self._replay(Lru()).ms_per_token

    def payoff(self, predictor: Predictor, latency: Latency) -> Payoff:
        """Replay with the predictor's prefetches, once by the token step alone and once by both.

        Args:
            predictor: Predicts for the trace.
            latency: What is charged for its steps, before the device's slowdown.
        """
        predictions = Predictions(predictor, self.trace, self.events, latency.token_step_ms, latency.layer_step_ms)
        width = prefetch_width(self.trace.metadata, self.settings.step_tokens, self.settings.prefetch_width)
        outcomes = []
        for use in ("token_step", "both_steps"):
            policy = predictions.prefetch(Lru(), width, self.settings.prefetch_threshold, layers=use == "both_steps")
            timed = self._replay(policy)
            outcomes.append(Payoff(use, timed.ms_per_token, timed.hits.value))
        return min(outcomes, key=lambda outcome: outcome.ms_per_token)

    def _replay(self, policy: Policy) -> TimedReplay:
        settings, meta = self.settings, self.trace.metadata
        workload = Workload.of(meta, settings.lookahead_layers, expert_mib=settings.timed_expert_mib)
        slots = Budget.slots(meta, capacity_experts(meta, self.capacity))
        return timed_replay(
            self.events, policy, slots, load_device(self.device), workload, keep_warm=settings.keep_warm
        )


def bench_of(validation: Trace, tune: TuneSettings, settings: ReplaySettings) -> Bench:
    """The bench on the first validation prompts, as many as hold `tune.replay_tokens`.

    Raises:
        InputError: Unknown device, or prompts that decode nothing.
    """
    load_device(tune.device)
    bench = Bench(first_tokens(validation, tune.replay_tokens), settings, tune.device, tune.capacity)
    if not bench.events.is_decode_S.any():
        raise InputError(
            "simulate.prefill: batched, but the validation prompts hold prefill alone, so there is no time per token "
            "to tune for; set it to token_by_token"
        )
    return bench
