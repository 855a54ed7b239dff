"""What a predictor's probabilities are worth at each horizon: reliability before and after calibration, prefetch sets.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Self

import polars as pl

from moe_beyond.calibration import Reliability, reliability
from moe_beyond.predictor.scaling import Floats, Scaling
from moe_beyond.prefetch_sets import SETS, SetCounts, count_sets, joined, set_rows
from moe_beyond.traces.schema import ExpertIds, Trace

_BINS = {
    "bin_low": pl.Float64,
    "bin_high": pl.Float64,
    "mean_probability": pl.Float64,
    "observed_share": pl.Float64,
    "count": pl.Int64,
}
_BEFORE = {f"{name}_before": _BINS[name] for name in ("mean_probability", "observed_share", "count")}
_ERRORS = {
    "split": pl.String,
    "horizon": pl.String,
    "layer": pl.String,
    "error_before": pl.Float64,
    "error": pl.Float64,
    "statements": pl.Int64,
}


@dataclass(frozen=True)
class Certainty:
    """Counts of one horizon over a split, a member a layer where it says so.

    Attributes:
        before_L: Reliability of the logits' own probabilities; ranks are not counted.
        after_L: Reliability of the calibrated ones.
        sets: Counts of the prefetch sets by stated coverage.
    """

    before_L: tuple[Reliability, ...]
    after_L: tuple[Reliability, ...]
    sets: dict[float, SetCounts]

    @classmethod
    def count(cls, logits_TLE: Floats, experts_TLK: ExpertIds, scaling: Scaling) -> Self:
        """Count a part of a split."""
        layers = [slice(i, i + 1) for i in range(logits_TLE.shape[1])]
        plain_TLE = Scaling.identity(len(layers)).probabilities(logits_TLE)
        scaled_TLE = scaling.probabilities(logits_TLE)
        return cls(
            tuple(reliability(plain_TLE[:, i], experts_TLK[:, i], ranks=False) for i in layers),
            tuple(reliability(scaled_TLE[:, i], experts_TLK[:, i]) for i in layers),
            count_sets(scaled_TLE, experts_TLK, scaling),
        )

    @classmethod
    def joined(cls, parts: Sequence[Certainty]) -> Self:
        """The counts of the parts of a split, in order, together."""
        return cls(
            tuple(reduce(add, layer) for layer in zip(*(part.before_L for part in parts), strict=True)),
            tuple(reduce(add, layer) for layer in zip(*(part.after_L for part in parts), strict=True)),
            joined([part.sets for part in parts]),
        )

    @property
    def before(self) -> Reliability:
        """All layers together, before calibration."""
        return reduce(add, self.before_L)

    @property
    def after(self) -> Reliability:
        """All layers together, calibrated."""
        return reduce(add, self.after_L)


def calibration_rows(by_split: Mapping[str, Certainty]) -> pl.DataFrame:
    """Reliability by bin: split, the columns of `Reliability.bins`, and the same of the bin before calibration."""
    tables = [pl.DataFrame(schema={"split": pl.String, **_BINS, **_BEFORE})]
    for split, found in by_split.items():
        before = found.before.bins().rename({name.removesuffix("_before"): name for name in _BEFORE}).drop("bin_high")
        both = found.after.bins().join(before, on="bin_low", how="left", maintain_order="left")
        tables.append(both.select(pl.lit(split).alias("split"), pl.all()))
    return pl.concat(tables)


def layer_errors(certainty: Mapping[str, Mapping[str, Certainty]], splits: Mapping[str, Trace]) -> pl.DataFrame:
    """Expected calibration error of each layer and horizon, before and after: the columns of `_ERRORS`."""
    rows = []
    for split, by_horizon in certainty.items():
        numbers = splits[split].metadata.layer_numbers
        for horizon, found in by_horizon.items():
            pairs = [("all", found.before, found.after)]
            pairs += zip(map(str, numbers), found.before_L, found.after_L, strict=True)
            for layer, before, after in pairs:
                errors = (before.calibration_error, after.calibration_error)
                rows.append((split, horizon, layer, *errors, after.statements))
    return pl.DataFrame(rows, _ERRORS, orient="row")


def width_rows(certainty: Mapping[str, Mapping[str, Certainty]], token: str, top_k: int) -> pl.DataFrame:
    """Share of true experts among the most probable, by how many are named, a column a horizon.

    Args:
        certainty: Split -> horizon -> counts.
        token: Name of the token step's horizon; its column is `recall`, the others' `recall_ahead_1` and so on.
        top_k: The router's k.
    """
    tables = [pl.DataFrame(schema={"split": pl.String, "width": pl.Int64, "recall": pl.Float64})]
    for split, by_horizon in certainty.items():
        table = by_horizon[token].after.coverage(top_k).select(pl.lit(split).alias("split"), pl.all())
        for horizon, found in by_horizon.items():
            if horizon != token:
                recall = found.after.coverage(top_k)["recall"]
                table = table.with_columns(recall.alias(f"recall_ahead_{horizon}"))
        tables.append(table)
    return pl.concat(tables, how="diagonal")


def set_table(
    certainty: Mapping[str, Mapping[str, Certainty]], splits: Mapping[str, Trace], resamples: int, seed: int
) -> pl.DataFrame:
    """Coverage and size of prefetch sets: split, horizon and the columns of `prefetch_sets.set_rows`."""
    tables = [pl.DataFrame(schema={"split": pl.String, "horizon": pl.String, **SETS})]
    for split, by_horizon in certainty.items():
        for horizon, found in by_horizon.items():
            rows = set_rows(splits[split], found.sets, resamples, seed)
            tables.append(rows.select(pl.lit(split).alias("split"), pl.lit(horizon).alias("horizon"), pl.all()))
    return pl.concat(tables)
