"""Predictors under the paper's own replay (arXiv 2508.17137), bytes beside its hit rates.

Shape suffixes: T tokens, L MoE layers, P prompts, M experts named for a token and layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.data.splitting import TEST
from moe_beyond.intervals import Ratio, Resamples, interval_columns
from moe_beyond.paper.protocol import WARM_UP_TOKENS, published_replay
from moe_beyond.predictor.baselines import OneClusterMoeInfinity
from moe_beyond.predictor.recall import TOKEN, TwoSteps, horizons, logits_by_horizon, most_probable
from moe_beyond.traces.schema import Trace

PUBLISHED_SHARES = (0.1, 0.2, 0.5)
"""Capacities of the paper's own table, as shares of the model's experts, rounded down as there."""
PUBLISHED_FILLINGS = 10
"""Random fillings of the cache that a hit rate is the mean of."""

_MIB = 2**20
PROTOCOL = {
    "capacity_experts": pl.Int64,
    **dict.fromkeys(("hit_rate", "recall_at_k", "low", "high", "mib_per_token", "mib_low", "mib_high"), pl.Float64),
    **dict.fromkeys((*interval_columns("gain"), *interval_columns("mib_change")), pl.Float64),
}


@dataclass(frozen=True)
class Counts:
    """Counts of a replay by prompt, of several fillings the mean.

    Attributes:
        hits_P: Accesses that found their expert, float64.
        accesses_P: Counted accesses, float64.
        mib_P: MiB loaded meanwhile, predicted experts too, float64.
        tokens_P: Counted tokens, float64.
    """

    hits_P: npt.NDArray[np.float64]
    accesses_P: npt.NDArray[np.float64]
    mib_P: npt.NDArray[np.float64]
    tokens_P: npt.NDArray[np.float64]

    @property
    def hit_rate(self) -> Ratio:
        """Hits over counted accesses, by prompt."""
        return Ratio(self.hits_P, self.accesses_P)

    @property
    def mib_per_token(self) -> Ratio:
        """MiB over counted tokens, by prompt."""
        return Ratio(self.mib_P, self.tokens_P)


def protocol_table(predictor: TwoSteps, splits: Mapping[str, Trace], resamples: int, seed: int) -> pl.DataFrame:
    """The paper's protocol on every split that holds published predictions: ours, theirs, and the paper's baseline.

    Args:
        predictor: Ours, at each of its horizons.
        splits: By name; the baseline counts the `train` split.
        resamples: Bootstrap resamples of prompts behind the intervals.
        seed: Of the bootstrap; the fillings take this one and those after it.

    Returns:
        Columns split, predictor, horizon and those of `published_rows`, the rival being the published predictions.
    """
    tables = [pl.DataFrame(schema={"split": pl.String, "predictor": pl.String, "horizon": pl.String, **PROTOCOL})]
    for split, trace in splits.items():
        if trace.predicted_TLK is None or not split.startswith(TEST):
            continue
        top_k = trace.metadata.top_k
        named: dict[tuple[str, str], npt.NDArray[np.integer]] = {}
        parts = [logits for _, logits in logits_by_horizon(predictor, trace)]
        for horizon in horizons(predictor):
            logits_TLE = np.concatenate([part[horizon] for part in parts])
            named[predictor.name, horizon] = most_probable(logits_TLE, top_k)
        baseline = OneClusterMoeInfinity.fit(splits["train"])
        named["published predictions", TOKEN] = np.asarray(trace.predicted_TLK)
        named[baseline.name, TOKEN] = most_probable(baseline.probabilities_TLE(trace), top_k)
        for (name, horizon), named_TLK in named.items():
            rows = published_rows(trace, named_TLK, resamples, seed, rival_TLM=trace.predicted_TLK)
            keys = (pl.lit(split).alias("split"), pl.lit(name).alias("predictor"), pl.lit(horizon).alias("horizon"))
            tables.append(rows.select(*keys, pl.all()))
    return pl.concat(tables)


def published_rows(
    trace: Trace,
    named_TLK: npt.NDArray[np.integer],
    resamples: int,
    seed: int,
    *,
    rival_TLM: npt.NDArray[np.integer] | None = None,
) -> pl.DataFrame:
    """A predictor's predictions under the paper's protocol, a row a capacity.

    Args:
        trace: Prompts to replay.
        named_TLK: Experts that the predictor names for each token and layer, [T, L, any number].
        resamples: Bootstrap resamples of prompts behind the intervals.
        seed: Of the bootstrap; the fillings take this one and those after it.
        rival_TLM: Another predictor's predictions to compare with on the same prompts and fillings.

    Returns:
        Columns capacity_experts, hit_rate (over all fillings), recall_at_k (share of true experts among those named,
        over the tokens that the protocol counts), low, high (95 % interval of the hit rate by prompt), mib_per_token
        (experts loaded by that LRU, predicted ones too, MiB for each counted token), mib_low, mib_high; and by how much
        these differ from the rival's, paired by prompt: gain (of the hit rate), mib_change, with intervals; null
        without a rival. No rows if every prompt ends within the warm-up.
    """
    counted_T = trace.positions_T >= WARM_UP_TOKENS
    if not counted_T.any():
        return pl.DataFrame(schema=PROTOCOL)
    true_TLK, counted_TLK = trace.experts_TLK[counted_T], named_TLK[counted_T]
    recall = (true_TLK[..., :, None] == counted_TLK[..., None, :]).any(axis=-1).mean()
    draws = Resamples.draw(trace.num_prompts, resamples, seed)
    rows = []
    for share in PUBLISHED_SHARES:
        capacity = max(1, int(share * trace.metadata.num_model_experts))
        ours = published_counts(trace, named_TLK, capacity, seed)
        theirs = None if rival_TLM is None else published_counts(trace, rival_TLM, capacity, seed)
        hit_rate, mib = draws.ratio(ours.hit_rate), draws.ratio(ours.mib_per_token)
        row = {"capacity_experts": capacity, "hit_rate": hit_rate.value, "recall_at_k": recall}
        row |= {"low": hit_rate.low, "high": hit_rate.high}
        row |= {"mib_per_token": mib.value, "mib_low": mib.low, "mib_high": mib.high}
        if theirs is not None:
            row |= draws.difference(ours.hit_rate, theirs.hit_rate).columns("gain")
            row |= draws.difference(ours.mib_per_token, theirs.mib_per_token).columns("mib_change")
        rows.append(row)
    return pl.DataFrame(rows, PROTOCOL)


def published_counts(
    trace: Trace,
    named_TLK: npt.NDArray[np.integer],
    capacity: int,
    seed: int,
) -> Counts:
    """The paper's own replay, as the mean of `PUBLISHED_FILLINGS` fillings from `seed` on; see `published_replay`."""
    replays = [published_replay(trace, named_TLK, capacity, seed + i) for i in range(PUBLISHED_FILLINGS)]
    accesses_P = replays[0].accesses_P.astype(np.float64)
    return Counts(
        np.mean([replay.hits_P for replay in replays], axis=0),
        accesses_P,
        bytes_in_mib(np.mean([replay.loaded_bytes_P for replay in replays], axis=0)),
        accesses_P / trace.metadata.token_cycle,
    )


def bytes_in_mib(bytes_P: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    """Bytes as MiB, float64."""
    return np.asarray(bytes_P / _MIB, np.float64)
