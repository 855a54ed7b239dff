"""The paper's prompts and its rules of counting, through its own cache and through others: like with like.

Both sides, our predictor and the predictions that the paper's authors published, go through the very same cache, with
at most as many experts prefetched ahead of a layer as were published (six). Three caches:

- `paper_lru`: the paper's replay unchanged (`protocol`). A prediction makes an expert the most recently used one, so a
  wrong one stays for a round of all layers.
- `lru`: LRU in which only uses renew an expert.
- `anticipate`: eviction by the predicted next use. The published predictions have no probabilities: an expert that is
  named counts as 1, any other as 0.

The last two start empty, which no longer matters after ten uncounted tokens; a token's experts of a layer are used
together, as by a router.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, H layers ahead, P prompts, N events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.intervals import Resamples, interval_columns
from moe_beyond.paper.protocol import WARM_UP_TOKENS
from moe_beyond.paper.scores import PUBLISHED_SHARES, Counts, bytes_in_mib, published_counts
from moe_beyond.predictor.base import LayerPredictor
from moe_beyond.predictor.baselines import Popularity
from moe_beyond.predictor.recall import most_probable
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.cache import PREFETCH_BYTES
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.predictions import Predictions
from moe_beyond.simulator.schedule.events import Events, events_of
from moe_beyond.traces.schema import Trace

PAPER_LRU = "paper_lru"
# nothing is prefetched ahead of a token of the warm-up: its probabilities are set to 0
_LEAST = 1e-6
_FIGURES = ("hit_rate", "mib_per_token")
CACHES = {
    "split": pl.String,
    "cache": pl.String,
    "capacity_experts": pl.Int64,
    **{
        column: pl.Float64
        for side in ("ours", "paper", "difference")
        for figure in _FIGURES
        for column in interval_columns(f"{side}_{figure}")
    },
}


def rows_by_cache(
    split: str, trace: Trace, training: Trace, predictor: LayerPredictor, *, resamples: int, seed: int
) -> pl.DataFrame:
    """Both predictors under the paper's rules of counting, through each cache.

    Args:
        split: Name of the split.
        trace: Prompts to replay, with published predictions; without them there are no rows.
        training: Prompts that popularity comes from.
        predictor: Ours, which predicts ahead of each layer.
        resamples: Bootstrap resamples of prompts behind the intervals.
        seed: Of the bootstrap, and the first one of the paper's random fillings.

    Returns:
        A row a cache and capacity: hit rate and MiB a token of both sides, and how much ours differs, paired by prompt,
        all with 95 % intervals.
    """
    if trace.predicted_TLK is None or not (trace.positions_T >= WARM_UP_TOKENS).any():
        return pl.DataFrame(schema=CACHES)
    sides = [_side(trace, training, predictor), _side(trace, training, _Published(trace))]
    draws = Resamples.draw(trace.num_prompts, resamples, seed)
    rows: list[dict[str, Any]] = []
    for share in PUBLISHED_SHARES:
        capacity = max(1, int(share * trace.metadata.num_model_experts))
        counts = [{PAPER_LRU: published_counts(trace, side.named_TLK, capacity, seed)} for side in sides]
        for found, side in zip(counts, sides, strict=True):
            found |= {name: _counts(trace, side.events, policy, capacity) for name, policy in side.policies.items()}
        for cache, ours in counts[0].items():
            row: dict[str, Any] = {"split": split, "cache": cache, "capacity_experts": capacity}
            for figure in _FIGURES:
                own, paper = getattr(ours, figure), getattr(counts[1][cache], figure)
                row |= draws.ratio(own).columns(f"ours_{figure}") | draws.ratio(paper).columns(f"paper_{figure}")
                row |= draws.difference(own, paper).columns(f"difference_{figure}")
            rows.append(row)
    return pl.DataFrame(rows, CACHES)


@dataclass(frozen=True)
class _Side:
    """A predictor in every form that a cache here takes.

    Attributes:
        named_TLK: int64; the experts named for each layer.
        events: Of the trace, every token by itself.
        policies: By the name of the eviction.
    """

    named_TLK: npt.NDArray[np.int64]
    events: Events
    policies: dict[str, Policy]


class _Published:
    """The published predictions as a predictor: 1 for an expert that is named, 0 for any other."""

    name = "published predictions"
    horizon = 1

    def __init__(self, trace: Trace) -> None:
        meta = trace.metadata
        self._named_TLE = np.zeros((trace.num_tokens, meta.num_layers, meta.num_experts), np.float32)
        np.put_along_axis(self._named_TLE, np.asarray(trace.predicted_TLK, np.int64), np.float32(1), axis=2)

    def probabilities_TLE(self, trace: Trace) -> npt.NDArray[np.float32]:
        return self._named_TLE

    def layer_probabilities_HTLE(self, trace: Trace) -> npt.NDArray[np.float32]:
        return self._named_TLE[None]


@dataclass(frozen=True)
class _AfterWarmUp:
    """Predictions with none for the warm-up's tokens, ahead of which nothing may be prefetched, as a predictor."""

    predictions: Predictions
    warm_T: npt.NDArray[np.bool_]

    @property
    def name(self) -> str:
        return self.predictions.predictor.name

    def probabilities_TLE(self, trace: Trace) -> npt.NDArray[np.float32]:
        return np.where(self.warm_T[:, None, None], np.float32(0), self.predictions.probabilities_TLE)

    def layer_probabilities_HTLE(self, trace: Trace) -> npt.NDArray[np.float32]:
        layers_HTLE = np.asarray(self.predictions.layer_probabilities_HTLE)
        return np.where(self.warm_T[:, None, None], np.float32(0), layers_HTLE)


