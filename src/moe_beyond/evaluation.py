"""A predictor beside the baselines, on every split and at every horizon, with intervals by prompt.

A horizon is `token` for the token step, ahead of the token's first layer, or the number of layers that the layer step
looks ahead: at `1` it knows the router's choices up to the layer before.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, H horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.certainty import Certainty, calibration_rows, layer_errors, set_table, width_rows
from moe_beyond.metrics import groups, hits_at_k, quality_rows, score
from moe_beyond.predictor.base import Predictor
from moe_beyond.predictor.baselines import CrippledMoeInfinity, fit_baselines
from moe_beyond.predictor.scaling import Floats, Scaling
from moe_beyond.published_scores import PROTOCOL, published_rows
from moe_beyond.simulator.published_protocol import most_probable
from moe_beyond.traces.schema import Trace

TOKEN = "token"  # noqa: S105 - the token step's horizon, no secret
_TEST = "test_"
_PUBLISHED = {"split": pl.String, "predictor": pl.String, "horizon": pl.String, **PROTOCOL}


class Scored(Protocol):
    """What is asked of the predictor to be shipped; `predictor.runtime.OnnxPredictor` is one."""

    @property
    def name(self) -> str:
        """Name in tables and plots."""

    @property
    def scaling(self) -> Scaling:
        """Logits of the token step into calibrated probabilities."""

    @property
    def layer_scaling_H(self) -> Sequence[Scaling]:
        """The same of the layer step, at each horizon."""

    def both_logits(self, trace: Trace) -> tuple[Floats, Floats]:
        """Logits of the token step [T, L, E] and of the layer step [H, T, L, E]."""


@dataclass(frozen=True)
class Evaluation:
    """What is known of a predictor; every table attribute is a file of the same name.

    Attributes:
        quality: A row for each split, predictor, horizon, phase and layer: split, predictor, horizon and the columns of
            `metrics.quality_rows`.
        calibration: Test splits, token step: split, the columns of `Reliability.bins`, and with the ending `_before`
            those of the same bin before calibration.
        calibration_by_layer: Test splits: split, horizon, layer (`all` or its number), error_before, error,
            statements; expected calibration errors.
        width: Test splits: split, width, recall of the token step, as `Reliability.coverage`; recall_ahead_1 and so on
            of the layer step.
        prefetch_sets: Test splits: split, horizon and the columns of `prefetch_sets.set_rows`.
        published_protocol: Test splits with a published predictor's answers: split, predictor, horizon and the columns
            of `published_scores.published_rows`, the rival being the published predictions.
        calibration_error: Test split -> expected calibration error of the token step.
        calibration_error_before: The same before calibration.
    """

    quality: pl.DataFrame
    calibration: pl.DataFrame
    calibration_by_layer: pl.DataFrame
    width: pl.DataFrame
    prefetch_sets: pl.DataFrame
    published_protocol: pl.DataFrame
    calibration_error: dict[str, float]
    calibration_error_before: dict[str, float]

    def tables(self) -> dict[str, pl.DataFrame]:
        """The tables by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, pl.DataFrame)}

    def metrics(self) -> dict[str, Any]:
        """recall@k over all tokens and layers, split -> predictor and split -> horizon, and calibration."""
        overall = self.quality.filter((pl.col("phase") == "all") & (pl.col("layer") == "all"))
        by_predictor: dict[str, dict[str, float]] = {}
        by_horizon: dict[str, dict[str, float]] = {}
        for row in overall.iter_rows(named=True):
            if row["horizon"] == TOKEN:
                by_predictor.setdefault(row["split"], {})[_key(row["predictor"])] = row["recall_at_k"]
            else:
                by_horizon.setdefault(row["split"], {})[f"ahead_{row['horizon']}"] = row["recall_at_k"]
        return {
            "recall_at_k": by_predictor,
            "layer_recall_at_k": by_horizon,
            "calibration_error": self.calibration_error,
            "calibration_error_before": self.calibration_error_before,
        }


@dataclass(frozen=True)
class _Answers:
    """What one pass over a split leaves of each horizon; the probabilities are gone by then."""

    hits_TL: dict[str, npt.NDArray[np.uint8]]
    certainty: dict[str, Certainty]
    named_TLK: dict[str, npt.NDArray[np.int64]]


