"""A predictor beside the baselines, on every split, with intervals by prompt.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.calibration import Reliability, reliability
from moe_beyond.metrics import groups, hits_at_k, quality_rows, ratio_interval, score
from moe_beyond.predictor.base import Predictor
from moe_beyond.predictor.baselines import fit_baselines
from moe_beyond.simulator.published_protocol import (
    BASELINE_PROMPTS,
    WARM_UP_TOKENS,
    crippled_moe_infinity,
    most_probable,
    published_replay,
)
from moe_beyond.traces.schema import Trace

PUBLISHED_SHARES = (0.1, 0.2, 0.5)
"""Capacities of the paper's own table, as shares of the model's experts, rounded down as there."""
PUBLISHED_FILLINGS = 10
"""Random fillings of the cache that a hit rate is the mean of."""

_TEST = "test_"
_CALIBRATION = {
    "split": pl.String,
    "bin_low": pl.Float64,
    "bin_high": pl.Float64,
    "mean_probability": pl.Float64,
    "observed_share": pl.Float64,
    "count": pl.Int64,
}
_WIDTH = {"split": pl.String, "width": pl.Int64, "recall": pl.Float64}
_PROTOCOL = {
    "capacity_experts": pl.Int64,
    "hit_rate": pl.Float64,
    "recall_at_k": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
}
_PUBLISHED = {"split": pl.String, "predictor": pl.String, **_PROTOCOL}


@dataclass(frozen=True)
class Evaluation:
    """What is known of a predictor; every attribute is a table of the same name.

    Attributes:
        quality: A row for each split, predictor, phase and layer: split, predictor and the columns of
            `metrics.quality_rows`.
        calibration: Test splits: split and the columns of `Reliability.bins`.
        width: Test splits: split, width, recall, as `Reliability.coverage`.
        published_protocol: Test splits with a published predictor's answers: split, predictor, capacity_experts,
            hit_rate, recall_at_k, low, high (95 % interval of the hit rate by prompt).
        calibration_error: Test split -> expected calibration error.
    """

    quality: pl.DataFrame
    calibration: pl.DataFrame
    width: pl.DataFrame
    published_protocol: pl.DataFrame
    calibration_error: dict[str, float]

    def tables(self) -> dict[str, pl.DataFrame]:
        """The tables by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, pl.DataFrame)}

    def metrics(self) -> dict[str, Any]:
        """recall@k over all tokens and layers, split -> predictor, and calibration; the rest stands in the tables."""
        overall = self.quality.filter((pl.col("phase") == "all") & (pl.col("layer") == "all"))
        nested: dict[str, dict[str, float]] = {}
        for row in overall.iter_rows(named=True):
            nested.setdefault(row["split"], {})[row["predictor"].replace(" ", "_")] = row["recall_at_k"]
        return {"recall_at_k": nested, "calibration_error": self.calibration_error}


@dataclass(frozen=True)
class _Answers:
    """What one pass of the predictor over a split leaves; its probabilities are gone by then."""

    hits_TL: npt.NDArray[np.uint8]
    reliability: Reliability | None
    named_TLK: npt.NDArray[np.int64] | None


def evaluate(predictor: Predictor, splits: Mapping[str, Trace], resamples: int, seed: int) -> Evaluation:
    """Score a predictor and every baseline, the latter fitted on the training split.

    Args:
        predictor: What is to be shipped.
        splits: By name; `train` must be there. Its rows show how far each predictor has learnt by heart.
        resamples: Bootstrap resamples of prompts.
        seed: Of the bootstrap, and the first of those that fill the cache at random.
    """
    baselines = fit_baselines(splits["train"])
    quality, calibration, widths, published, errors = [], [], [], [], {}
    for split, trace in splits.items():
        answers = _answer(predictor, trace, test=split.startswith(_TEST))
        hits = {predictor.name: answers.hits_TL} | {other.name: score(other, trace) for other in baselines}
        for name, hits_TL in hits.items():
            quality.append(_named(quality_rows(trace, hits_TL, resamples, seed), split=split, predictor=name))
        if answers.reliability is not None:
            calibration.append(_named(answers.reliability.bins(), split=split))
            widths.append(_named(answers.reliability.coverage(trace.metadata.top_k), split=split))
            errors[split] = answers.reliability.calibration_error
        if answers.named_TLK is not None:
            contestants = _published_contestants(predictor.name, answers.named_TLK, splits["train"], trace)
            for name, named_TLK in contestants.items():
                rows = published_rows(trace, named_TLK, resamples, seed)
                published.append(_named(rows, split=split, predictor=name))
    return Evaluation(
        pl.concat(quality),
        pl.concat([pl.DataFrame(schema=_CALIBRATION), *calibration]),
        pl.concat([pl.DataFrame(schema=_WIDTH), *widths]),
        pl.concat([pl.DataFrame(schema=_PUBLISHED), *published]),
        errors,
    )


