"""Popularity on training prompts as the only rank: nothing of the replay changes it."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from moe_beyond.simulator.engine.orders import by_feature
from moe_beyond.simulator.engine.policy import SCORE, Policy
from moe_beyond.simulator.jit import F32
from moe_beyond.simulator.policies.count_matrices import finished_PM
from moe_beyond.traces.schema import Trace, TraceMetadata


@dataclass(frozen=True)
class StaticPopularity(Policy):
    """The experts that other prompts used most, pinned as in Fiddler (arXiv 2402.07033) and KTransformers.

    The cache starts empty like any other: a popular expert is loaded at its first use and never evicted; others stay
    while there is space.

    Attributes:
        popularity_M: Uses of each (layer, expert) on the training split, float32 [L * E].
    """

    popularity_M: F32
    name = "static_popularity"
    title = "Static popularity"
    bypass = True
    rank = staticmethod(by_feature(SCORE))

    @classmethod
    def fit(cls, training: Trace) -> StaticPopularity:
        """Count uses over all tokens of a training trace."""
        return cls(finished_PM(training).sum(axis=0))

    @override
    def fixed_scores_M(self, meta: TraceMetadata) -> F32:
        return self.popularity_M