def _side(trace: Trace, training: Trace, predictor: LayerPredictor) -> _Side:
    events = events_of(trace, "token_by_token")
    popularity_LE = Popularity.fit(training).popularity_LE
    every = Predictions(predictor, trace, events)
    named_TLK = np.asarray(trace.predicted_TLK, np.int64)
    if not isinstance(predictor, _Published):
        named_TLK = most_probable(np.asarray(every.layer_probabilities_HTLE)[0], named_TLK.shape[2])
    predictions = Predictions(_AfterWarmUp(every, trace.positions_T < WARM_UP_TOKENS), trace, events)
    evictions: dict[str, Policy] = {"lru": Lru(), "anticipate": every.eviction(popularity_LE, bypass=False)}
    width = named_TLK.shape[2]
    policies: dict[str, Policy] = {
        name: predictions.prefetch(eviction, width, _LEAST, layers=True) for name, eviction in evictions.items()
    }
    return _Side(named_TLK, events, policies)


def _counts(trace: Trace, events: Events, policy: Policy, capacity: int) -> Counts:
    """Hits and loads of the counted tokens, a prompt."""
    replayed = replay(events, policy, Budget.slots(trace.metadata, capacity), keep_warm=False)
    counted_N = (trace.positions_T >= WARM_UP_TOKENS)[events.token_S[events.step_N]]
    prompt_N = events.prompt_S[events.step_N][counted_N]
    used_N, misses_N = np.diff(events.offsets_N)[counted_N], replayed.misses_N[counted_N].astype(np.int64)
    missed_bytes_N = misses_N * np.asarray(trace.metadata.expert_bytes, np.int64)[events.layer_N[counted_N]]

    def by_prompt(values_N: np.ndarray) -> np.ndarray:
        return np.bincount(prompt_N, values_N, trace.num_prompts)

    accesses_P = by_prompt(used_N)
    loaded_P = by_prompt(missed_bytes_N) + replayed.counts_PFC[:, :, PREFETCH_BYTES].sum(axis=1)
    return Counts(
        accesses_P - by_prompt(misses_N), accesses_P, bytes_in_mib(loaded_P), accesses_P / trace.metadata.token_cycle
    )
