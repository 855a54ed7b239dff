import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.evaluation.reliability import EDGES, Reliability


def drawn(seed, *, tokens=40, layers=3, experts=12, top_k=2, levels=0):
    """Probabilities and true experts at random; with `levels`, few distinct probabilities, so that many tie."""
    rng = np.random.default_rng(seed)
    scores = rng.random((tokens, layers, experts), np.float32)
    if levels:
        scores = (np.floor(scores * levels) / levels).astype(np.float32)
    ids = rng.permuted(np.tile(np.arange(experts), (tokens, layers, 1)), axis=2)[..., :top_k]
    return scores, ids.astype(np.uint8)


@given(seed=st.integers(0, 10_000), levels=st.integers(0, 6), experts=st.integers(2, 12))
def test_counts_equal_a_loop_over_every_statement(seed, levels, experts):
    scores, ids = drawn(seed, tokens=6, experts=experts, levels=levels)
    result = Reliability.of(scores, ids)
    count, true, total = np.zeros(13, int), np.zeros(13, int), np.zeros(13)
    for token, layer in np.ndindex(scores.shape[:2]):
        for expert in range(experts):
            probability = scores[token, layer, expert]
            place = max(b for b in range(13) if probability >= np.float32(EDGES[b]))
            count[place] += 1
            total[place] += probability
            if expert in ids[token, layer]:
                true[place] += 1
    assert result.count_B.tolist() == count.tolist()
    assert result.true_B.tolist() == true.tolist()
    assert result.sum_B == pytest.approx(total)


@given(seed=st.integers(0, 10_000), cut=st.integers(0, 40), levels=st.sampled_from([0, 4]))
def test_parts_add_up_to_the_whole(seed, cut, levels):
    scores, ids = drawn(seed, levels=levels)
    whole = Reliability.of(scores, ids)
    parts = Reliability.of(scores[:cut], ids[:cut]) + Reliability.of(scores[cut:], ids[cut:])
    assert parts.count_B.tolist() == whole.count_B.tolist()
    assert parts.true_B.tolist() == whole.true_B.tolist()
    assert parts.sum_B == pytest.approx(whole.sum_B)


def test_true_probabilities_are_calibrated_and_boasted_ones_are_not():
    rng = np.random.default_rng(0)
    honest = rng.random((20_000, 1, 2), np.float32)
    honest[..., 1] = 1 - honest[..., 0]  # one of two experts is chosen, the first with its stated probability
    ids = (rng.random((20_000, 1, 1)) >= honest[..., :1]).astype(np.uint8)
    assert Reliability.of(honest, ids).calibration_error < 0.02
    boast = np.where(honest > 0.5, np.float32(0.99), np.float32(0.01))
    result = Reliability.of(boast, ids)
    # half of the statements say 0.99 and three quarters of those come true
    assert result.calibration_error == pytest.approx(0.24, abs=0.01)
    assert result.bins()["bin_low"].to_list() == [0.01, 0.9]
