"""Pairs of experts equal a slow count; bits are known at both ends."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.assess.pair_tables import MOST_EXPERTS, pair_tables
from moe_beyond.assess.pairs import bits_by_chance, coactivation, transitions
from tests.traces.random_traces import random_trace, trace_of

traces = st.builds(
    random_trace,
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    layers=st.integers(2, 3),
    experts=st.integers(4, 9),
    top_k=st.integers(2, 3),
    seed=st.integers(0, 1000),
)


@given(trace=traces)
def test_counts_equal_a_slow_count(trace):
    experts = trace.metadata.num_experts
    here, there = trace.experts_TLK[:, 0], trace.experts_TLK[:, 1]
    inside, across = coactivation(here, experts), transitions(here, there, experts)
    assert inside is not None
    for a in range(experts):
        for b in range(experts):
            both = sum(a in row and b in row for row in here.tolist())
            assert inside.tokens_EE[a, b] == (both if a < b else 0)
            onward = sum(a in x and b in y for x, y in zip(here.tolist(), there.tolist(), strict=True))
            assert across.tokens_EE[a, b] == onward
    # chance explains as many meetings as there are
    assert inside.expected_EE.sum() == pytest.approx(inside.tokens_EE.sum())
    assert across.expected_EE.sum() == pytest.approx(across.tokens_EE.sum())
    assert inside.bits >= 0
    assert across.bits >= 0


def test_experts_that_always_come_in_pairs_are_lifted_and_no_others():
    twins = np.random.default_rng(0).integers(0, 4, 4000)
    pairs = coactivation(np.stack([2 * twins, 2 * twins + 1], axis=1).astype(np.uint8), 8)
    assert pairs is not None
    met = pairs.tokens_EE > 0
    assert met.sum() == 4
    # 28 pairs could meet and 4 do
    assert pairs.lift_EE[met] == pytest.approx(7, rel=0.1)
    assert pairs.bits == pytest.approx(np.log2(7), rel=0.02)


def test_a_layer_that_decides_the_next_gives_all_its_entropy_and_chance_gives_none():
    here = np.random.default_rng(1).integers(0, 8, (20_000, 1), np.uint8)
    there = (here * 3 + 1) % 8
    assert transitions(here, there, 8).bits == pytest.approx(3, abs=0.01)
    assert bits_by_chance(here, there, 8) < 0.01


def test_a_model_that_uses_one_expert_a_token_has_no_pairs_within_a_layer():
    trace = random_trace([50], layers=2, experts=4, top_k=1)
    tables = pair_tables(trace, 5)
    assert tables.coactivation.is_empty()
    assert tables.by_layer["coactivation_bits"].to_list() == [None, None]
    assert tables.transitions["layer"].unique().to_list() == [1]


def test_tables_hold_the_most_telling_pairs_of_each_layer_and_one_layer_whole():
    rng = np.random.default_rng(2)
    twins = rng.integers(0, 4, 500)
    random = random_trace([500], layers=2, experts=8, top_k=2).experts_TLK
    paired = np.stack([2 * twins, 2 * twins + 1], axis=1)
    trace = trace_of(np.stack([random[:, 0], paired, random[:, 1]], axis=1), [500], 8)
    tables = pair_tables(trace, 3)
    sizes = dict(tables.coactivation.group_by("layer").len().iter_rows())
    assert sizes == {1: 3, 2: 28, 3: 3}
    assert tables.by_layer["coactivation_bits"].arg_max() == 1
    assert tables.by_layer["next_layer_bits"].null_count() == 1
    best = tables.coactivation.sort("lift", descending=True).head(4)
    assert sorted(best.select("expert", "other").rows()) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    whole = tables.transitions.group_by("layer").len().sort("len")["len"].to_list()
    assert whole == [3, 64]
    # a token chooses two experts, so the chances of the next layer's add up to two
    layer = tables.transitions.group_by("layer").len().sort("len")["layer"][1]
    sums = tables.transitions.filter(pl.col("layer") == layer).group_by("expert").agg(pl.col("probability").sum())
    assert sums["probability"].to_list() == pytest.approx([2] * 8)


def test_a_layer_of_very_many_experts_is_listed_for_the_most_used():
    tables = pair_tables(random_trace([400], layers=2, experts=100, top_k=4), 10)
    whole = tables.coactivation.group_by("layer").agg(pl.col("expert").n_unique(), pl.len()).sort("len")
    assert MOST_EXPERTS * (MOST_EXPERTS - 1) // 2 <= whole["len"][1] <= MOST_EXPERTS * (MOST_EXPERTS - 1) // 2 + 10
