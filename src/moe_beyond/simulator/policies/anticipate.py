"""Ours: whoever is expected to be wanted last leaves first, by what the predictor says of the token under way.

The predictor answers for all layers before a token's first one, so experts of the layers still to come are known with
some probability. Of the layers that have passed, the next use lies in the next token at the earliest: its probability
is the popularity, moved some way towards what this token's was. Where that chance fails, the wait is the popularity's.

Shape suffixes: T tokens, S steps, L MoE layers, E routed experts in a layer, M = L * E experts of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from moe_beyond.simulator.events import Events
from moe_beyond.simulator.jit import RANK, compiled
from moe_beyond.simulator.policies.base import LAYER, PRIOR, SCORE, Policy, Rank

PERSISTENCE = 0.5
"""How far this token's probability says what the next token's will be; chosen on a validation split of the default."""
_RAREST = 1e-3
"""Popularity below which an expert is taken to be used once in a thousand tokens: the training split is finite."""


@compiled(RANK)
def expected_wait(features_FM: npt.NDArray[np.float64], expert: int, now: int, step: int, layer: int) -> float:
    """Rank by the layers until the expected next use, negated: the longest wait is lowest."""
    num_layers = features_FM[LAYER, features_FM.shape[1] - 1] + 1
    popularity = max(features_FM[PRIOR, expert], _RAREST)
    probability = features_FM[SCORE, expert]
    chance_in = features_FM[LAYER, expert] - layer
    if chance_in <= 0:
        chance_in += num_layers
        probability = popularity + PERSISTENCE * (probability - popularity)
    return float(-(chance_in + (1 - probability) * num_layers / popularity))


@dataclass(frozen=True)
class Anticipate(Policy):
    """Evicts by the predicted next use.

    Attributes:
        predictor: Name of the predictor, for tables.
        probabilities_TLE: The predictor's calibrated answer for the trace that is replayed.
        popularity_LE: How often a token of the training split used each expert.
        bypass: Admission by the same rule: what an event has loaded is kept only if it is expected sooner than others.
    """

    predictor: str
    probabilities_TLE: npt.NDArray[np.float32]
    popularity_LE: npt.NDArray[np.float32]
    bypass: bool = True
    predicts = True

    @property
    @override
    def name(self) -> str:  # type: ignore[override]
        return f"{self.predictor}_anticipate" if self.bypass else f"{self.predictor}_anticipate_forced"

    @property
    @override
    def rank(self) -> Rank:
        return expected_wait

    @override
    def scores_SM(self, events: Events) -> npt.NDArray[np.float32]:
        scores_SM = np.broadcast_to(self.popularity_LE.reshape(-1), (events.num_steps, self.popularity_LE.size)).copy()
        decode_S = events.is_decode_S
        scores_SM[decode_S] = self.probabilities_TLE[events.token_S[decode_S]].reshape(-1, scores_SM.shape[1])
        return scores_SM

    @override
    def prior_M(self, events: Events) -> npt.NDArray[np.float64]:
        return self.popularity_LE.reshape(-1).astype(np.float64)
