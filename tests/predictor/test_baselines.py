import numpy as np
import pytest

from moe_beyond.metrics import score
from moe_beyond.predictor.baselines import Popularity, PreviousToken, TokenUnigram, fit_baselines
from tests.traces_of_chance import chance_trace


def test_popularity_is_the_share_of_tokens_that_chose_the_expert():
    trace = chance_trace(20)
    popularity = Popularity.fit(trace).popularity_LE
    expected = [(trace.experts_TLK[:, layer] == 3).any(-1).mean() for layer in range(3)]
    assert popularity[:, 3] == pytest.approx(expected)
    assert popularity.sum(axis=1) == pytest.approx([2, 2, 2], abs=1e-5)


def test_token_unigram_learns_words_and_falls_back_on_popularity():
    train, test = chance_trace(200, seed=1, lexical=1.0), chance_trace(20, seed=2, lexical=1.0, name="t")
    unigram = TokenUnigram.fit(train)
    assert (score(unigram, test) == 2).all()
    unseen = chance_trace(3, seed=3, words=40, name="u")
    probabilities = unigram.probabilities_TLE(unseen)
    unknown = np.array([text not in unigram.index for text in unseen.token_texts.decode()])
    assert unknown.any()
    assert np.array_equal(probabilities[unknown][0], Popularity.fit(train).popularity_LE)


def test_previous_token_repeats_within_a_prompt_only():
    trace = chance_trace(5)
    probabilities = PreviousToken.fit(trace).probabilities_TLE(trace)
    named = np.sort(np.argsort(-probabilities, axis=-1, kind="stable")[..., :2], axis=-1)
    for start, end in zip(trace.prompt_offsets[:-1], trace.prompt_offsets[1:], strict=True):
        assert np.array_equal(named[start + 1 : end], np.sort(trace.experts_TLK[start : end - 1], axis=-1))
        assert np.array_equal(probabilities[start], Popularity.fit(trace).popularity_LE / 2)


@pytest.mark.parametrize("index", range(3))
def test_no_baseline_looks_at_the_tokens_own_routing(index):
    trace = chance_trace(6)
    baseline = fit_baselines(chance_trace(30, seed=5))[index]
    before = baseline.probabilities_TLE(trace)
    last = trace.num_tokens - 1
    trace.experts_TLK[last] = (trace.experts_TLK[last] + 1) % 16
    assert np.array_equal(baseline.probabilities_TLE(trace)[last], before[last])
