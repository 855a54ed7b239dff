"""Do prefetch sets with a stated coverage hold it, and how large are they?

Shape suffixes: T tokens, L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.metrics import ratio_interval
from moe_beyond.predictor.scaling import Scaling
from moe_beyond.traces.schema import ExpertIds, Trace

SETS = {
    "layer": pl.String,
    "stated_coverage": pl.Float64,
    "coverage": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "experts_per_layer": pl.Float64,
}


@dataclass(frozen=True)
class SetCounts:
    """What the sets of one stated coverage held.

    Attributes:
        covered_TL: True experts in the set, int64.
        size_TL: Experts in the set, int64.
    """

    covered_TL: npt.NDArray[np.int64]
    size_TL: npt.NDArray[np.int64]


def count_sets(
    probabilities_TLE: npt.NDArray[np.float32], experts_TLK: ExpertIds, scaling: Scaling
) -> dict[float, SetCounts]:
    """Count the sets of every coverage that a scaling has thresholds for."""
    true_TLK = np.take_along_axis(probabilities_TLE, experts_TLK.astype(np.int64), axis=2)
    counts = {}
    for coverage, threshold_L in scaling.thresholds_L.items():
        least_L1 = threshold_L.astype(np.float32)[:, None]
        counts[coverage] = SetCounts((true_TLK >= least_L1).sum(axis=2), (probabilities_TLE >= least_L1).sum(axis=2))
    return counts


def joined(parts: list[dict[float, SetCounts]]) -> dict[float, SetCounts]:
    """The counts of the parts of a trace, in order, as one."""
    return {
        coverage: SetCounts(
            np.concatenate([part[coverage].covered_TL for part in parts]),
            np.concatenate([part[coverage].size_TL for part in parts]),
        )
        for coverage in parts[0]
    }


def set_rows(trace: Trace, counts: dict[float, SetCounts], resamples: int, seed: int) -> pl.DataFrame:
    """Coverage and size over all layers and for each.

    Args:
        trace: The trace that was counted.
        counts: By stated coverage.
        resamples: Bootstrap resamples of prompts behind the interval.
        seed: Of the bootstrap.

    Returns:
        Columns layer (`all` or its number), stated_coverage, coverage (share of the true experts in the sets), low,
        high (95 % interval by prompt), experts_per_layer (mean size of a set).
    """
    prompt_T = np.repeat(np.arange(trace.num_prompts), np.diff(trace.prompt_offsets))
    tokens_P = np.bincount(prompt_T, minlength=trace.num_prompts)
    everywhere: list[tuple[str, slice]] = [("all", slice(None))]
    everywhere += [(str(number), slice(i, i + 1)) for i, number in enumerate(trace.metadata.layer_numbers)]
    rows = []
    for stated, count in counts.items():
        for layer, where in everywhere:
            covered_TL, size_TL = count.covered_TL[:, where], count.size_TL[:, where]
            covered_P = np.bincount(prompt_T, covered_TL.sum(axis=1), trace.num_prompts)
            true_P = tokens_P * trace.metadata.top_k * covered_TL.shape[1]
            low, high = ratio_interval(covered_P, true_P, resamples, seed)
            rows.append((layer, stated, covered_P.sum() / true_P.sum(), low, high, float(size_TL.mean())))
    return pl.DataFrame(rows, SETS, orient="row")
