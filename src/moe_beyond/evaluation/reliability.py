"""Are a predictor's probabilities calibrated? Predicted probabilities beside observed frequencies.

Counts of one part of a trace add up with those of the next, so a trace of any length is measured part by part.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, B bins of probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.predictor.base import Floats
from moe_beyond.traces.schema import ExpertIds

EDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Bounds of the bins, finer near zero: of many experts few are used, so most probabilities lie there."""


@dataclass(frozen=True)
class Reliability:
    """Counts of predicted probabilities and of the experts that were used.

    Attributes:
        count_B: Predicted probabilities, by bin, int64.
        true_B: How many of those experts were used, int64.
        sum_B: Sum of the probabilities, float64.
    """

    count_B: npt.NDArray[np.int64]
    true_B: npt.NDArray[np.int64]
    sum_B: npt.NDArray[np.float64]

    @classmethod
    def of(cls, probabilities_TLE: Floats, experts_TLK: ExpertIds) -> Reliability:
        """Count the probabilities of a trace, in [0, 1], against the router's choice."""
        bins = len(EDGES) - 1
        # edges as the probabilities' own type: a float32 of 0.9 belongs to the bin that starts at 0.9
        edges = np.array(EDGES[1:-1], probabilities_TLE.dtype)
        bin_TLE = np.searchsorted(edges, probabilities_TLE, side="right")
        true_TLK = np.take_along_axis(bin_TLE, experts_TLK.astype(np.int64), axis=2)
        return cls(
            np.bincount(bin_TLE.ravel(), minlength=bins),
            np.bincount(true_TLK.ravel(), minlength=bins),
            np.bincount(bin_TLE.ravel(), probabilities_TLE.ravel(), bins).astype(np.float64),
        )

    def __add__(self, other: Reliability) -> Reliability:
        """The counts of two parts of a trace together."""
        return Reliability(self.count_B + other.count_B, self.true_B + other.true_B, self.sum_B + other.sum_B)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): mean distance of predicted and observed share."""
        return float(np.abs(self.sum_B - self.true_B).sum() / self.count_B.sum())

    def bins(self) -> pl.DataFrame:
        """Columns bin_low, bin_high, mean_probability, observed_share, count; empty bins are missing."""
        filled = self.count_B > 0
        return pl.DataFrame(
            {
                "bin_low": np.array(EDGES[:-1])[filled],
                "bin_high": np.array(EDGES[1:])[filled],
                "mean_probability": self.sum_B[filled] / self.count_B[filled],
                "observed_share": self.true_B[filled] / self.count_B[filled],
                "count": self.count_B[filled],
            }
        )
