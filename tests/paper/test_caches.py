"""Both predictors under the paper's rules of counting, in the paper's cache and in two others: like with like."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from moe_beyond.paper import caches
from moe_beyond.paper.caches import CACHES, rows_by_cache
from moe_beyond.paper.scores import published_rows
from moe_beyond.predictor.recall import most_probable
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.engine import slow_clock
from tests.simulator.strategies import truth_TLE
from tests.traces_of_chance import chance_trace

SMALL = 10
"""Experts of the smallest cache: a tenth of 3 layers of 36."""
TRAINING = chance_trace(30, num_experts=36, seed=1)
DRAWN = chance_trace(10, num_experts=36, seed=2, name="t")
# the published predictor names what the token before used
TRACE = replace(DRAWN, predicted_TLK=np.sort(np.roll(DRAWN.experts_TLK, 1, axis=0), axis=2))
TRUTH_TLE = truth_TLE(DRAWN)


def predicting(layer_TLE, token_TLE=None):
    """A predictor of given probabilities a layer ahead; ahead of a token others, or much lower ones."""
    token_TLE = np.full_like(layer_TLE, 1e-9) if token_TLE is None else token_TLE
    steps = {"probabilities_TLE": lambda _: token_TLE, "layer_probabilities_HTLE": lambda _: layer_TLE[None]}
    return SimpleNamespace(name="given", horizon=1, **steps)


def rows_of(predictor, trace=TRACE):
    return rows_by_cache("test", trace, TRAINING, predictor, resamples=50, seed=3)


def one(rows, cache, capacity=SMALL):
    return rows.filter((pl.col("cache") == cache) & (pl.col("capacity_experts") == capacity)).row(0, named=True)


def test_each_cache_holds_both_predictors_in_one_row():
    rows = rows_of(predicting(TRUTH_TLE))
    assert rows.schema == pl.Schema(CACHES)
    expected = [(cache, capacity) for capacity in (10, 21, 54) for cache in ("paper_lru", "lru", "anticipate")]
    assert rows.select("cache", "capacity_experts").rows() == expected
    for figure in ("hit_rate", "mib_per_token"):
        difference = rows[f"ours_{figure}"] - rows[f"paper_{figure}"]
        assert rows[f"difference_{figure}"].to_list() == pytest.approx(difference.to_list())
        for side in ("ours", "paper", "difference"):
            value = rows[f"{side}_{figure}"]
            assert ((rows[f"{side}_{figure}_low"] <= value) & (value <= rows[f"{side}_{figure}_high"])).all()


def test_the_papers_cache_is_the_published_protocol_on_both_sides():
    said_TLE = np.random.default_rng(0).random(TRUTH_TLE.shape, np.float32)
    rows = rows_of(predicting(said_TLE)).filter(pl.col("cache") == "paper_lru")
    theirs_TLK, ours_TLK = np.asarray(TRACE.predicted_TLK), most_probable(said_TLE, TRACE.metadata.top_k)
    for side, named_TLK in (("ours", ours_TLK), ("paper", theirs_TLK)):
        expected = published_rows(TRACE, named_TLK, resamples=50, seed=3, rival_TLM=theirs_TLK)
        columns = {"hit_rate": "hit_rate", "low": "hit_rate_low", "high": "hit_rate_high"}
        columns |= {"mib_per_token": "mib_per_token", "mib_low": "mib_per_token_low", "mib_high": "mib_per_token_high"}
        for theirs, ours in columns.items():
            assert rows[f"{side}_{ours}"].to_list() == expected[theirs].to_list()
        if side == "ours":
            for theirs, ours in (("gain", "hit_rate"), ("mib_change", "mib_per_token")):
                for end in ("", "_low", "_high"):
                    assert rows[f"difference_{ours}{end}"].to_list() == expected[f"{theirs}{end}"].to_list()


@pytest.mark.parametrize("capacity", [10, 21])
def test_lru_that_only_uses_renew_equals_the_slow_reference(capacity):
    meta, events = TRACE.metadata, events_of(TRACE, "token_by_token")
    counted_N = (TRACE.positions_T >= 10)[events.token_S[events.step_N]]
    theirs_TLK = np.asarray(TRACE.predicted_TLK).astype(int)
    wanted = [
        (theirs_TLK[step, layer] + layer * meta.num_experts).tolist() if counted else []
        for step, layer, counted in zip(events.step_N, events.layer_N, counted_N, strict=True)
    ]
    requests, budget = slow_clock.ahead_of_each(wanted), Budget.slots(meta, capacity)
    slow = slow_clock.replay(slow_clock.Case(events, budget, slow_clock.RANKS["lru"], requests, keep_warm=False))
    hits = np.array([slow_clock.hits_of(record) for record in slow])[counted_N].sum()
    accesses, prefetched = meta.top_k * counted_N.sum(), sum(record.prefetches for record in slow)
    found = one(rows_of(predicting(TRUTH_TLE)), "lru", capacity)
    assert found["paper_hit_rate"] == pytest.approx(hits / accesses)
    loaded_mib = (accesses - hits + prefetched) * meta.expert_bytes[0] / 2**20
    assert found["paper_mib_per_token"] == pytest.approx(loaded_mib / (accesses / meta.token_cycle))


@pytest.mark.parametrize("many", [2, 6])
def test_both_sides_fetch_as_many_for_a_layer_as_were_published(monkeypatch, many):
    """Ours is sure of all experts."""
    every = np.tile(np.arange(36, dtype=np.uint8), (DRAWN.num_tokens, 3, 1))
    trace = replace(TRACE, predicted_TLK=np.random.default_rng(0).permuted(every, axis=2)[..., :many])
    fetched = []

    def watched(events, policy, budget, **rules):
        offsets_N, _ = policy.prefetches(events).just_in_time(events.num_events)
        # ahead of the uncounted tokens nothing is fetched
        counted_N = (trace.positions_T >= 10)[events.token_S[events.step_N]]
        fetched.append((set(np.diff(offsets_N)[counted_N].tolist()), set(np.diff(offsets_N)[~counted_N].tolist())))
        return replay(events, policy, budget, **rules)

    monkeypatch.setattr(caches, "replay", watched)
    rows_of(predicting(*[np.full(TRUTH_TLE.shape, 0.9, np.float32)] * 2), trace)
    assert fetched == [({many}, {0})] * (2 * 2 * 3)


def test_predictors_that_say_the_same_differ_by_exactly_nothing():
    named_TLE = truth_TLE(replace(DRAWN, experts_TLK=np.asarray(TRACE.predicted_TLK)))
    rows = rows_of(predicting(named_TLE, named_TLE))
    differences = rows.select(pl.col("^difference_.*$")).to_numpy()
    assert differences.shape == (rows.height, 2 * 3)
    assert (differences == 0).all()
    assert rows["ours_hit_rate"].n_unique() > 3


def test_what_is_known_a_layer_ahead_is_there():
    for predictor, least in ((predicting(TRUTH_TLE, TRUTH_TLE), 1), (predicting(TRUTH_TLE), 2 / 3)):
        rows = rows_of(predictor)
        for cache in ("lru", "anticipate"):
            found = one(rows, cache, 54)
            # ahead of a token's first layer there is the token step alone
            assert found["ours_hit_rate"] == 1 if least == 1 else least < found["ours_hit_rate"] < 1
            assert found["difference_hit_rate_low"] > 0
        assert one(rows, "paper_lru", 54)["ours_hit_rate"] == 1


def test_no_rows_without_published_predictions_or_beyond_the_warm_up():
    short = TRACE.select(np.nonzero(np.diff(TRACE.prompt_offsets) <= 10)[0])
    assert short.num_prompts > 0
    for trace in (replace(TRACE, predicted_TLK=None), short):
        assert rows_of(predicting(TRUTH_TLE), trace).equals(pl.DataFrame(schema=CACHES))
