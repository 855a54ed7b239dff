"""Policies that never learn from the replay: what they keep was decided on other prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from moe_beyond.simulator.engine.policy import RANKS, SCORE, Policy, Rank
from moe_beyond.simulator.jit import RANK, compiled
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.traces.schema import Trace


@compiled(RANK)
def score(
    features_FM: npt.NDArray[np.float64], residents: npt.NDArray[np.int32], now: int, step: int, layer: int
) -> None:
    """Rank by the policy's own score."""
    for place, expert in enumerate(residents):
        features_FM[RANKS, place] = features_FM[SCORE, expert]


@dataclass(frozen=True)
class StaticPopularity(Policy):
    """The experts that other prompts used most, pinned as in Fiddler (arXiv 2402.07033) and KTransformers.

    The cache starts empty like any other: a popular expert is loaded at its first use and never leaves; others stay
    while there is room.

    Attributes:
        popularity_M: Uses of each (layer, expert) on the training split, float32 [L * E].
    """

    popularity_M: npt.NDArray[np.float32]
    name = "static_popularity"
    title = "Static popularity"
    bypass = True

    @classmethod
    def fit(cls, training: Trace) -> StaticPopularity:
        """Count uses over all tokens of a training trace."""
        meta = training.metadata
        base_L = np.arange(meta.num_layers, dtype=np.int64)[:, None] * meta.num_experts
        experts = (training.experts_TLK.astype(np.int64) + base_L).ravel()
        return cls(np.bincount(experts, minlength=meta.num_model_experts).astype(np.float32))

    @property
    @override
    def rank(self) -> Rank:
        return score

    @override
    def scores_SM(self, events: Events) -> npt.NDArray[np.float32]:
        return self.popularity_M[None, :]
