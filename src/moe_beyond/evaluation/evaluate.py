"""A predictor beside the baselines, on every split and at every horizon, with intervals by prompt.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, H horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.data.splitting import TEST
from moe_beyond.evaluation.reliability import Reliability
from moe_beyond.evaluation.scores import quality_rows, score
from moe_beyond.predictor.base import Predictor, sigmoid
from moe_beyond.predictor.baselines import fit_baselines
from moe_beyond.predictor.recall import TOKEN, TwoSteps, hits_at_k, horizons, logits_by_horizon
from moe_beyond.traces.schema import Trace


@dataclass(frozen=True)
class Evaluation:
    """The scores of a predictor.

    Attributes:
        quality: A row for each split, predictor, horizon, phase and layer: split, predictor, horizon and the columns of
            `scores.quality_rows`.
        calibration: Test splits, token step: split and the columns of `Reliability.bins`.
        calibration_error: Test split -> expected calibration error of the token step.
    """

    quality: pl.DataFrame
    calibration: pl.DataFrame
    calibration_error: dict[str, float]

    def metrics(self) -> dict[str, Any]:
        """recall@k over all tokens and layers, split -> predictor and split -> horizon, and calibration."""
        overall = self.quality.filter((pl.col("phase") == "all") & (pl.col("layer") == "all"))
        by_predictor: dict[str, dict[str, float]] = {}
        by_horizon: dict[str, dict[str, float]] = {}
        for row in overall.iter_rows(named=True):
            if row["horizon"] == TOKEN:
                # MLflow takes no comma in the name of a metric
                name = row["predictor"].replace(",", "").replace(" ", "_")
                by_predictor.setdefault(row["split"], {})[name] = row["recall_at_k"]
            else:
                by_horizon.setdefault(row["split"], {})[f"ahead_{row['horizon']}"] = row["recall_at_k"]
        return {
            "recall_at_k": by_predictor,
            "layer_recall_at_k": by_horizon,
            "calibration_error": self.calibration_error,
        }


def evaluate(
    predictor: TwoSteps, splits: Mapping[str, Trace], resamples: int, seed: int, others: Sequence[Predictor] = ()
) -> Evaluation:
    """Score a predictor, every baseline, fitted on the training split, and others that were trained.

    Args:
        predictor: What is to be shipped.
        splits: By name; `train` must be there. Its rows show how far each predictor is fitted to its training prompts.
        resamples: Bootstrap resamples of prompts.
        seed: Of the bootstrap.
        others: Trained rivals, such as the paper's network.
    """
    rivals = [*fit_baselines(splits["train"]), *others]
    quality: list[pl.DataFrame] = []
    reliable: dict[str, Reliability] = {}
    for split, trace in splits.items():
        own, reliability = _score(predictor, trace)
        hits = {(predictor.name, horizon): hits_TL for horizon, hits_TL in own.items()}
        hits |= {(rival.name, TOKEN): score(rival, trace) for rival in rivals}
        for (name, horizon), hits_TL in hits.items():
            rows = quality_rows(trace, hits_TL, resamples, seed)
            quality.append(_named(rows, split=split, predictor=name, horizon=horizon))
        if split.startswith(TEST):
            reliable[split] = reliability
    return Evaluation(
        quality=pl.concat(quality),
        calibration=pl.concat([_named(found.bins(), split=split) for split, found in reliable.items()]),
        calibration_error={split: found.calibration_error for split, found in reliable.items()},
    )


def _score(predictor: TwoSteps, trace: Trace) -> tuple[dict[str, npt.NDArray[np.uint8]], Reliability]:
    """Hits at k [T, L] at every horizon, and how reliable the token step's probabilities are."""
    hits: dict[str, list[npt.NDArray[np.uint8]]] = {horizon: [] for horizon in horizons(predictor)}
    reliable: list[Reliability] = []
    for part, logits in logits_by_horizon(predictor, trace):
        for horizon, logits_TLE in logits.items():
            hits[horizon].append(hits_at_k(logits_TLE, part.experts_TLK))
        reliable.append(Reliability.of(sigmoid(logits[TOKEN]), part.experts_TLK))
    total = reliable[0]
    for more in reliable[1:]:
        total += more
    return {horizon: np.concatenate(parts) for horizon, parts in hits.items()}, total


def _named(rows: pl.DataFrame, **names: str) -> pl.DataFrame:
    return rows.select(*(pl.lit(value).alias(name) for name, value in names.items()), pl.all())
