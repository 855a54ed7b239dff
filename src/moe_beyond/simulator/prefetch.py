"""Prefetching by any predictor: before a token's layer runs, fetch the experts that it most probably uses.

Shape suffixes: T tokens, L MoE layers, E routed experts in a layer, W experts fetched at most (the width).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from moe_beyond.simulator.events import Events
from moe_beyond.simulator.policies.base import Policy, Prefetches, Rank


@dataclass(frozen=True)
class Prefetch(Policy):
    """A predictor's most probable experts are fetched before each decode event; `eviction` says who leaves for them.

    A batched prefill fetches nothing ahead: it wants nearly every expert anyway.

    Attributes:
        predictor: Name of the predictor, for tables.
        probabilities_TLE: Its answer for the trace that is replayed.
        width: Experts fetched at most per layer.
        eviction: The policy underneath.
        threshold: An expert below this probability is not fetched.
    """

    predictor: str
    probabilities_TLE: npt.NDArray[np.float32]
    width: int
    eviction: Policy
    threshold: float = 0.0
    predicts = True

    @property
    @override
    def name(self) -> str:  # type: ignore[override]
        return f"{self.predictor}_prefetch_{self.eviction.name.removeprefix(f'{self.predictor}_')}"

    @property
    @override
    def bypass(self) -> bool:  # type: ignore[override]
        return self.eviction.bypass

    @property
    @override
    def per_layer(self) -> bool:  # type: ignore[override]
        return self.eviction.per_layer

    @property
    @override
    def rank(self) -> Rank:
        return self.eviction.rank

    @override
    def scores_SM(self, events: Events) -> npt.NDArray[np.float32]:
        return self.eviction.scores_SM(events)

    @override
    def prefetches(self, events: Events) -> Prefetches:
        return fetch_most_probable(events, self.probabilities_TLE, self.width, self.threshold)


def fetch_most_probable(
    events: Events, probabilities_TLE: npt.NDArray[np.float32], width: int, threshold: float
) -> Prefetches:
    """The `width` most probable experts of each decode event, most probable first, ties by lower id."""
    num_experts = events.metadata.num_experts
    width = min(width, num_experts)
    if width == 0:
        return Prefetches.none(events)
    token_N = events.token_S[events.step_N]
    # one event a layer and step asks; in a sequential replay that is the layer's first access
    asks_N = (token_N >= 0) & _first_of_layer(events)
    asking = np.nonzero(asks_N)[0]
    scores = probabilities_TLE[token_N[asking], events.layer_N[asking]]
    # a stable sort of the negated scores breaks ties by id
    best = np.argsort(-scores, axis=1, kind="stable")[:, :width]
    wanted = np.take_along_axis(scores, best, axis=1) >= threshold
    counts_N = np.zeros(events.num_events, np.int64)
    counts_N[asking] = wanted.sum(axis=1)
    experts = best + events.layer_N[asking, None] * num_experts
    return Prefetches(np.concatenate([[0], np.cumsum(counts_N)]), experts[wanted].astype(np.int32))


def _first_of_layer(events: Events) -> npt.NDArray[np.bool_]:
    place_N = events.step_N.astype(np.int64) * events.metadata.num_layers + events.layer_N
    return np.concatenate([[True], place_N[1:] != place_N[:-1]])