def evaluate(
    predictor: Scored, splits: Mapping[str, Trace], resamples: int, seed: int, others: Sequence[Predictor] = ()
) -> Evaluation:
    """Score a predictor, every baseline, fitted on the training split, and others that were trained.

    Args:
        predictor: What is to be shipped.
        splits: By name; `train` must be there. Its rows show how far each predictor has learnt by heart.
        resamples: Bootstrap resamples of prompts.
        seed: Of the bootstrap, and the first of those that fill the cache at random.
        others: Trained rivals, such as the paper's network.
    """
    rivals = [*fit_baselines(splits["train"]), *others]
    quality, published = [], [pl.DataFrame(schema=_PUBLISHED)]
    certainty: dict[str, dict[str, Certainty]] = {}
    for split, trace in splits.items():
        answers = _answer(predictor, trace, test=split.startswith(_TEST))
        hits = {(predictor.name, horizon): hits_TL for horizon, hits_TL in answers.hits_TL.items()}
        hits |= {(rival.name, TOKEN): score(rival, trace) for rival in rivals}
        for (name, horizon), hits_TL in hits.items():
            rows = quality_rows(trace, hits_TL, resamples, seed)
            quality.append(_named(rows, split=split, predictor=name, horizon=horizon))
        if answers.certainty:
            certainty[split] = answers.certainty
        for (name, horizon), named_TLK in _contestants(predictor.name, answers, splits["train"], trace).items():
            rows = published_rows(trace, named_TLK, resamples, seed, rival_TLM=trace.predicted_TLK)
            published.append(_named(rows, split=split, predictor=name, horizon=horizon))
    token = {split: by_horizon[TOKEN] for split, by_horizon in certainty.items()}
    return Evaluation(
        quality=pl.concat(quality),
        calibration=calibration_rows(token),
        calibration_by_layer=layer_errors(certainty, splits),
        width=width_rows(certainty, TOKEN, splits["train"].metadata.top_k),
        prefetch_sets=set_table(certainty, splits, resamples, seed),
        published_protocol=pl.concat(published),
        calibration_error={split: found.after.calibration_error for split, found in token.items()},
        calibration_error_before={split: found.before.calibration_error for split, found in token.items()},
    )


def _answer(predictor: Scored, trace: Trace, *, test: bool) -> _Answers:
    """Ask for each part of the trace once, and keep what the tables need."""
    scalings = {TOKEN: predictor.scaling} | {str(h + 1): x for h, x in enumerate(predictor.layer_scaling_H)}
    hits: dict[str, list[npt.NDArray[np.uint8]]] = {horizon: [] for horizon in scalings}
    named: dict[str, list[npt.NDArray[np.int64]]] = {horizon: [] for horizon in scalings}
    certain: dict[str, list[Certainty]] = {horizon: [] for horizon in scalings}
    for part in groups(trace, copies=len(scalings)):
        token_TLE, layers_HTLE = predictor.both_logits(part)
        for (horizon, scaling), logits_TLE in zip(scalings.items(), (token_TLE, *layers_HTLE), strict=True):
            hits[horizon].append(hits_at_k(logits_TLE, part.experts_TLK))
            if test:
                certain[horizon].append(Certainty.count(logits_TLE, part.experts_TLK, scaling))
            if test and trace.predicted_TLK is not None:
                named[horizon].append(most_probable(logits_TLE, trace.metadata.top_k))
    return _Answers(
        {horizon: np.concatenate(parts) for horizon, parts in hits.items()},
        {horizon: Certainty.joined(parts) for horizon, parts in certain.items() if parts},
        {horizon: np.concatenate(parts) for horizon, parts in named.items() if parts},
    )


def _contestants(
    name: str, answers: _Answers, train: Trace, trace: Trace
) -> dict[tuple[str, str], npt.NDArray[np.integer]]:
    """Ours at every horizon, the published predictions and the paper's baseline; none where nothing was published."""
    if trace.predicted_TLK is None or not answers.named_TLK:
        return {}
    crippled_TLE = CrippledMoeInfinity.fit(train).probabilities_TLE(trace)
    ours: dict[tuple[str, str], npt.NDArray[np.integer]] = {
        (name, horizon): named_TLK for horizon, named_TLK in answers.named_TLK.items()
    }
    return ours | {
        ("published predictions", TOKEN): np.asarray(trace.predicted_TLK),
        ("crippled MoE-Infinity", TOKEN): most_probable(crippled_TLE, trace.metadata.top_k),
    }


def _named(rows: pl.DataFrame, **names: str) -> pl.DataFrame:
    return rows.select(*(pl.lit(value).alias(name) for name, value in names.items()), pl.all())


def _key(predictor: str) -> str:
    return predictor.replace(",", "").replace(" ", "_")
