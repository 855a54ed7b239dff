"""A predictor beside the baselines, on every split, with intervals by prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from moe_beyond.metrics import quality_rows, score
from moe_beyond.predictor.base import Predictor
from moe_beyond.predictor.baselines import fit_baselines
from moe_beyond.traces.schema import Trace


@dataclass(frozen=True)
class Evaluation:
    """A row for each split, predictor, phase and layer.

    Attributes:
        table: Columns split, predictor and those of `metrics.quality_rows`.
    """

    table: pl.DataFrame

    def metrics(self) -> dict[str, Any]:
        """recall@k over all tokens and layers, split -> predictor; everything else stands in the table."""
        overall = self.table.filter((pl.col("phase") == "all") & (pl.col("layer") == "all"))
        nested: dict[str, dict[str, float]] = {}
        for row in overall.iter_rows(named=True):
            nested.setdefault(row["split"], {})[row["predictor"].replace(" ", "_")] = row["recall_at_k"]
        return {"recall_at_k": nested}


def evaluate(predictor: Predictor, splits: dict[str, Trace], resamples: int, seed: int) -> Evaluation:
    """Score a predictor and every baseline, the latter fitted on the training split.

    Args:
        predictor: What is to be shipped.
        splits: By name; `train` must be there. Its rows show how far each predictor has learnt by heart.
        resamples: Bootstrap resamples of prompts.
        seed: Of the bootstrap.
    """
    contestants: list[Predictor] = [predictor, *fit_baselines(splits["train"])]
    tables = []
    for split, trace in splits.items():
        for contestant in contestants:
            rows = quality_rows(trace, score(contestant, trace), resamples, seed)
            names = [pl.lit(split).alias("split"), pl.lit(contestant.name).alias("predictor")]
            tables.append(rows.select(*names, pl.all()))
    return Evaluation(pl.concat(tables))
