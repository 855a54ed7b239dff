"""What a predictor is worth: milliseconds per token on a device, as the simulator's clock says, its own time charged.

Shape suffixes: T tokens, L MoE layers, E experts, H horizons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.predictor.base import LayerPredictor
from moe_beyond.predictor.settings import TuneSettings
from moe_beyond.simulator.budget import Budget
from moe_beyond.simulator.device import load_device
from moe_beyond.simulator.events import Events, events_of
from moe_beyond.simulator.policies.base import Policy
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.prefetch import Prefetch
from moe_beyond.simulator.results import MIB
from moe_beyond.simulator.settings import SimulateSettings
from moe_beyond.simulator.timing import TimedReplay, Workload, timed_replay
from moe_beyond.traces.schema import Trace


@dataclass(frozen=True)
class Payoff:
    """How a predictor is best used, and what that costs.

    Attributes:
        use: `token_step`, or `both_steps` where asking the layer step too is faster.
        ms_per_token: Mean time of a decoded token.
        hit_rate: Of decode and prefill together.
    """

    use: str
    ms_per_token: float
    hit_rate: float


@dataclass(frozen=True)
class Bench:
    """The replay that every candidate goes through: one trace, one device, one cache, LRU underneath.

    Attributes:
        trace: The validation prompts that are replayed.
        settings: Of the replay: prefill, lookahead, width, threshold, and what an expert weighs.
        device: Name of the device.
        capacity: The cache as a share of the model's experts.
    """

    trace: Trace
    settings: SimulateSettings
    device: str
    capacity: float

    def on_demand_ms(self) -> float:
        """Milliseconds per token of LRU without any predictor: what a candidate must beat."""
        return self._replay(Lru(), 0.0, 0.0).ms_per_token

    def payoff(self, predictor: LayerPredictor, token_step_ms: float, layer_step_ms: float) -> Payoff:
        """Replay with the predictor's prefetches, once by the token step alone and once by both.

        Args:
            predictor: Answers for the trace.
            token_step_ms: Milliseconds of its token step.
            layer_step_ms: Milliseconds of its layer step, asked once a layer.
        """
        width = self.settings.prefetch_width or self.trace.metadata.top_k
        token_TLE = predictor.probabilities_TLE(self.trace)
        outcomes = []
        for use in ("token_step", "both_steps"):
            layers_HTLE = None if use == "token_step" else predictor.layer_probabilities_HTLE(self.trace)
            policy = Prefetch("p", token_TLE, width, Lru(), self.settings.prefetch_threshold, layers_HTLE)
            timed = self._replay(policy, token_step_ms, layer_step_ms)
            outcomes.append(Payoff(use, timed.ms_per_token, timed.replay.total.hit_rate))
        return min(outcomes, key=lambda outcome: outcome.ms_per_token)

    def _replay(self, policy: Policy, token_step_ms: float, layer_step_ms: float) -> TimedReplay:
        events, settings, meta = self._events(), self.settings, self.trace.metadata
        size = None if settings.timed_expert_mib is None else round(settings.timed_expert_mib * MIB)
        workload = Workload.like_its_experts(events, token_step_ms, settings.lookahead_layers, size, layer_step_ms)
        slots = Budget.slots(meta, max(1, round(self.capacity * meta.num_model_experts)))
        return timed_replay(events, policy, slots, load_device(self.device), workload, keep_warm=settings.keep_warm)

    def _events(self) -> Events:
        return events_of(self.trace, self.settings.prefill)


def bench_of(validation: Trace, tune: TuneSettings, settings: SimulateSettings) -> Bench:
    """The bench on the first validation prompts, as many as hold `tune.replay_tokens`.

    Raises:
        InputError: Unknown device, or prompts that decode nothing.
    """
    load_device(tune.device)
    enough = int(np.searchsorted(validation.prompt_offsets[1:], tune.replay_tokens)) + 1
    trace = validation.select(np.arange(min(enough, validation.num_prompts)))
    bench = Bench(trace, settings, tune.device, tune.capacity)
    if not bench._events().is_decode_S.any():
        raise InputError(
            "simulate.prefill: batched, but the validation prompts hold prefill alone, so there is no time per token "
            "to tune for; set it to token_by_token"
        )
    return bench
