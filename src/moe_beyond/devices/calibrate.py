"""Fit a device to a recording: how long a token computes, and how long each further byte keeps it waiting.

Shape suffix: S decode steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError

_ROUNDS = 100
_NEGLIGIBLE_MS = 1e-3


@dataclass(frozen=True)
class TokenTime:
    """Time of a decoded token as a line over the bytes it misses.

    Attributes:
        computing_ms: Where nothing is missing.
        ms_per_gb: For each 10^9 bytes that are.
    """

    computing_ms: float
    ms_per_gb: float

    @property
    def link_gb_per_s(self) -> float:
        """Bandwidth as the processor feels it: what the link hides behind computing makes it look faster."""
        return 1e3 / self.ms_per_gb

    def predict_ms(self, missed_bytes_S: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Time of each step, float64 [S]."""
        return np.asarray(self.computing_ms + self.ms_per_gb * missed_bytes_S / 1e9, np.float64)


def fit_token_time(missed_bytes_S: npt.NDArray[np.int64], wall_ms_S: npt.NDArray[np.float64]) -> TokenTime:
    """The line with the least absolute error: a recording has pauses that squares would follow.

    Args:
        missed_bytes_S: Bytes that each recorded step missed.
        wall_ms_S: How long it took.

    Raises:
        InputError: Fewer than three steps, or all of them missed the same.
    """
    if len(np.unique(missed_bytes_S)) < 2 or len(wall_ms_S) < 3:
        raise InputError(f"recording: {len(wall_ms_S)} steps, all missing the same; record more tokens")
    columns = np.stack([np.ones(len(wall_ms_S)), missed_bytes_S / 1e9], axis=1)
    weights_S = np.ones(len(wall_ms_S))
    for _ in range(_ROUNDS):
        # squares weighted by one over the error are the error itself
        root_S = np.sqrt(weights_S)
        line, *_ = np.linalg.lstsq(columns * root_S[:, None], wall_ms_S * root_S, rcond=None)
        weights_S = 1 / np.maximum(np.abs(columns @ line - wall_ms_S), _NEGLIGIBLE_MS)
    return TokenTime(float(line[0]), float(line[1]))
