"""The paper's rules of counting, through its own cache, with touches and without, and through ours."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from moe_beyond.paper.caches import CACHES, rows_by_cache
from moe_beyond.paper.scores import published_counts, published_rows
from moe_beyond.predictor.baselines import TokenUnigram
from moe_beyond.predictor.recall import most_probable
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.engine import slow_cache
from tests.traces_of_chance import chance_trace

SMALL = 10
"""Experts of the smallest cache: a tenth of 3 layers of 36."""
HALF = 54


@pytest.fixture(scope="module")
def training():
    return chance_trace(30, num_experts=36, seed=1)


@pytest.fixture(scope="module")
def trace():
    drawn = chance_trace(10, num_experts=36, seed=2, name="t")
    # the published predictor names what the token before used
    return replace(drawn, predicted_TLK=np.roll(drawn.experts_TLK, 1, axis=0))


class KnowsEachLayer:
    """Knows nothing ahead of a token, and everything one layer ahead."""

    name = "seer"
    horizon = 1

    def probabilities_TLE(self, trace):
        meta = trace.metadata
        return np.full((trace.num_tokens, meta.num_layers, meta.num_experts), 0.01, np.float32)

    def layer_probabilities_HTLE(self, trace):
        answer_TLE = self.probabilities_TLE(trace)
        np.put_along_axis(answer_TLE[:, 1:], trace.experts_TLK[:, 1:].astype(np.int64), 1, axis=2)
        return answer_TLE[None]


def rows_of(trace, training, *predictors):
    return rows_by_cache("test", trace, training, predictors, resamples=50, seed=3)


def one(rows, predictor, cache, capacity=SMALL):
    chosen = (pl.col("predictor") == predictor) & (pl.col("cache") == cache) & (pl.col("capacity_experts") == capacity)
    return rows.filter(chosen).row(0, named=True)


def test_every_predictor_meets_every_cache_it_can_drive(trace, training):
    rows = rows_of(trace, training, TokenUnigram.fit(training), KnowsEachLayer())
    assert rows.schema == pl.Schema(CACHES)
    assert rows["capacity_experts"].unique().sort().to_list() == [10, 21, 54]
    each = rows.filter(pl.col("capacity_experts") == SMALL).select("predictor", "cache").rows()
    assert each == [
        *(("token_unigram", cache) for cache in ("published", "published_touched", "lru", "anticipate")),
        *(("seer", cache) for cache in ("published", "published_touched", "lru", "anticipate")),
        # eviction by predicted next use needs probabilities, and none were published
        *(("published_predictions", cache) for cache in ("published", "published_touched", "lru")),
    ]


def test_the_papers_cache_is_the_published_protocol(trace, training):
    rows = rows_of(trace, training).filter(pl.col("cache") == "published")
    named_TLK = np.asarray(trace.predicted_TLK)
    expected = published_rows(trace, named_TLK, resamples=50, seed=3, rival_TLM=named_TLK)
    shared = [column for column in expected.columns if column in rows.columns]
    assert len(shared) == len(CACHES) - 3
    assert_frame_equal(rows.select(shared), expected.select(shared))


def test_lru_that_only_uses_renew_equals_the_slow_reference(trace, training):
    meta, events = trace.metadata, events_of(trace, "token_by_token")
    counted_N = (trace.positions_T >= 10)[events.token_S[events.step_N]]
    wanted = [
        (trace.predicted_TLK[step, layer].astype(int) + layer * meta.num_experts).tolist() if counted else []
        for step, layer, counted in zip(events.step_N, events.layer_N, counted_N, strict=True)
    ]
    group = dict.fromkeys(range(meta.num_model_experts), 0)
    slow = slow_cache.replay(events, "lru", {0: SMALL}, group, keep_warm=False, wanted=wanted)
    hits, accesses = np.array(slow.hits)[counted_N].sum(), meta.top_k * counted_N.sum()
    found = one(rows_of(trace, training), "published_predictions", "lru")
    assert found["hit_rate"] == pytest.approx(hits / accesses)
    loaded_mib = (accesses - hits + slow.prefetched) * meta.expert_bytes[0] / 2**20
    tokens = accesses / meta.token_cycle
    assert found["mib_per_token"] == pytest.approx(loaded_mib / tokens)
    assert found["low"] < found["hit_rate"] < found["high"]
    paper = one(rows_of(trace, training), "published_predictions", "published")
    assert found["gain"] == pytest.approx(found["hit_rate"] - paper["hit_rate"])
    assert found["mib_change"] == pytest.approx(found["mib_per_token"] - paper["mib_per_token"])
    assert found["gain_low"] <= found["gain"] <= found["gain_high"]


def test_what_is_known_a_layer_ahead_is_there(trace, training):
    rows = rows_of(trace, training, KnowsEachLayer())
    for cache in ("lru", "anticipate"):
        found = one(rows, "seer", cache)
        # of the first of three layers nothing is known
        assert 2 / 3 <= found["hit_rate"] < 1
    assert one(rows, "seer", "published", HALF)["hit_rate"] >= 2 / 3


def test_the_nearest_answer_says_what_is_touched_of_a_layer(trace, training):
    """Of a layer's own row and the one before it the layer step says, of layers farther ahead the token step."""
    truth_TLE = np.zeros((trace.num_tokens, trace.metadata.num_layers, trace.metadata.num_experts), np.float32)
    np.put_along_axis(truth_TLE, trace.experts_TLK.astype(np.int64), 1, axis=2)

    class Sure(KnowsEachLayer):
        horizon = 2

        def probabilities_TLE(self, trace):
            return 0.03 * truth_TLE

        def layer_probabilities_HTLE(self, trace):
            return np.stack([0.02 * (1 - truth_TLE), 0.029 * truth_TLE])

    class NeverSure(Sure):
        def probabilities_TLE(self, trace):
            return 0.029 * truth_TLE

    expected_DTLE = np.zeros((3, *truth_TLE.shape), np.bool_)
    expected_DTLE[2] = truth_TLE > 0
    named_TLK = most_probable(1 - truth_TLE, trace.metadata.top_k)
    by_hand = published_counts(trace, named_TLK, HALF, 3, expected_DTLE)

    def hit_rates(predictor):
        rows = rows_of(trace, training, predictor)
        return [one(rows, "seer", cache, HALF)["hit_rate"] for cache in ("published", "published_touched")]

    plain, touched = hit_rates(Sure())
    assert touched == by_hand.hits_P.sum() / by_hand.accesses_P.sum()
    assert touched > plain
    assert hit_rates(NeverSure()) == [plain, plain]


def test_eviction_by_next_use_loads_less_than_lru_where_words_decide(trace, training):
    rows = rows_of(trace, training, TokenUnigram.fit(training))
    lru, ours = (one(rows, "token_unigram", cache) for cache in ("lru", "anticipate"))
    assert ours["mib_per_token"] < lru["mib_per_token"]


def test_no_rows_without_published_predictions_or_beyond_the_warm_up(trace, training):
    assert rows_of(replace(trace, predicted_TLK=None), training, KnowsEachLayer()).schema == pl.Schema(CACHES)
    assert rows_of(replace(trace, predicted_TLK=None), training, KnowsEachLayer()).is_empty()
    short = trace.select(np.nonzero(np.diff(trace.prompt_offsets) <= 10)[0])
    assert short.num_prompts > 0
    assert rows_of(short, training).is_empty()
