"""Small studies: traces, predictors that are right about a share of the layers, and settings.

Shape suffixes: T tokens, L MoE layers, E routed experts in a layer, H layers ahead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.traces.schema import Trace
from tests.simulator.strategies import make_trace, truth_TLE

PUBLISHED = ("lru", "lfu", "layer_lru", "least_stale", "lfru", "static_popularity", "pre_gated", "drop_cold", "belady")
SETTINGS = SimulateSettings(
    capacities=(0.15, 0.5, 1.0),
    headline_capacity=0.5,
    timed_capacities=(0.5, 1.0),
    bandwidths_gb_per_s=(0.5, 8.0, 64.0),
    widths=(0.5, 1.0, 2.0),
    policies=PUBLISHED,
    bootstrap_samples=200,
    headline_device="laptop_nvme",
)
HEADLINE = ("laptop_nvme", 12)


def drawn(seed: int, domain: str = "toy") -> Trace:
    """Three prompts of a model of 24 experts."""
    trace = make_trace(seed, num_layers=3, num_experts=8, lengths=(30, 20, 40), prefill=(10, 0, 20))
    return replace(trace, domains=(domain,) * trace.num_prompts)


def partly_right_TLE(trace: Trace, right: float, seed: int = 0) -> npt.NDArray[np.float32]:
    """0.9 for the router's choice, 0.01 for all else; where it is wrong, 0.9 for the experts beside the choice."""
    said = np.where(truth_TLE(trace) > 0, np.float32(0.9), np.float32(0.01))
    wrong_TL = np.random.default_rng(seed).random(said.shape[:2]) >= right
    said[wrong_TL] = np.roll(said[wrong_TL], 1, axis=1)
    return said


@dataclass
class TokenStep:
    """A predictor with a token step alone, right about a share of the layers."""

    right: float
    name: str = "rival"

    def probabilities_TLE(self, trace: Trace) -> npt.NDArray[np.float32]:
        """As `partly_right_TLE`."""
        return partly_right_TLE(trace, self.right)


@dataclass
class PartlyRight(TokenStep):
    """One with a layer step too, right about a share of its own."""

    ahead_right: float = 1.0
    name: str = "ours"
    horizon: int = 2

    def layer_probabilities_HTLE(self, trace: Trace) -> npt.NDArray[np.float32]:
        """The same at every horizon."""
        return np.stack([partly_right_TLE(trace, self.ahead_right, seed=1)] * self.horizon)
