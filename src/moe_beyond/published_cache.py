"""The paper's prompts and its rules of counting, with more of what a predictor knows than six names a layer.

In the paper's replay (arXiv 2508.17137) a prediction makes an expert the most recently used one. A wrong prediction
therefore stays for a whole round of the layers, in the place of experts that the tokens before did use: at a tenth of
the model hardly anything outlives a token, and the hit rate is recall. Two ways out:

- The same replay, its LRU and its random filling included, in which residents that are still expected of the token are
  touched before each layer. That loads nothing, and what is expected is not the oldest when another has to leave.
- The cache that the simulator replays elsewhere: what was fetched ahead and not used is no more recent than it was, and
  when a layer is about to ask, its own residents do not leave as if its turn had passed. It starts empty, of which ten
  tokens leave nothing. A token's experts of a layer are asked for together, as a router does; since every policy here
  keeps what it loads, room for them can be made first, and no more than the slots are ever taken.

Everything else is as published: as many slots, prompts one by one, ten tokens that are replayed and not counted, at
most as many experts fetched ahead of a layer as were published.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, H layers ahead, D distances in layers, P prompts, N events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.predictor.base import Predictor
from moe_beyond.published_scores import (
    PROTOCOL,
    PUBLISHED_SHARES,
    Counts,
    bytes_in_mib,
    figures,
    published_counts,
)
from moe_beyond.simulator.budget import Budget
from moe_beyond.simulator.cache import PREFETCH_BYTES
from moe_beyond.simulator.events import Events, events_of
from moe_beyond.simulator.experiment import answers_of
from moe_beyond.simulator.plans import Lessons
from moe_beyond.simulator.policies.base import Policy
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.prefetch import Prefetch
from moe_beyond.simulator.published_protocol import WARM_UP_TOKENS, most_probable
from moe_beyond.simulator.replay import replay
from moe_beyond.traces.schema import Trace

PUBLISHED = "published"
"""The cache of the paper: LRU, of which predictions are uses."""
TOUCHED = "published_touched"
"""The same, in which residents that are still expected of the token are touched before each layer."""
STILL_EXPECTED = 0.03
"""An expert of at least this probability counts as still expected; chosen on validation prompts of two models, among
0.01 to 0.12: lower ones hit hardly more and move more bytes."""
PUBLISHED_PREDICTIONS = "published_predictions"
# nothing is fetched ahead of a token of the warm-up: its probabilities are set to 0
_LEAST = 1e-6
CACHES = {
    "split": pl.String,
    "predictor": pl.String,
    "cache": pl.String,
    **{name: kind for name, kind in PROTOCOL.items() if name != "recall_at_k"},
}


def rows_by_cache(
    split: str, trace: Trace, training: Trace, predictors: Sequence[Predictor], *, resamples: int, seed: int
) -> pl.DataFrame:
    """Predictors under the paper's rules of counting, through the paper's cache and through ours.

    Args:
        split: Name of the split.
        trace: Prompts to replay, with a published predictor's answers; without them there are no rows.
        training: Prompts that popularity comes from.
        predictors: Asked ahead of each layer where they can answer there, else ahead of each token.
        resamples: Bootstrap resamples of prompts behind the intervals.
        seed: Of the bootstrap, and the first one of the paper's random fillings.

    Returns:
        A row for each predictor, cache and capacity: split, predictor, cache (`published`, `published_touched`, or
        the policy that evicts), capacity_experts, and as in `published_scores.published_rows` hit_rate and
        mib_per_token with 95 % intervals by prompt, gain and mib_change against the published predictions in the
        published cache, paired by prompt.
    """
    if trace.predicted_TLK is None or not (trace.positions_T >= WARM_UP_TOKENS).any():
        return pl.DataFrame(schema=CACHES)
    events, rows = events_of(trace, "token_by_token"), []
    contestants = list(_contestants(trace, events, training, predictors))
    for share in PUBLISHED_SHARES:
        capacity = max(1, int(share * trace.metadata.num_model_experts))
        paper = published_counts(trace, np.asarray(trace.predicted_TLK), capacity, seed)
        for one in contestants:
            found = {
                PUBLISHED: published_counts(trace, one.named_TLK, capacity, seed),
                TOUCHED: published_counts(trace, one.named_TLK, capacity, seed, one.expected_DTLE),
            }
            found |= {name: _counts(trace, events, policy, capacity) for name, policy in one.policies.items()}
            for cache, counts in found.items():
                rows.append((split, one.name, cache, capacity, *figures(counts, paper, resamples, seed)))
    return pl.DataFrame(rows, CACHES, orient="row")


@dataclass(frozen=True)
class _Contestant:
    """A predictor's answers in every form that a cache here takes.

    Attributes:
        name: Of the predictor.
        named_TLK: int64, the experts named for each layer.
        expected_DTLE: bool, the experts expected of each layer, as `published_replay` reads them.
        policies: By the name of who evicts.
    """

    name: str
    named_TLK: npt.NDArray[np.int64]
    expected_DTLE: npt.NDArray[np.bool_]
    policies: dict[str, Policy]


def _contestants(
    trace: Trace, events: Events, training: Trace, predictors: Sequence[Predictor]
) -> Iterator[_Contestant]:
    """The predictors, then the published answers."""
    meta, warm_T = trace.metadata, trace.positions_T < WARM_UP_TOKENS
    popularity_LE = Lessons(training).popularity_LE
    for predictor in predictors:
        answers = answers_of(trace, events, predictor, popularity_LE, meta.top_k)
        layers, ahead_HTLE = answers.layers_HTLE is not None, answers.layers_HTLE
        # from the answer for the nearest layer to that of the token step, which holds for all that are farther
        known_DTLE = answers.probabilities_TLE[None]
        if ahead_HTLE is not None:
            known_DTLE = np.concatenate([ahead_HTLE, known_DTLE])
        counted = replace(
            answers,
            probabilities_TLE=np.where(warm_T[:, None, None], np.float32(0), answers.probabilities_TLE),
            layers_HTLE=None if ahead_HTLE is None else np.where(warm_T[:, None, None], np.float32(0), ahead_HTLE),
        )
        evictions: dict[str, Policy] = {"lru": Lru(), "anticipate": answers.anticipate(bypass=False)}
        policies: dict[str, Policy] = {
            name: counted.prefetch(eviction, _LEAST, layers=layers) for name, eviction in evictions.items()
        }
        named_TLK = most_probable(known_DTLE[0], meta.top_k)
        yield _Contestant(answers.name, named_TLK, known_DTLE >= STILL_EXPECTED, policies)
    published_TLK = np.asarray(trace.predicted_TLK, np.int64)
    named_TLE = np.zeros((trace.num_tokens, meta.num_layers, meta.num_experts), np.float32)
    np.put_along_axis(named_TLE, published_TLK, np.float32(1), axis=2)
    expected_DTLE = named_TLE[None] > 0
    named_TLE[warm_T] = 0
    # without probabilities nobody can say what is used next
    prefetch = Prefetch(PUBLISHED_PREDICTIONS, named_TLE, published_TLK.shape[2], Lru(), _LEAST)
    yield _Contestant(PUBLISHED_PREDICTIONS, published_TLK, expected_DTLE, {"lru": prefetch})


def _counts(trace: Trace, events: Events, policy: Policy, capacity: int) -> Counts:
    """Hits and loads of the counted tokens, a prompt."""
    replayed = replay(events, policy, Budget.slots(trace.metadata, capacity), keep_warm=False)
    counted_N = (trace.positions_T >= WARM_UP_TOKENS)[events.token_S[events.step_N]]
    prompt_N = events.prompt_S[events.step_N][counted_N]
    wanted_N, misses_N = np.diff(events.offsets_N)[counted_N], replayed.misses_N[counted_N].astype(np.int64)
    missed_bytes_N = misses_N * np.asarray(trace.metadata.expert_bytes, np.int64)[events.layer_N[counted_N]]

    def by_prompt(values_N: np.ndarray) -> np.ndarray:
        return np.bincount(prompt_N, values_N, trace.num_prompts)

    accesses_P = by_prompt(wanted_N)
    loaded_P = by_prompt(missed_bytes_N) + replayed.counts_PFC[:, :, PREFETCH_BYTES].sum(axis=1)
    return Counts(
        accesses_P - by_prompt(misses_N), accesses_P, bytes_in_mib(loaded_P), accesses_P / trace.metadata.token_cycle
    )
