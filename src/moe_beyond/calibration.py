"""Can a predictor's probabilities be taken at their word, and how many experts must it name to cover the true ones?

Counts of one part of a trace add up with those of the next, so a trace of any length is measured part by part.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, B bins of probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.traces.schema import ExpertIds

EDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Bounds of the bins, finer near zero: of many experts few are used, so most probabilities lie there."""

_SLICE_COMPARISONS = 4_000_000
"""True experts against all others, in one step: what a step allocates stays far below the part itself."""


@dataclass(frozen=True)
class Reliability:
    """Counts of stated probabilities and of what came true.

    Attributes:
        count_B: Statements "this expert will be used" by bin of their probability, int64.
        true_B: How many of them came true, int64.
        sum_B: Sum of their probabilities, float64.
        true_by_rank_E: True experts by how many experts the predictor rated above them, int64; ties by lower id.
    """

    count_B: npt.NDArray[np.int64]
    true_B: npt.NDArray[np.int64]
    sum_B: npt.NDArray[np.float64]
    true_by_rank_E: npt.NDArray[np.int64]

    def __add__(self, other: Reliability) -> Reliability:
        """The counts of two parts of a trace together."""
        return Reliability(
            self.count_B + other.count_B,
            self.true_B + other.true_B,
            self.sum_B + other.sum_B,
            self.true_by_rank_E + other.true_by_rank_E,
        )

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean distance of stated probability and observed share, bins by their count."""
        return float(np.abs(self.sum_B - self.true_B).sum() / self.count_B.sum())

    @property
    def statements(self) -> int:
        """How many probabilities were stated."""
        return int(self.count_B.sum())

    def bins(self) -> pl.DataFrame:
        """Columns bin_low, bin_high, mean_probability, observed_share, count; bins that nothing fell in are missing."""
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

    def coverage(self, top_k: int) -> pl.DataFrame:
        """Columns width, recall: share of true experts among the `width` most probable, width 1 to 4 k or E."""
        widths = np.arange(1, min(len(self.true_by_rank_E), 4 * top_k) + 1)
        recall = np.cumsum(self.true_by_rank_E) / self.true_by_rank_E.sum()
        return pl.DataFrame({"width": widths, "recall": recall[widths - 1]})


def reliability(
    probabilities_TLE: npt.NDArray[np.float32], experts_TLK: ExpertIds, *, ranks: bool = True
) -> Reliability:
    """Count how stated probabilities came true.

    Args:
        probabilities_TLE: Of each expert, in [0, 1], float32.
        experts_TLK: The router's choice.
        ranks: Count the true experts by rank too, which takes most of the time; otherwise those counts stay 0.
    """
    tokens, layers, experts = probabilities_TLE.shape
    total = _nothing(experts)
    step = max(1, _SLICE_COMPARISONS // (layers * experts * experts_TLK.shape[2]))
    for start in range(0, tokens, step):
        total += _count(probabilities_TLE[start : start + step], experts_TLK[start : start + step], ranks)
    return total


def _nothing(experts: int) -> Reliability:
    bins = len(EDGES) - 1
    return Reliability(np.zeros(bins, np.int64), np.zeros(bins, np.int64), np.zeros(bins), np.zeros(experts, np.int64))


def _count(probabilities_TLE: npt.NDArray[np.float32], experts_TLK: ExpertIds, ranks: bool) -> Reliability:
    experts, bins = probabilities_TLE.shape[2], len(EDGES) - 1
    # edges as the probabilities' own type: a float32 of 0.9 belongs to the bin that starts at 0.9
    bin_TLE = np.searchsorted(np.array(EDGES[1:-1], probabilities_TLE.dtype), probabilities_TLE, side="right")
    ids_TLK = experts_TLK.astype(np.int64)
    true_by_rank_E = _true_by_rank(probabilities_TLE, ids_TLK) if ranks else np.zeros(experts, np.int64)
    return Reliability(
        np.bincount(bin_TLE.ravel(), minlength=bins),
        np.bincount(np.take_along_axis(bin_TLE, ids_TLK, axis=2).ravel(), minlength=bins),
        np.bincount(bin_TLE.ravel(), probabilities_TLE.ravel(), bins).astype(np.float64),
        true_by_rank_E,
    )


def _true_by_rank(probabilities_TLE: npt.NDArray[np.float32], ids_TLK: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    experts = probabilities_TLE.shape[2]
    chosen_TLK = np.take_along_axis(probabilities_TLE, ids_TLK, axis=2)
    above_TLKE = probabilities_TLE[:, :, None, :] > chosen_TLK[..., None]
    tied_TLKE = (probabilities_TLE[:, :, None, :] == chosen_TLK[..., None]) & (np.arange(experts) < ids_TLK[..., None])
    rank_TLK = (above_TLKE | tied_TLKE).sum(axis=3)
    return np.bincount(rank_TLK.ravel(), minlength=experts)
