"""Pairs of experts equal a slow count; bits are known at both ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.assess.pairs import bits_by_chance, coactivation, pair_tables, transitions
from tests.traces.random_traces import random_experts, random_trace, trace_of


@given(tokens=st.integers(1, 40), experts=st.integers(4, 9), top_k=st.integers(2, 3), seed=st.integers(0, 1000))
def test_counts_equal_a_slow_count(tokens, experts, top_k, seed):
    here, there = random_experts((2, tokens), experts, top_k, seed)
    inside, across = coactivation(here, experts), transitions(here, there, experts)
    for a in range(experts):
        for b in range(experts):
            both = sum(a in row and b in row for row in here.tolist())
            assert inside.tokens_EE[a, b] == (both if a < b else 0)
            onward = sum(a in x and b in y for x, y in zip(here.tolist(), there.tolist(), strict=True))
            assert across.tokens_EE[a, b] == onward
    # chance explains as many pairs as there are
    for pairs in (inside, across):
        assert pairs.expected_EE.sum() == pytest.approx(pairs.tokens_EE.sum())
        assert pairs.bits >= 0


def test_experts_that_always_come_in_pairs_are_lifted_and_no_others():
    twins = np.random.default_rng(0).integers(0, 4, 4000)
    pairs = coactivation(np.stack([2 * twins, 2 * twins + 1], axis=1).astype(np.uint8), 8)
    met = pairs.tokens_EE > 0
    assert met.sum() == 4
    # of 28 possible pairs there are 4
    assert pairs.lift_EE[met] == pytest.approx(7, rel=0.1)
    assert pairs.bits == pytest.approx(np.log2(7), rel=0.02)


def test_a_layer_that_decides_the_next_gives_all_its_entropy_and_chance_gives_none():
    here = np.random.default_rng(1).integers(0, 8, (20_000, 1), np.uint8)
    there = (here * 3 + 1) % 8
    assert transitions(here, there, 8).bits == pytest.approx(3, abs=0.01)
    assert bits_by_chance(here, there, 8) < 0.01


def test_a_model_that_uses_one_expert_a_token_has_no_pairs_within_a_layer():
    within, between, by_layer = pair_tables(random_trace([50], layers=2, experts=4, top_k=1), 5)
    assert within.is_empty()
    assert by_layer["coactivation_bits"].to_list() == [None, None]
    assert between["layer"].unique().to_list() == [1]


def test_tables_hold_the_most_telling_pairs_of_each_layer():
    twins = np.random.default_rng(2).integers(0, 4, 500)
    random = random_trace([500], layers=2, experts=8, top_k=2).experts_TLK
    paired = np.stack([2 * twins, 2 * twins + 1], axis=1)
    trace = trace_of(np.stack([random[:, 0], paired, random[:, 1]], axis=1), [500], 8)
    within, between, by_layer = pair_tables(trace, 5)
    # in the second layer four pairs are all there are
    assert dict(within.group_by("layer").len().iter_rows()) == {1: 5, 2: 4, 3: 5}
    assert within.filter(layer=2).select("expert", "other").rows() == [(0, 1), (2, 3), (4, 5), (6, 7)]
    pairs = coactivation(random[:, 0], 8)
    for _, a, b, tokens, lift in within.filter(layer=1).iter_rows():
        assert (tokens, lift) == (pairs.tokens_EE[a, b], pairs.lift_EE[a, b])
        assert pairs.evidence_EE[a, b] >= np.sort(pairs.evidence_EE, axis=None)[-5]
    assert dict(between.group_by("layer").len().iter_rows()) == {1: 5, 2: 5}
    assert by_layer["coactivation_bits"].arg_max() == 1
    assert by_layer["next_layer_bits"].null_count() == 1