def published_rows(trace: Trace, named_TLK: npt.NDArray[np.integer], resamples: int, seed: int) -> pl.DataFrame:
    """A predictor's answers under the protocol of arXiv 2508.17137, a row a capacity.

    Args:
        trace: Prompts to replay.
        named_TLK: Experts that the predictor names for each token and layer, [T, L, any number].
        resamples: Bootstrap resamples of prompts behind the interval.
        seed: Of the bootstrap; the fillings take this one and those after it.

    Returns:
        Columns capacity_experts, hit_rate (over all fillings), recall_at_k (share of true experts among those named,
        over the tokens that the protocol counts), low, high (95 % interval of the hit rate). No rows if every prompt
        ends within the warm-up.
    """
    counted_T = trace.positions_T >= WARM_UP_TOKENS
    if not counted_T.any():
        return pl.DataFrame(schema=_PROTOCOL)
    true_TLK, answered_TLK = trace.experts_TLK[counted_T], named_TLK[counted_T]
    recall = (true_TLK[..., :, None] == answered_TLK[..., None, :]).any(axis=-1).mean()
    rows = []
    for share in PUBLISHED_SHARES:
        capacity = max(1, int(share * trace.metadata.num_model_experts))
        replays = [published_replay(trace, named_TLK, capacity, seed + i) for i in range(PUBLISHED_FILLINGS)]
        hits_P = np.sum([replay.hits_P for replay in replays], axis=0)
        accesses_P = np.sum([replay.accesses_P for replay in replays], axis=0)
        interval = ratio_interval(hits_P, accesses_P, resamples, seed)
        rows.append((capacity, hits_P.sum() / accesses_P.sum(), recall, *interval))
    return pl.DataFrame(rows, _PROTOCOL, orient="row")


def _answer(predictor: Predictor, trace: Trace, *, test: bool) -> _Answers:
    """Ask for each part of the trace once, and keep what the tables need."""
    hits, named, total = [], [], None
    for part in groups(trace):
        probabilities_TLE = predictor.probabilities_TLE(part)
        hits.append(hits_at_k(probabilities_TLE, part.experts_TLK))
        if test:
            counts = reliability(probabilities_TLE, part.experts_TLK)
            total = counts if total is None else total + counts
        if test and trace.predicted_TLK is not None:
            named.append(most_probable(probabilities_TLE, trace.metadata.top_k))
    return _Answers(np.concatenate(hits), total, np.concatenate(named) if named else None)


def _published_contestants(
    name: str, named_TLK: npt.NDArray[np.int64], train: Trace, trace: Trace
) -> dict[str, npt.NDArray[np.integer]]:
    """Ours, the published predictor, and the paper's baseline made of the first training prompts."""
    if trace.predicted_TLK is None:
        raise AssertionError("only asked for where a published predictor answered")
    history = train.select(np.arange(min(BASELINE_PROMPTS, train.num_prompts)))
    return {
        name: named_TLK,
        "published predictions": np.asarray(trace.predicted_TLK),
        "crippled MoE-Infinity": crippled_moe_infinity(history, trace.num_tokens),
    }


def _named(rows: pl.DataFrame, **names: str) -> pl.DataFrame:
    return rows.select(*(pl.lit(value).alias(name) for name, value in names.items()), pl.all())
