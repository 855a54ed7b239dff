"""The stage's tables say what the replays counted."""

import json
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from moe_beyond.errors import InputError
from moe_beyond.simulator.experiment import replay_splits
from moe_beyond.simulator.settings import SimulateSettings
from moe_beyond.simulator.tables import comparison_table, headline, replay_table, timing_table
from moe_beyond.traces.schema import Trace
from tests.simulator.strategies import make_trace

SETTINGS = SimulateSettings(capacities=(0.15, 0.5, 1.0), headline_capacity=0.5, bootstrap_samples=200)


@dataclass
class Drawn:
    name: str = "token unigram"

    def probabilities_TLE(self, trace):
        shape = (trace.num_tokens, trace.metadata.num_layers, trace.metadata.num_experts)
        return np.random.default_rng(0).random(shape, np.float32)


@pytest.fixture(scope="module")
def replays():
    def drawn(seed: int) -> Trace:
        return make_trace(seed, num_layers=3, num_experts=8, lengths=(30, 20, 40), prefill=(10, 0, 20))

    splits = {"test_in_domain": drawn(1), "test_out_of_domain": drawn(2)}
    return replay_splits(splits, drawn(3), [Drawn()], SETTINGS)


def test_the_table_has_a_row_a_split_policy_and_capacity(replays):
    table = replay_table(replays, SETTINGS, seed=7)
    policies = ["lru", "lfu", "layer_lru", "least_stale", "lfru", "static_popularity"]
    policies += ["token_unigram_prefetch_anticipate", "token_unigram_prefetch_lru", "token_unigram_anticipate"]
    policies += ["belady", "belady_forced"]
    assert table["policy"].unique(maintain_order=True).to_list() == policies
    assert table["capacity_experts"].unique().sort().to_list() == [4, 12, 24]
    assert table.height == 2 * 11 * 3
    assert (table["hits"] + table["misses"] == table["accesses"]).all()
    assert table["hit_rate"].to_list() == pytest.approx((table["hits"] / table["accesses"]).to_list())
    assert table.filter(pl.col("hit_rate_low") > pl.col("hit_rate")).is_empty()
    assert table.filter(pl.col("hit_rate_high") < pl.col("hit_rate")).is_empty()


def test_the_timing_table_has_a_row_a_device_too_and_no_time_below_its_bound(replays):
    table = timing_table(replays, SETTINGS)
    assert table.height == 2 * 3 * 11 * 3
    assert max(table["fraction_of_bound"].to_list()) <= 1
    assert table["tokens_per_second"].to_list() == pytest.approx((1000 / table["ms_per_token"]).to_list())
    predicting = table.filter(pl.col("policy").str.starts_with("token_unigram"))
    assert predicting["policy"].n_unique() == 3
    # what is neither computing nor predicting is waiting
    lru = table.filter(pl.col("policy") == "lru")
    key = ["split", "device", "capacity_experts"]
    for row in predicting.join(lru, on=key, suffix="_lru").iter_rows(named=True):
        rest, rest_lru = (row[f"ms_per_token{s}"] - row[f"stall_ms_per_token{s}"] for s in ("", "_lru"))
        assert rest == pytest.approx(rest_lru + SETTINGS.predictor_latency_ms)


def test_at_the_break_even_latency_prediction_is_as_fast_as_going_without(replays):
    table = timing_table(replays, SETTINGS)
    row = table.filter(pl.col("policy") == "token_unigram_prefetch_lru").row(5, named=True)
    assert table.filter(pl.col("policy") == "lru")["break_even_latency_ms"].is_null().all()
    same = (pl.col("split") == row["split"]) & (pl.col("device") == row["device"])
    same &= pl.col("capacity_experts") == row["capacity_experts"]
    without = ["lru", "lfu", "layer_lru", "least_stale", "lfru", "static_popularity"]
    rival = table.filter(same & pl.col("policy").is_in(without))["ms_per_token"].to_list()
    slower = row["ms_per_token"] - SETTINGS.predictor_latency_ms + row["break_even_latency_ms"]
    assert slower == pytest.approx(min(rival))


def test_without_devices_the_timing_table_is_empty_and_keeps_its_columns():
    settings = SETTINGS.model_copy(update={"devices": ()})
    trace = make_trace(1, num_experts=8)
    table = timing_table(replay_splits({"test": trace}, trace, [], settings), settings)
    assert table.is_empty()
    assert "ms_per_token" in table.columns


def test_only_prefetchers_prefetch(replays):
    table = replay_table(replays, SETTINGS, seed=7)
    fetching = table.filter(pl.col("prefetches") > 0)["policy"].unique().to_list()
    assert sorted(fetching) == ["token_unigram_prefetch_anticipate", "token_unigram_prefetch_lru"]


def test_a_comparison_is_the_difference_of_two_rows(replays):
    table, pairs = replay_table(replays, SETTINGS, seed=7), comparison_table(replays, SETTINGS, seed=7)
    key = ["split", "capacity_experts"]
    rates = table.select(*key, "policy", "hit_rate")
    joined = pairs.join(rates, left_on=[*key, "a"], right_on=[*key, "policy"]).join(
        rates, left_on=[*key, "b"], right_on=[*key, "policy"], suffix="_b"
    )
    assert joined.height == 2 * 3 * 55
    expected = joined["hit_rate"] - joined["hit_rate_b"]
    assert joined["difference"].to_list() == pytest.approx(expected.to_list())
    assert (pairs["low"] <= pairs["high"]).all()


def test_the_headline_is_the_row_of_the_headline_capacity(replays):
    metrics = headline(replays, SETTINGS)
    json.dumps(metrics, allow_nan=False)
    assert metrics["test_in_domain"]["capacity_experts"] == 12
    assert metrics["test_in_domain"]["belady"]["fraction_of_belady"] == 1
    row = replay_table(replays, SETTINGS, seed=7).filter(
        (pl.col("split") == "test_out_of_domain") & (pl.col("policy") == "lru") & (pl.col("capacity_experts") == 12)
    )
    assert metrics["test_out_of_domain"]["lru"]["hit_rate"] == row["hit_rate"][0]
    assert metrics["test_out_of_domain"]["lru"]["fraction_of_belady"] <= 1


def test_a_split_of_another_model_is_refused():
    with pytest.raises(InputError, match="num_experts is 6"):
        replay_splits({"test": make_trace(1, num_experts=6)}, make_trace(2, num_experts=5), [], SETTINGS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"capacities": (0.5, 0.1)}, "capacities must rise"),
        ({"capacities": (0.0, 0.1)}, "above 0 and at most 1"),
        ({"headline_capacity": 0.33}, "must be one of capacities"),
    ],
)
def test_capacities_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        SimulateSettings(**wrong)


@pytest.mark.parametrize("keep_warm", [True, False])
def test_with_a_batch_every_policy_is_asked_for_shared_experts_once(replays, keep_warm):
    trace = make_trace(1, num_layers=3, num_experts=8, lengths=(30, 20, 40), prefill=(10, 0, 20))
    settings = SETTINGS.model_copy(update={"batch": 3, "keep_warm": keep_warm})
    (together,) = replay_splits({"test_in_domain": trace}, trace, [Drawn()], settings)
    alone = replays[0].at(12)
    assert list(together.at(12)) == list(alone)
    for name, replay in together.at(12).items():
        assert replay.total.tokens == alone[name].total.tokens
        assert replay.decode.accesses < alone[name].decode.accesses
        assert replay.total.accesses == replay.accesses_P.sum()
    table = timing_table([together], settings)
    assert max(table["fraction_of_bound"].to_list()) <= 1
