"""Every predictor beside those that read hidden states: what they name, over the same choices for all.

A horizon is `token`, ahead of the token's first layer; `attention`, ahead of each layer's attention; or the number of
layers ahead. A figure of a horizon is over the same (token, layer) places for all predictors:

- `below`: places that have that many layers below, and where every predictor of the horizon knows something;
- `all`: every place, with the token step of the first predictor where a predictor knows nothing, as it is used.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.data.splitting import TEST
from moe_beyond.intervals import Ratio, Resamples
from moe_beyond.predictor.base import Floats, Predictor
from moe_beyond.predictor.baselines import TokenUnigram
from moe_beyond.predictor.from_hidden import FromHidden
from moe_beyond.predictor.hidden_baselines import fit_from_hidden
from moe_beyond.predictor.recall import TOKEN, TwoSteps, groups, horizons
from moe_beyond.traces.schema import ExpertIds, Trace

ATTENTION = "attention"
"""Ahead of the attention of the layer itself."""
BELOW, ALL = "below", "all"
WIDER = (8, 16)
"""Further numbers of experts that are named."""

Bools = npt.NDArray[np.bool_]
Ranks = npt.NDArray[np.uint16]
Scores = tuple[Floats, Bools]
"""Scores that order experts, float32 [T, L, E], and where there are any, bool [T, L]."""


@dataclass(frozen=True)
class Candidate:
    """A predictor, as it is scored here.

    Attributes:
        name: In tables.
        scores: Gives, for a trace, its scores at each horizon.
        copies: Scores [T, L, E] that are held at once.
    """

    name: str
    scores: Callable[[Trace], Mapping[str, Scores]]
    copies: int = 1


def two_steps(predictor: TwoSteps, name: str | None = None) -> Candidate:
    """A token step and a layer step; another name where the same predictor stands there twice."""

    def scores(trace: Trace) -> dict[str, Scores]:
        token_TLE, layers_HTLE = predictor.both_logits(trace)
        shape = token_TLE.shape[:2]
        known = [np.broadcast_to(np.arange(shape[1]) >= ahead, shape) for ahead in range(len(layers_HTLE) + 1)]
        return dict(zip(horizons(predictor), zip((token_TLE, *layers_HTLE), known, strict=True), strict=True))

    return Candidate(name or predictor.name, scores, predictor.horizon + 1)


def token_step(predictor: Predictor) -> Candidate:
    """A token step alone."""

    def scores(trace: Trace) -> dict[str, Scores]:
        found_TLE = predictor.probabilities_TLE(trace)
        return {TOKEN: (found_TLE, np.ones(found_TLE.shape[:2], bool))}

    return Candidate(predictor.name, scores)


def from_hidden(predictor: FromHidden) -> Candidate:
    """A baseline on hidden states, at each of its horizons."""

    def scores(trace: Trace) -> dict[str, Scores]:
        if predictor.first_ahead == 0:
            return {ATTENTION: predictor.scores_ahead(trace, 0)}
        return {str(ahead): predictor.scores_ahead(trace, ahead) for ahead in range(1, predictor.horizon + 1)}

    return Candidate(predictor.name, scores, predictor.horizon)


def evaluate_hidden(
    predictor: TwoSteps,
    without: TwoSteps,
    splits: Mapping[str, Trace],
    missed: Callable[[Trace], Bools],
    *,
    resamples: int,
    seed: int,
) -> pl.DataFrame:
    """The table of `hidden_table` over the test splits; empty where the traces have no hidden states.

    Args:
        predictor: What is to be shipped, with hidden states.
        without: The same without.
        splits: By name; baselines are fitted on `train`, `validation` chooses how smooth they are.
        missed: The choices of a trace that a cache missed, bool [T, L, K].
        resamples: As for `hidden_table`.
        seed: Of the bootstrap and of the baselines that are descended.
    """
    tests = {name: trace for name, trace in splits.items() if name.startswith(TEST) and trace.hidden is not None}
    baselines = fit_from_hidden(splits["train"], splits["validation"], seed) if tests else []
    if not baselines:
        return pl.DataFrame(schema=_COLUMNS)
    both = [two_steps(predictor), two_steps(without, f"{predictor.name} without hidden states")]
    candidates = [*both, token_step(TokenUnigram.fit(splits["train"])), *map(from_hidden, baselines)]
    return pl.concat(
        hidden_table(candidates, name, trace, missed(trace), resamples=resamples, seed=seed)
        for name, trace in tests.items()
    )


def hidden_table(
    candidates: Sequence[Candidate], split: str, trace: Trace, missed_TLK: Bools, *, resamples: int, seed: int
) -> pl.DataFrame:
    """Score every candidate at every horizon that it has.

    Args:
        candidates: The first one has a token step, which stands in where another knows nothing.
        split: Name of the split.
        trace: The split.
        missed_TLK: The router's choices that a cache missed.
        resamples: Bootstrap resamples of prompts behind the intervals.
        seed: Of the bootstrap.

    Returns:
        A row a predictor, horizon, set of places and phase (`all`, `prefill`, `decode`): `split`, `predictor`,
        `horizon`, `places`, `phase`; `tokens` and `num_places`; `predicted`, the share of these places where the
        predictor knew something; `recall_at_k` with its 95 % interval by prompt (`_low`, `_high`), `recall_at_8` and
        `recall_at_16`; `exact_set`, the share of places whose k experts were named without a slip; `misses`, and
        `recall_on_misses` with its interval: the share of them among the k named. What does not apply is null.
    """
    ranks, known = _ranked(candidates, trace)
    draws = Resamples.draw(trace.num_prompts, resamples, seed)
    prompt_T = np.repeat(np.arange(trace.num_prompts), np.diff(trace.prompt_offsets))
    fallback_TLK = ranks.get((candidates[0].name, TOKEN))
    shared: dict[str, Bools] = {}
    for (_, horizon), known_TL in known.items():
        shared[horizon] = shared.get(horizon, np.ones(known_TL.shape, bool)) & known_TL
    rows: list[dict[str, Any]] = []
    order = {horizon: place for place, horizon in enumerate((TOKEN, ATTENTION))}
    for (name, horizon), ranks_TLK in sorted(ranks.items(), key=lambda item: order.get(item[0][1], len(order))):
        known_TL = known[name, horizon]
        kinds = [(BELOW, shared[horizon], ranks_TLK)]
        if fallback_TLK is not None:
            filled_TLK = np.where(known_TL[:, :, None], ranks_TLK, fallback_TLK)
            kinds.append((ALL, np.ones(known_TL.shape, bool), filled_TLK))
        for places, in_TL, used_TLK in kinds:
            if not in_TL.any():
                continue
            for phase, in_T in _phases(trace):
                counts = _Counts.of(used_TLK, missed_TLK, in_TL & in_T[:, None], prompt_T, trace.num_prompts)
                if counts.places_P.any():
                    of = known_TL[in_TL & in_T[:, None]].mean()
                    named = {"split": split, "predictor": name, "horizon": horizon, "places": places, "phase": phase}
                    rows.append(named | {"tokens": counts.tokens, "predicted": float(of)} | counts.row(draws))
    return pl.DataFrame(rows, schema=_COLUMNS)


_COLUMNS: dict[str, type[pl.DataType]] = {
    **dict.fromkeys(("split", "predictor", "horizon", "places", "phase"), pl.String),
    "tokens": pl.Int64,
    "num_places": pl.Int64,
    "predicted": pl.Float64,
    **dict.fromkeys(("recall_at_k", "recall_at_k_low", "recall_at_k_high"), pl.Float64),
    **{f"recall_at_{count}": pl.Float64 for count in WIDER},
    "exact_set": pl.Float64,
    "misses": pl.Int64,
    **dict.fromkeys(("recall_on_misses", "recall_on_misses_low", "recall_on_misses_high"), pl.Float64),
}


@dataclass(frozen=True)
class _Counts:
    """Sums by prompt of some places, int64 [P] each; `named_P` by the number of experts that are named."""

    tokens: int
    top_k: int
    places_P: npt.NDArray[np.int64]
    named_P: dict[int, npt.NDArray[np.int64]]
    exact_P: npt.NDArray[np.int64]
    misses_P: npt.NDArray[np.int64]
    named_misses_P: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls, ranks_TLK: Ranks, missed_TLK: Bools, in_TL: Bools, prompt_T: npt.NDArray[np.int64], num_prompts: int
    ) -> _Counts:
        top_k = ranks_TLK.shape[2]

        def by_prompt(values_TL: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
            sums_T = (values_TL * in_TL).sum(axis=1, dtype=np.int64)
            return np.rint(np.bincount(prompt_T, sums_T, num_prompts)).astype(np.int64)

        named_TLK = ranks_TLK < top_k
        return cls(
            tokens=int(in_TL.any(axis=1).sum()),
            top_k=top_k,
            places_P=by_prompt(in_TL.astype(np.int64)),
            named_P={count: by_prompt((ranks_TLK < count).sum(axis=2)) for count in (top_k, *WIDER)},
            exact_P=by_prompt(named_TLK.all(axis=2).astype(np.int64)),
            misses_P=by_prompt(missed_TLK.sum(axis=2)),
            named_misses_P=by_prompt((missed_TLK & named_TLK).sum(axis=2)),
        )

    def row(self, draws: Resamples) -> dict[str, Any]:
        choices_P = self.places_P * self.top_k
        recall = draws.ratio(Ratio(self.named_P[self.top_k], choices_P))
        misses = Ratio(self.named_misses_P, self.misses_P)
        on_misses = draws.ratio(misses).columns("recall_on_misses") if misses.counts else {}
        return {
            "num_places": int(self.places_P.sum()),
            **recall.columns("recall_at_k"),
            **{f"recall_at_{count}": float(self.named_P[count].sum() / choices_P.sum()) for count in WIDER},
            "exact_set": float(self.exact_P.sum() / self.places_P.sum()),
            "misses": int(self.misses_P.sum()),
            **on_misses,
        }


def _phases(trace: Trace) -> Iterator[tuple[str, Bools]]:
    yield "all", np.ones(trace.num_tokens, bool)
    yield "prefill", trace.is_prefill_T
    yield "decode", ~trace.is_prefill_T


def _ranked(
    candidates: Sequence[Candidate], trace: Trace
) -> tuple[dict[tuple[str, str], Ranks], dict[tuple[str, str], Bools]]:
    """Of each candidate and horizon: how many experts are named before each choice, and where something is known."""
    ranks: dict[tuple[str, str], list[Ranks]] = {}
    known: dict[tuple[str, str], list[Bools]] = {}
    for part in groups(trace, copies=max(one.copies for one in candidates)):
        for one in candidates:
            for horizon, (scores_TLE, known_TL) in one.scores(part).items():
                ranks.setdefault((one.name, horizon), []).append(ranks_of(scores_TLE, part.experts_TLK))
                known.setdefault((one.name, horizon), []).append(known_TL)
    return (
        {key: np.concatenate(parts) for key, parts in ranks.items()},
        {key: np.concatenate(parts) for key, parts in known.items()},
    )


def ranks_of(scores_TLE: Floats, experts_TLK: ExpertIds) -> Ranks:
    """How many experts have a higher score than each choice, or an equal one and a lower id: uint16 [T, L, K]."""
    ranks_TLK = np.zeros(experts_TLK.shape, np.uint16)
    _count_before(np.ascontiguousarray(scores_TLE, np.float32), experts_TLK, ranks_TLK)
    return ranks_TLK


@numba.njit(cache=True)
def _count_before(scores_TLE: Floats, experts_TLK: ExpertIds, ranks_TLK: Ranks) -> None:
    num_tokens, num_layers, top_k = experts_TLK.shape
    for t in range(num_tokens):
        for layer in range(num_layers):
            for slot in range(top_k):
                expert = experts_TLK[t, layer, slot]
                score = scores_TLE[t, layer, expert]
                before = 0
                for other in range(scores_TLE.shape[2]):
                    value = scores_TLE[t, layer, other]
                    if value > score or (value == score and other < expert):
                        before += 1
                ranks_TLK[t, layer, slot] = before
