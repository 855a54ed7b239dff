# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""FlashMoE's learned eviction (arXiv 2601.17063): a small regressor predicts how long an expert will not be used.

It looks at two features of an expert, 1 / age in tokens since the last use and its count over the largest of its layer,
and was fitted, on the training split, to min(tokens until the next use, K) / K with K = 48 for 64 experts. The expert
of the largest prediction is evicted.

Shape suffixes: S steps, M = L * E experts of the model, B bins of frequency, R training rows.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import override

from moe_beyond.simulator.engine.policy import LAST_STEP, RANKS, SCORE, SECOND_SCORE, Policy
from moe_beyond.simulator.jit import F32, F64, I32, I64, RANK, compiled
from moe_beyond.simulator.schedule.events import Events, events_of
from moe_beyond.traces.schema import Trace

HORIZON_SHARE = 48 / 64
"""K as a share of a layer's experts."""
_BINS = 64
_HIDDEN_UNITS = 16
_ROWS = 40_000
_STEPS = 100
_FIT_TOKENS = 20_000


@compiled(RANK, borrows=True)
def soonest_use(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
    """Rank by the predicted distance, negated: what the step has used already has the age of one token."""
    for place, expert in enumerate(residents):
        used = features_FM[LAST_STEP, expert] == step
        features_FM[RANKS, place] = -(features_FM[SECOND_SCORE, expert] if used else features_FM[SCORE, expert])


@dataclass(frozen=True)
class LearnedEviction(Policy):
    """Evicts the expert of the largest predicted distance, within each layer (FlashMoE, arXiv 2601.17063; CECAR).

    The regressor is a perceptron of one small hidden layer, read off on a grid: every age up to 4 K, and frequencies in
    steps of 1/64. Its history is the whole replay's, whatever the cache forgets between prompts.

    Attributes:
        distance_AB: The regressor's prediction by age (row 0: one token) and bin of frequency, float32.
    """

    distance_AB: F32
    name = "learned_eviction"
    title = "Learned eviction (FlashMoE)"
    per_layer = True
    rank = staticmethod(soonest_use)

    @classmethod
    def fit(cls, training: Trace, seed: int = 0) -> LearnedEviction:
        """Fit on a stretch of the training split's prompts, replayed token by token."""
        # importing it takes a second
        from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
        from sklearn.neural_network import MLPRegressor  # noqa: PLC0415

        prompts = int(np.searchsorted(training.prompt_offsets, _FIT_TOKENS, side="left"))
        events = events_of(training.select(np.arange(max(1, min(prompts, training.num_prompts)))), "token_by_token")
        horizon = max(1, round(HORIZON_SHARE * training.metadata.num_experts))
        features_R2, distance_R = training_rows(
            events.members_A,
            events.offsets_N,
            events.step_N,
            events.num_steps,
            events.metadata.num_layers,
            events.metadata.num_model_experts,
            horizon,
        )
        regressor: Any = MLPRegressor(
            hidden_layer_sizes=(_HIDDEN_UNITS,), solver="lbfgs", max_iter=_STEPS, random_state=seed
        )
        chosen = np.random.default_rng(seed).permutation(len(features_R2))[:_ROWS]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of steps is meant
            regressor.fit(features_R2[chosen], distance_R[chosen])
        ages, bins = np.meshgrid(np.arange(1, 4 * horizon + 1), np.arange(_BINS + 1), indexing="ij")
        grid = np.stack([1 / ages.ravel(), bins.ravel() / _BINS], axis=1)
        return cls(regressor.predict(grid).reshape(ages.shape).astype(np.float32))

    @override
    def scores_SM(self, events: Events) -> F32:
        return distances_SM(
            events.members_A,
            events.offsets_N,
            events.step_N,
            events.num_steps,
            events.metadata.num_layers,
            events.metadata.num_model_experts,
            self.distance_AB,
        )


@compiled()
def training_rows(
    members_A: I32, offsets_N: I64, step_N: I32, num_steps: int, num_layers: int, num_model_experts: int, horizon: int
) -> tuple[F32, F32]:
    """What is known of each expert after each step, and how far its next use turned out to be.

    A row is an expert of one layer, a different layer each step, that has been used before and whose next use, or
    the horizon, lies within the trace.

    Returns:
        float32 [R, 2], 1 / age and frequency; float32 [R], min(distance, K) / K.
    """
    num_experts = num_model_experts // num_layers
    # one layer a step, so there are at most this many rows
    features_R2 = np.empty((num_steps * num_experts, 2), np.float32)
    distance_R = np.empty(num_steps * num_experts, np.float32)
    open_M = np.full(num_model_experts, -1)  # the latest row of an expert whose next use is not known yet
    made_R = np.empty(num_steps * num_experts, np.int64)
    before_R = np.empty(num_steps * num_experts, np.int64)
    last_M, count_M = np.full(num_model_experts, -1), np.zeros(num_model_experts, np.int64)
    rows, event = 0, 0
    for step in range(num_steps):
        while event < len(step_N) and step_N[event] == step:
            for access in range(offsets_N[event], offsets_N[event + 1]):
                expert = members_A[access]
                last_M[expert] = step
                count_M[expert] += 1
                row = open_M[expert]
                while row >= 0:
                    distance_R[row] = min(step - made_R[row], horizon) / horizon
                    row = before_R[row]
                open_M[expert] = -1
            event += 1
        base = step % num_layers * num_experts
        most = count_M[base : base + num_experts].max()
        for expert in range(base, base + num_experts):
            if last_M[expert] >= 0:
                features_R2[rows, 0] = 1 / (step + 1 - last_M[expert])
                features_R2[rows, 1] = count_M[expert] / most
                # what is not used again counts as beyond the horizon, which is true where the trace goes on that long
                distance_R[rows] = 1
                made_R[rows], before_R[rows], open_M[expert] = step, open_M[expert], rows
                rows += 1
    whole = 0
    while whole < rows and made_R[whole] + horizon < num_steps:
        whole += 1
    whole = whole if whole > 0 else rows
    return features_R2[:whole].copy(), distance_R[:whole].copy()


@compiled()
def distances_SM(
    members_A: I32,
    offsets_N: I64,
    step_N: I32,
    num_steps: int,
    num_layers: int,
    num_model_experts: int,
    distance_AB: F32,
) -> F32:
    """The prediction for each expert where the step does not use it, and where it does: float32 [S, 2 M]."""
    scores_SM = np.ones((num_steps, 2 * num_model_experts), np.float32)
    num_experts = num_model_experts // num_layers
    oldest, bins = distance_AB.shape[0], distance_AB.shape[1] - 1
    last_M, count_M = np.full(num_model_experts, -1), np.zeros(num_model_experts, np.int64)
    event = 0
    for step in range(num_steps):
        for layer in range(num_layers):
            base = layer * num_experts
            most = max(1, count_M[base : base + num_experts].max())
            for expert in range(base, base + num_experts):
                if last_M[expert] >= 0:
                    frequency = int(count_M[expert] / most * bins + 0.5)
                    scores_SM[step, expert] = distance_AB[min(step + 1 - last_M[expert], oldest) - 1, frequency]
                frequency = int(min(1.0, (count_M[expert] + 1) / most) * bins + 0.5)
                scores_SM[step, num_model_experts + expert] = distance_AB[0, frequency]
        while event < len(step_N) and step_N[event] == step:
            for access in range(offsets_N[event], offsets_N[event + 1]):
                last_M[members_A[access]] = step
                count_M[members_A[access]] += 1
            event += 1
    return scores_SM
