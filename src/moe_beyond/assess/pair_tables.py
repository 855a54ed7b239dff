"""Pairs of experts as rows for reports: the most telling ones of every layer, and all of the most telling layer.

Shape suffixes: T tokens, K experts per token, E experts in a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from moe_beyond.assess.pairs import Pairs, bits_by_chance, coactivation, transitions
from moe_beyond.traces.schema import Trace

MOST_EXPERTS = 64
"""A whole layer is listed for so many of its most chosen experts: a picture of more could not be read."""

_TOGETHER: dict[str, type[pl.DataType]] = {
    "layer": pl.Int64,
    "expert": pl.Int64,
    "other": pl.Int64,
    "tokens": pl.Int64,
    "expected_tokens": pl.Float64,
    "lift": pl.Float64,
}
_NEXT: dict[str, type[pl.DataType]] = {
    "layer": pl.Int64,
    "next_layer": pl.Int64,
    "expert": pl.Int64,
    "next_expert": pl.Int64,
    "tokens": pl.Int64,
    "probability": pl.Float64,
    "lift": pl.Float64,
}


@dataclass(frozen=True)
class PairTables:
    """What goes together.

    Attributes:
        coactivation: Columns layer, expert, other (the larger id), tokens, expected_tokens, lift.
        transitions: Columns layer, next_layer, expert, next_expert, tokens, probability (of the next expert, given the
            expert), lift.
        by_layer: Columns layer, coactivation_bits (None where a token uses one expert), next_layer_bits,
            next_layer_bits_by_chance (None for the last layer).
    """

    coactivation: pl.DataFrame
    transitions: pl.DataFrame
    by_layer: pl.DataFrame


def pair_tables(trace: Trace, pairs_per_layer: int) -> PairTables:
    """Count pairs in every layer and between neighbours; list the `pairs_per_layer` that add most to the bits."""
    numbers, num_experts = trace.metadata.layer_numbers, trace.metadata.num_experts
    layers_TK = [trace.experts_TLK[:, place] for place in range(len(numbers))]
    together = [coactivation(layer_TK, num_experts) for layer_TK in layers_TK]
    onward = [transitions(here, there, num_experts) for here, there in pairwise(layers_TK)]
    chance = [bits_by_chance(here, there, num_experts) for here, there in pairwise(layers_TK)]
    by_layer = pl.DataFrame(
        {
            "layer": numbers,
            "coactivation_bits": [None if pairs is None else pairs.bits for pairs in together],
            "next_layer_bits": [*(pairs.bits for pairs in onward), None],
            "next_layer_bits_by_chance": [*chance, None],
        },
        schema_overrides=dict.fromkeys(("coactivation_bits", "next_layer_bits_by_chance"), pl.Float64),
    )
    rows = [
        {"layer": numbers[place], "expert": a, "other": b, "tokens": n, "expected_tokens": e, "lift": lift}
        for place, a, b, n, e, lift in _listed(together, pairs_per_layer, symmetric=True)
    ]
    used = [np.bincount(layer_TK.reshape(-1), minlength=num_experts) for layer_TK in layers_TK]
    steps = [
        {
            "layer": numbers[place],
            "next_layer": numbers[place + 1],
            "expert": a,
            "next_expert": b,
            "tokens": n,
            "probability": n / max(int(used[place][a]), 1),
            "lift": lift,
        }
        for place, a, b, n, _, lift in _listed(onward, pairs_per_layer, symmetric=False)
    ]
    return PairTables(pl.DataFrame(rows, _TOGETHER), pl.DataFrame(steps, _NEXT), by_layer)


def _listed(
    layers: Sequence[Pairs | None], most: int, *, symmetric: bool
) -> list[tuple[int, int, int, int, float, float]]:
    """Place of the layer, both experts, tokens, expected tokens and lift of the pairs that are listed."""
    known = [(place, pairs) for place, pairs in enumerate(layers) if pairs is not None]
    if not known:
        return []
    telling = max(known, key=lambda entry: entry[1].bits)[0]
    found = []
    for place, pairs in known:
        chosen = _most_telling(pairs, most) | (_whole(pairs, symmetric) if place == telling else set())
        lift_EE = pairs.lift_EE
        for a, b in sorted(chosen):
            tokens, expected = int(pairs.tokens_EE[a, b]), float(pairs.expected_EE[a, b])
            found.append((place, a, b, tokens, expected, float(lift_EE[a, b])))
    return found


def _most_telling(pairs: Pairs, most: int) -> set[tuple[int, int]]:
    evidence_EE = pairs.evidence_EE
    order = np.argsort(-evidence_EE, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(order, evidence_EE.shape)
    return {(a, b) for a, b in zip(rows.tolist(), columns.tolist(), strict=True) if evidence_EE[a, b] > 0}


def _whole(pairs: Pairs, symmetric: bool) -> set[tuple[int, int]]:
    """All pairs of the most used experts of either side, also those that never met."""
    here_E, there_E = pairs.tokens_EE.sum(axis=1), pairs.tokens_EE.sum(axis=0)
    if symmetric:
        here_E = there_E = here_E + there_E
    here, there = (np.argsort(-used_E, kind="stable")[:MOST_EXPERTS].tolist() for used_E in (here_E, there_E))
    return {(a, b) for a in here for b in there if not symmetric or a < b}
