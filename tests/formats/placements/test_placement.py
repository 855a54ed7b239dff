"""How a budget is dealt out, and what cannot be a placement."""

from dataclasses import replace

import numpy as np
import pytest

from moe_beyond.formats.placements import FORMATS, Placement
from tests.formats.placements.small import COUNTS, DENSE, FLAT, OPTIONS, counts_of
from tests.traces.refusals import refused


@pytest.mark.parametrize(
    ("split", "budget", "slots"),
    [
        ("model", 60, [3, 3, 0]),
        ("layer", 60, [2, 2, 2]),
        ("layer", 59, [1, 1, 1]),
        ("layer", 10_000, [4, 4, 4]),
        ("layers", 60, [0, 0, 4]),
        ("layers", 90, [0, 4, 4]),
        ("last layers", 90, [0, 4, 4]),
        ("model", 10_000, [4, 4, 4]),
    ],
)
def test_a_budget_is_dealt_out_as_the_engine_does(split, budget, slots):
    placement = Placement.of(counts_of(COUNTS, FLAT, (10, 10, 10)), split, budget_bytes=budget)
    assert placement.slots_L.tolist() == slots
    assert (placement.num_kept, placement.kept_bytes) == (sum(slots), 10 * sum(slots))


def test_whole_layers_are_those_that_are_small():
    counts = counts_of(COUNTS, FLAT, (5, 10, 20))
    assert Placement.of(counts, "layers", budget_bytes=65).slots_L.tolist() == [4, 4, 0]
    assert Placement.of(counts, "last layers", budget_bytes=85).slots_L.tolist() == [0, 0, 4]


def test_layers_of_the_model_are_numbered_with_the_dense_ones():
    placement = Placement.of(counts_of(COUNTS, DENSE), "model", slots=2, model_layers=6)
    assert [sum(row) for row in placement.rows_of_model] == [0, 8, 8, 8, 0, 0]
    assert placement.model.dense_layers == (0, 4, 5)
    assert placement.ranked == [(0, 1), (0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_what_cannot_be_placed_is_refused():
    counts, sized = counts_of(COUNTS, DENSE), counts_of(COUNTS, DENSE, (10, 10, 10))
    refused("give either --budget-mib or --slots", Placement.of, counts, "model")
    refused("give either --budget-mib or --slots", Placement.of, sized, "model", slots=1, budget_bytes=10)
    refused("do not say how large an expert is", Placement.of, counts, "model", budget_bytes=10)
    refused("slots: 5 of each layer's 4 experts", Placement.of, counts, "layer", slots=5)
    refused("9 bytes do not hold an expert;", Placement.of, sized, "model", budget_bytes=9)
    refused("29 bytes do not hold an expert of each layer", Placement.of, sized, "layer", budget_bytes=29)
    refused("3 slots do not hold all experts of a layer", Placement.of, counts, "layers", slots=1)
    refused(
        "model layers: 3, but layer 3 has experts; give at least 4",
        Placement.of,
        counts,
        "model",
        slots=1,
        model_layers=3,
    )
    refused(
        "layer 1 has no counts", Placement.of, replace(counts, counts_LE=COUNTS * [[0], [1], [1]]), "model", slots=1
    )


def test_cliques_and_chains_keep_together_what_tokens_use_together():
    together = np.zeros((1, 6, 6), int)
    for a, b, tokens in ((0, 3, 9), (3, 5, 8), (0, 5, 1), (1, 2, 7), (2, 4, 6), (1, 4, 5), (4, 5, 1)):
        together[0, a, b] = together[0, b, a] = tokens
    counts = counts_of([[10, 12, 13, 18, 12, 11]], (0,))
    placement = Placement.of(counts, "layer", slots=1, together_LEE=together)
    (layer,) = FORMATS["mbolt-perms"].said(placement, OPTIONS)["layers"]
    assert layer["top_cliques"] == [[3, 5, 0], [2, 1, 4]]
    assert layer["clique_perm"] == [3, 5, 0, 2, 1, 4]
    # 0 is used with 3 more often than 5 is
    assert layer["chain_perm"] == [3, 0, 5, 2, 1, 4]
    assert layer["heat_perm"] == [3, 2, 1, 4, 5, 0]
