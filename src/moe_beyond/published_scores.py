"""Predictors under the paper's own replay (arXiv 2508.17137), bytes beside its hit rates.

Shape suffixes: T tokens, L MoE layers, P prompts, M experts named for a token and layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.metrics import ratio_interval
from moe_beyond.simulator.published_protocol import WARM_UP_TOKENS, published_replay
from moe_beyond.traces.schema import Trace

PUBLISHED_SHARES = (0.1, 0.2, 0.5)
"""Capacities of the paper's own table, as shares of the model's experts, rounded down as there."""
PUBLISHED_FILLINGS = 10
"""Random fillings of the cache that a hit rate is the mean of."""

_MIB = 2**20
PROTOCOL = {
    "capacity_experts": pl.Int64,
    "hit_rate": pl.Float64,
    "recall_at_k": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "mib_per_token": pl.Float64,
    "mib_low": pl.Float64,
    "mib_high": pl.Float64,
    "gain": pl.Float64,
    "gain_low": pl.Float64,
    "gain_high": pl.Float64,
    "mib_change": pl.Float64,
    "mib_change_low": pl.Float64,
    "mib_change_high": pl.Float64,
}


@dataclass(frozen=True)
class Counts:
    """What a replay counts by prompt, of several fillings the mean.

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


def published_rows(
    trace: Trace,
    named_TLK: npt.NDArray[np.integer],
    resamples: int,
    seed: int,
    *,
    rival_TLM: npt.NDArray[np.integer] | None = None,
) -> pl.DataFrame:
    """A predictor's answers under the paper's protocol, a row a capacity.

    Args:
        trace: Prompts to replay.
        named_TLK: Experts that the predictor names for each token and layer, [T, L, any number].
        resamples: Bootstrap resamples of prompts behind the intervals.
        seed: Of the bootstrap; the fillings take this one and those after it.
        rival_TLM: Another predictor's answers to compare with on the same prompts and fillings.

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
    true_TLK, answered_TLK = trace.experts_TLK[counted_T], named_TLK[counted_T]
    recall = (true_TLK[..., :, None] == answered_TLK[..., None, :]).any(axis=-1).mean()
    rows = []
    for share in PUBLISHED_SHARES:
        capacity = max(1, int(share * trace.metadata.num_model_experts))
        ours = published_counts(trace, named_TLK, capacity, seed)
        theirs = None if rival_TLM is None else published_counts(trace, rival_TLM, capacity, seed)
        hit_rate, *others = figures(ours, theirs, resamples, seed)
        rows.append((capacity, hit_rate, recall, *others))
    return pl.DataFrame(rows, PROTOCOL, orient="row")


def published_counts(
    trace: Trace,
    named_TLK: npt.NDArray[np.integer],
    capacity: int,
    seed: int,
    expected_DTLE: npt.NDArray[np.bool_] | None = None,
) -> Counts:
    """The paper's own replay, as the mean of `PUBLISHED_FILLINGS` fillings from `seed` on; see `published_replay`."""
    replays = [
        published_replay(trace, named_TLK, capacity, seed + i, expected_DTLE=expected_DTLE)
        for i in range(PUBLISHED_FILLINGS)
    ]
    accesses_P = replays[0].accesses_P.astype(np.float64)
    return Counts(
        np.mean([replay.hits_P for replay in replays], axis=0),
        accesses_P,
        bytes_in_mib(np.mean([replay.loaded_bytes_P for replay in replays], axis=0)),
        accesses_P / trace.metadata.token_cycle,
    )


def figures(ours: Counts, theirs: Counts | None, resamples: int, seed: int) -> tuple[float | None, ...]:
    """Hit rate and MiB a token, then how much they differ from another's, each with its interval; null without one."""

    def both(hits_P: npt.NDArray[np.float64], mib_P: npt.NDArray[np.float64]) -> tuple[float, ...]:
        hit_rate = with_interval(hits_P, ours.accesses_P, resamples, seed)
        return *hit_rate, *with_interval(mib_P, ours.tokens_P, resamples, seed)

    own = both(ours.hits_P, ours.mib_P)
    if theirs is None:
        return *own, *(None,) * 6
    return *own, *both(ours.hits_P - theirs.hits_P, ours.mib_P - theirs.mib_P)


def bytes_in_mib(bytes_P: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    """Bytes as MiB, float64."""
    return np.asarray(bytes_P / _MIB, np.float64)


def with_interval(
    numerator_P: npt.NDArray[np.number], denominator_P: npt.NDArray[np.number], resamples: int, seed: int
) -> tuple[float, float, float]:
    """A ratio of sums over prompts, and its 95 % interval."""
    low, high = ratio_interval(numerator_P, denominator_P, resamples, seed)
    return float(numerator_P.sum() / denominator_P.sum()), low, high
