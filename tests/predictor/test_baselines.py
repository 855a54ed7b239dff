from itertools import pairwise

import numpy as np
import pytest

from moe_beyond.evaluation.scores import score
from moe_beyond.predictor import baselines
from moe_beyond.predictor.baselines import MoeInfinity, OneClusterMoeInfinity, Popularity
from moe_beyond.predictor.recall import most_probable
from moe_beyond.traces.schema import expert_counts_LE
from tests.traces_of_chance import chance_trace


def test_popularity_is_the_share_of_tokens_that_chose_the_expert():
    trace = chance_trace(20)
    popularity = Popularity.fit(trace).popularity_LE
    expected = [(trace.experts_TLK[:, layer] == 3).any(-1).mean() for layer in range(3)]
    assert popularity[:, 3] == pytest.approx(expected)
    assert popularity.sum(axis=1) == pytest.approx([2, 2, 2], abs=1e-5)


def test_token_unigram_learns_words_and_falls_back_on_popularity():
    train, test = chance_trace(200, seed=1, lexical=1.0), chance_trace(20, seed=2, lexical=1.0, name="t")
    unigram = baselines.TokenUnigram.fit(train)
    assert (score(unigram, test) == 2).all()
    unseen = chance_trace(3, seed=3, words=40, name="u")
    unknown = [text not in unigram.index for text in unseen.token_texts.decode()]
    assert np.array_equal(unigram.probabilities_TLE(unseen)[unknown][0], Popularity.fit(train).popularity_LE)


def test_previous_token_repeats_within_a_prompt_only():
    trace = chance_trace(5)
    probabilities = baselines.PreviousToken.fit(trace).probabilities_TLE(trace)
    named = np.sort(np.argsort(-probabilities, axis=-1, kind="stable")[..., :2], axis=-1)
    for start, end in pairwise(trace.prompt_offsets):
        assert np.array_equal(named[start + 1 : end], np.sort(trace.experts_TLK[start : end - 1], axis=-1))
        assert np.array_equal(probabilities[start], Popularity.fit(trace).popularity_LE / 2)


def test_moe_infinity_predicts_with_the_stored_prompt_that_a_plain_search_finds(monkeypatch):
    train, trace = chance_trace(12, seed=1), chance_trace(3, seed=2, name="t")
    ours = MoeInfinity.fit(train)
    predicted = ours.probabilities_TLE(trace)

    def counts(source, start, end):
        return expert_counts_LE(source.experts_TLK[start:end], 16).astype(float)

    stored = [counts(train, *bounds) for bounds in pairwise(train.prompt_offsets)]
    for start, end in pairwise(trace.prompt_offsets):
        for token in range(start + 1, end):
            now = counts(trace, start, token)
            # the mean over layers of the cosine
            norms = [np.linalg.norm(now, axis=1) * np.linalg.norm(other, axis=1) for other in stored]
            best = np.argmax([np.mean((now * m).sum(1) / norm) for m, norm in zip(stored, norms, strict=True)])
            assert predicted[token] == pytest.approx(stored[best] / np.diff(train.prompt_offsets)[best])
        assert predicted[start] == pytest.approx(ours.share_NLE.mean(axis=0))
    monkeypatch.setattr(MoeInfinity, "CAPACITY", 5)
    assert len(MoeInfinity.fit(train).share_NLE) == 5


def test_the_one_cluster_form_is_the_papers_mean_of_nine_prompts():
    train, trace = chance_trace(30, seed=1), chance_trace(3, seed=2, name="t")
    named = most_probable(OneClusterMoeInfinity.fit(train).probabilities_TLE(trace), 2)
    counts_LE = expert_counts_LE(train.experts_TLK[: train.prompt_offsets[9]], 16)
    assert np.array_equal(named[-1], np.argsort(-counts_LE, axis=1, kind="stable")[:, :2])


@pytest.mark.parametrize("index", range(5))
def test_no_baseline_looks_at_the_tokens_own_routing(index):
    trace = chance_trace(6)
    baseline = baselines.fit_baselines(chance_trace(30, seed=5))[index]
    before = baseline.probabilities_TLE(trace)
    trace.experts_TLK[-1] = (trace.experts_TLK[-1] + 1) % 16
    assert np.array_equal(baseline.probabilities_TLE(trace)[-1], before[-1])
