"""The verdict separates routing that a cache can use from routing that it cannot."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.assess.assessment import hit_curves
from moe_beyond.assess.card import hit_rate_at, judge, overlap_shares, static_popularity_curve
from moe_beyond.assess.settings import AssessSettings
from moe_beyond.assess.statistics import layer_statistics
from tests.simulator.strategies import make_trace
from tests.traces.random_traces import random_trace, trace_of

SETTINGS = AssessSettings()


def _budget(share, belady, lru, static=0.0):
    rates = {"belady_hit_rate": belady, "lru_hit_rate": lru, "static_popularity_hit_rate": static}
    return rates | {"capacity_fraction": share, "mib": 1.0, "belady_mib_per_token": 1.0}


VERDICTS = [
    ((0.25, 0.80, 0.60), (0.5, 0.9, 0.8), "go"),
    ((0.25, 0.80, 0.10, 0.60), (0.5, 0.9, 0.8), "go"),
    ((0.25, 0.70, 0.45), (0.5, 0.9, 0.7), "go with a bigger cache"),
    ((0.25, 0.80, 0.26), (0.5, 0.9, 0.7), "go with a bigger cache"),
    ((0.25, 0.70, 0.25), (0.5, 0.9, 0.5), "do not"),
    ((0.25, 0.50, 0.45), (0.5, 0.7, 0.7), "do not"),
]


@pytest.mark.parametrize(("small", "large", "verdict"), VERDICTS)
def test_both_tests_must_pass_at_one_of_the_budgets(small, large, verdict):
    given, reasons = judge(_budget(*small), _budget(*large), SETTINGS)
    assert given == verdict
    assert len(reasons) == (2 if verdict == "go" else 4)


def test_shares_add_up_to_the_overlap():
    layers = layer_statistics(random_trace([40, 30]), (4,))
    assert sum(overlap_shares(layers).values()) == pytest.approx(layers["previous_token_overlap"].mean())


def test_popular_experts_are_skew_and_runs_of_one_choice_are_locality():
    rng = np.random.default_rng(0)
    # expert 0 half of the time, whenever: skew. A choice that lasts ten tokens, all experts alike: locality.
    skewed = np.where(rng.random(4000) < 0.5, 0, rng.integers(1, 16, 4000))
    lasting = np.repeat(rng.integers(0, 16, 400), 10)
    names = ("static_skew", "temporal_locality")
    for choices, (larger, smaller) in ((skewed, names), (lasting, names[::-1])):
        shares = overlap_shares(layer_statistics(trace_of(choices[:, None, None], [4000], 16), (4,)))
        assert shares[larger] > 0.15
        assert abs(shares[smaller]) < 0.03


@pytest.mark.parametrize("lengths", [[400], [100, 100, 100, 100]])
def test_a_pinned_set_is_tested_on_what_it_was_not_counted_on(lengths):
    curve = static_popularity_curve(random_trace(lengths, layers=2, experts=64, top_k=2))
    # the first use of each expert in each half loads it
    assert (curve[0], curve[-1]) == (0, pytest.approx(1 - 2 * 128 / (400 * 2 * 2), abs=0.01))
    assert (np.diff(curve) >= 0).all()
    # routing at random: a quarter of the experts hits a quarter, though the sample's own favourites would hit more
    assert hit_rate_at(curve, 32) == pytest.approx(0.25 * curve[-1], abs=0.05)
    assert hit_rate_at(curve, 31.5) == pytest.approx(curve[31:33].mean())


@given(seed=st.integers(0, 999), lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), enough=st.booleans())
def test_pinned_popularity_never_hits_more_than_belady(seed, lengths, enough):
    trace = make_trace(seed, num_layers=2, num_experts=6, lengths=tuple(lengths), prefill=(0,) * len(lengths))
    if trace.num_tokens < 2:
        return
    # model_copy does not check: fewer tokens than may be set are enough here
    settings = SETTINGS.model_copy(update={"max_curve_tokens": 100 if enough else 8})
    curves = hit_curves(trace, settings)
    assert (curves["static_popularity"] <= curves["belady"] + 1e-12).all()
