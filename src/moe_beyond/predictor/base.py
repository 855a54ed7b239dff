"""What every predictor answers, whatever it is made of. No torch here: the simulator imports this module.

Shape suffixes: T tokens, L MoE layers, E experts.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from moe_beyond.traces.schema import Trace


class Predictor(Protocol):
    """Says, ahead of each token, which experts the token will use in every layer.

    Causal: the answer for a token may use this and earlier tokens of the prompt, and the routing of earlier tokens.
    It may not use this token's own routing: it is wanted before the token's first layer runs.
    """

    @property
    def name(self) -> str:
        """Name in tables and plots."""

    def probabilities_TLE(self, trace: Trace) -> npt.NDArray[np.float32]:
        """Probability in [0, 1] (or an uncalibrated score in the same order) of each expert, float32 [T, L, E].

        Prompts are independent of each other: no state passes from one to the next.
        """
