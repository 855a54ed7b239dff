"""Which experts a token uses together: within a layer, and from one layer to the next; counts, bits and tables.

Every token counts as one step, prefill tokens too. Shape suffixes: T tokens, K experts per token, E experts in a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.simulator.jit import compiled
from moe_beyond.traces.schema import ExpertIds, Trace

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """How often pairs of experts were used together, and how often they would be if they were independent.

    Attributes:
        tokens_EE: Tokens that used both, int64 [E, E]; row: expert of the first layer, column: of the second.
        expected_EE: The same for independent experts of the same popularity, float64 [E, E].
        bits: Kullback-Leibler divergence of the first from the second, in bits a pair: 0 for independent experts.
            Between two layers this is the mutual information of an expert here and an expert there.
    """

    tokens_EE: Counts
    expected_EE: Floats
    bits: float

    @property
    def lift_EE(self) -> Floats:
        """How many times as often as at random; 0 where that would be never."""
        expected = self.expected_EE
        return np.divide(self.tokens_EE, expected, out=np.zeros_like(expected), where=expected > 0)

    @property
    def evidence_EE(self) -> Floats:
        """What each pair adds to `bits`, times the number of pairs: large where a frequent pair is far from chance."""
        lift = self.lift_EE
        bits = np.log2(lift, out=np.zeros_like(lift), where=lift > 0)
        return bits * self.tokens_EE


def coactivation(experts_TK: ExpertIds, num_experts: int) -> Pairs:
    """Pairs of one layer, the upper triangle filled; none where a token uses a single expert.

    A token's experts differ, so even independent ones come together less often than the product of their shares:
    expectations are scaled to as many pairs as there are.
    """
    tokens_EE = np.triu(_together_EE(experts_TK, experts_TK, num_experts), 1)
    popularity_E = np.bincount(experts_TK.reshape(-1), minlength=num_experts)
    expected_EE = np.triu(np.outer(popularity_E, popularity_E), 1).astype(np.float64)
    return _pairs(tokens_EE, expected_EE * (tokens_EE.sum() / max(1.0, expected_EE.sum())))


def transitions(here_TK: ExpertIds, there_TK: ExpertIds, num_experts: int) -> Pairs:
    """Pairs of an expert in one layer and an expert in another, over the same tokens."""
    tokens_EE = _together_EE(here_TK, there_TK, num_experts)
    here_E = np.bincount(here_TK.reshape(-1), minlength=num_experts)
    there_E = np.bincount(there_TK.reshape(-1), minlength=num_experts)
    return _pairs(tokens_EE, np.outer(here_E, there_E) / len(here_TK))


def bits_by_chance(here_TK: ExpertIds, there_TK: ExpertIds, num_experts: int) -> float:
    """Mutual information that a trace of this length shows between independent layers.

    Each token of `here_TK` is paired with the token half the trace away: as popular, and unrelated.
    """
    return transitions(here_TK, np.roll(there_TK, len(there_TK) // 2, axis=0), num_experts).bits


_PAIR = {"layer": pl.Int64, "expert": pl.Int64, "other": pl.Int64, "tokens": pl.Int64, "lift": pl.Float64}


def pair_tables(trace: Trace, pairs_per_layer: int) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Count pairs in every layer and between neighbours; list the `pairs_per_layer` that add most to the bits.

    Returns:
        Pairs within a layer: columns layer, expert, other (the larger id), tokens, lift. Pairs of neighbouring layers:
        layer, expert, next_expert, tokens, lift. By layer: layer, coactivation_bits (null where a token uses one
        expert), next_layer_bits, next_layer_bits_by_chance (null for the last layer).
    """
    numbers, num_experts = trace.metadata.layer_numbers, trace.metadata.num_experts
    within, between, bits = [], [], []
    here_TK = trace.layer_TK(0)
    # one layer after another: of a wide model the tables of all pairs are large
    for index, layer in enumerate(numbers):
        together, onward_bits, chance = coactivation(here_TK, num_experts), None, None
        within.append(_most_telling(layer, together, pairs_per_layer))
        if index + 1 < len(numbers):
            there_TK = trace.layer_TK(index + 1)
            onward = transitions(here_TK, there_TK, num_experts)
            between.append(_most_telling(layer, onward, pairs_per_layer))
            onward_bits, chance = onward.bits, bits_by_chance(here_TK, there_TK, num_experts)
            here_TK = there_TK
        bits.append((layer, together.bits if trace.metadata.top_k > 1 else None, onward_bits, chance))
    measured = ("coactivation_bits", "next_layer_bits", "next_layer_bits_by_chance")
    by_layer = pl.DataFrame(bits, {"layer": pl.Int64} | dict.fromkeys(measured, pl.Float64), orient="row")
    none = pl.DataFrame(schema=_PAIR)
    return pl.concat([none, *within]), pl.concat([none, *between]).rename({"other": "next_expert"}), by_layer


def _most_telling(layer: int, pairs: Pairs, most: int) -> pl.DataFrame:
    """The pairs of a layer that add most to its bits, by expert."""
    order = np.argsort(-pairs.evidence_EE, axis=None, kind="stable")[:most]
    order = np.sort(order[pairs.evidence_EE.flat[order] > 0])
    a, b = np.unravel_index(order, pairs.tokens_EE.shape)
    columns = {"expert": a, "other": b, "tokens": pairs.tokens_EE[a, b], "lift": pairs.lift_EE[a, b]}
    return pl.DataFrame({"layer": np.full(len(order), layer)} | columns, _PAIR)


def _together_EE(here_TK: ExpertIds, there_TK: ExpertIds, num_experts: int) -> Counts:
    return _count_EE(np.array(here_TK), np.array(there_TK), num_experts)


@compiled()
def _count_EE(here_TK: Any, there_TK: Any, num_experts: int) -> Counts:
    total_EE = np.zeros((num_experts, num_experts), np.int64)
    for token in range(len(here_TK)):
        for here in here_TK[token]:
            for there in there_TK[token]:
                total_EE[here, there] += 1
    return total_EE


def _pairs(tokens_EE: Counts, expected_EE: Floats) -> Pairs:
    unscaled = Pairs(tokens_EE, expected_EE, 0.0)
    return Pairs(tokens_EE, expected_EE, max(0.0, float(unscaled.evidence_EE.sum() / max(1, tokens_EE.sum()))))
