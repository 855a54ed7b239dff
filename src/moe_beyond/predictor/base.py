"""The interface of every predictor. No torch here: the simulator imports this module.

Shape suffixes: T tokens, L MoE layers, E experts, H horizon.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from moe_beyond.traces.schema import Trace

Floats = npt.NDArray[np.float32]


class Predictor(Protocol):
    """Predicts, ahead of each token, which experts the token will use in every layer.

    Causal: the prediction for a token may use this and earlier tokens of the prompt, and the routing of earlier tokens.
    It may not use this token's own routing: it is needed before the token's first layer runs.
    """

    @property
    def name(self) -> str:
        """Name in tables and plots."""

    def probabilities_TLE(self, trace: Trace) -> npt.NDArray[np.float32]:
        """Probability in [0, 1] (or a score in the same order) of each expert, float32 [T, L, E].

        Prompts are independent of each other: no state passes from one to the next.
        """


class LayerPredictor(Predictor, Protocol):
    """Predicts again once a token's first layers have chosen: causal within the token too."""

    @property
    def horizon(self) -> int:
        """How many layers ahead it predicts."""

    def layer_probabilities_HTLE(self, trace: Trace) -> npt.NDArray[np.float32]:
        """Probability of each expert at each horizon, float32 [H, T, L, E].

        Entry [h, t, l] is the prediction for layer l given the token and what this token's router chose in layers
        0 to l - h - 1: row 0 is one layer ahead. Where l < h + 1 nothing is known yet, and it is the token step's.
        """


def sigmoid(logits: Floats) -> Floats:
    """Logistic function, without overflow, float32."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float32)
