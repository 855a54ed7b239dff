"""How good predictions are, in numpy: one definition for training, export, reports and the command line.

A prediction names exactly top-k experts per token and layer: those of largest probability, ties by lower id. With k
named and k true experts, precision, recall and F1 of the active class are one number, recall@k. Accuracy and macro F1
count inactive experts too, which are most of them, and flatter; they are given for comparison with older papers.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, P prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.intervals import Ratio, Resamples
from moe_beyond.predictor.base import Predictor
from moe_beyond.predictor.recall import groups, hits_at_k
from moe_beyond.traces.schema import Trace


@dataclass(frozen=True)
class Quality:
    """Counts from which every metric follows. Accesses are true (token, layer, expert) triples."""

    hits: int
    accesses: int
    num_experts: int
    top_k: int

    @property
    def recall_at_k(self) -> float:
        """Share of true experts that were named; equals precision and F1 of the active class."""
        return self.hits / self.accesses

    @property
    def f1_active(self) -> float:
        """F1 of the active class."""
        return self.recall_at_k

    @property
    def accuracy(self) -> float:
        """Share of (token, layer, expert) elements that are right: each miss makes two wrong ones."""
        elements = self.accesses / self.top_k * self.num_experts
        return 1 - 2 * (self.accesses - self.hits) / elements

    @property
    def f1_macro(self) -> float:
        """Mean of the F1 of the active and of the inactive class."""
        inactive = self.accesses / self.top_k * (self.num_experts - self.top_k)
        f1_inactive = 1 - (self.accesses - self.hits) / inactive if inactive else 1.0
        return (self.f1_active + f1_inactive) / 2


def score(predictor: Predictor, trace: Trace) -> npt.NDArray[np.uint8]:
    """Hits at k of every token and layer, uint8 [T, L]; prompts go through in groups, to bound memory."""
    return np.concatenate([hits_at_k(predictor.probabilities_TLE(part), part.experts_TLK) for part in groups(trace)])


def quality_rows(trace: Trace, hits_TL: npt.NDArray[np.uint8], resamples: int, seed: int) -> pl.DataFrame:
    """Quality over all tokens, by phase and by layer.

    Args:
        trace: The scored trace.
        hits_TL: What `score` gave for it.
        resamples: Bootstrap resamples of prompts behind the interval.
        seed: Of the bootstrap.

    Returns:
        Columns phase (`all`, `prefill`, `decode`), layer (`all` or its number), tokens, recall_at_k, f1_active,
        accuracy, f1_macro, recall_low, recall_high (95 % interval by prompt). Phases without tokens have no row.
    """
    meta = trace.metadata
    prefill_T = trace.is_prefill_T
    prompt_T = np.repeat(np.arange(trace.num_prompts), np.diff(trace.prompt_offsets))
    draws = Resamples.draw(trace.num_prompts, resamples, seed)
    rows = []
    for phase, chosen_T in (("all", np.ones_like(prefill_T)), ("prefill", prefill_T), ("decode", ~prefill_T)):
        tokens = int(chosen_T.sum())
        if tokens == 0:
            continue
        layers: list[tuple[str, slice]] = [("all", slice(None))]
        if phase == "all":
            layers += [(str(number), slice(i, i + 1)) for i, number in enumerate(meta.layer_numbers)]
        for layer, where in layers:
            hits_T = hits_TL[chosen_T, where].sum(axis=1, dtype=np.int64)
            accesses_per_token = meta.top_k * len(range(*where.indices(meta.num_layers)))
            quality = Quality(int(hits_T.sum()), tokens * accesses_per_token, meta.num_experts, meta.top_k)
            hits_P = np.bincount(prompt_T[chosen_T], hits_T, trace.num_prompts)
            accesses_P = np.bincount(prompt_T[chosen_T], minlength=trace.num_prompts) * accesses_per_token
            recall = draws.ratio(Ratio(hits_P, accesses_P))
            rows.append(
                {
                    "phase": phase,
                    "layer": layer,
                    "tokens": tokens,
                    "recall_at_k": quality.recall_at_k,
                    "f1_active": quality.f1_active,
                    "accuracy": quality.accuracy,
                    "f1_macro": quality.f1_macro,
                    "recall_low": recall.low,
                    "recall_high": recall.high,
                }
            )
    # without an interval all of them are null, which has no type of its own
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(("recall_low", "recall_high"), pl.Float64))
