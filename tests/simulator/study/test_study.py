"""The stage's tables say what the replays counted."""

import json
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from moe_beyond.errors import InputError
from moe_beyond.simulator.study.break_even import break_even_table, by_bandwidth_table, crossings
from moe_beyond.simulator.study.experiment import replay_splits
from moe_beyond.simulator.study.grid import Timed
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.simulator.study.tables import (
    ablation_table,
    all_tables,
    comparison_table,
    headline,
    replay_table,
    timeline_tables,
    timing_table,
)
from moe_beyond.simulator.study.timeline import COSTLIEST, TIMELINE
from moe_beyond.traces.schema import Trace
from tests.simulator.strategies import make_trace

PUBLISHED = ("lru", "lfu", "layer_lru", "least_stale", "lfru", "static_popularity", "pre_gated", "drop_cold", "belady")
SETTINGS = SimulateSettings(
    capacities=(0.15, 0.5, 1.0),
    headline_capacity=0.5,
    timed_capacities=(0.5, 1.0),
    predictor_latencies_ms=(0.0, 2.0),
    bandwidths_gb_per_s=(0.5, 8.0, 64.0),
    policies=PUBLISHED,
    bootstrap_samples=200,
)
OURS = [
    f"token_unigram_{policy}"
    for policy in (
        "prefetch_anticipate",
        "prefetch_lru",
        "layer_prefetch_anticipate",
        "layer_prefetch_lru",
        "anticipate",
    )
]
KEY = ["split", "device", "capacity_experts"]


@dataclass
class Drawn:
    name: str = "token unigram"
    horizon: int = 2

    def probabilities_TLE(self, trace):
        shape = (trace.num_tokens, trace.metadata.num_layers, trace.metadata.num_experts)
        return np.random.default_rng(0).random(shape, np.float32)

    def layer_probabilities_HTLE(self, trace):
        shape = (self.horizon, trace.num_tokens, trace.metadata.num_layers, trace.metadata.num_experts)
        return np.random.default_rng(1).random(shape, np.float32)


def drawn(seed: int) -> Trace:
    return make_trace(seed, num_layers=3, num_experts=8, lengths=(30, 20, 40), prefill=(10, 0, 20))


@pytest.fixture(scope="module")
def replays():
    return replay_splits({"test_in_domain": drawn(1), "test_out_of_domain": drawn(2)}, drawn(3), [Drawn()], SETTINGS)


def test_the_table_has_a_row_a_split_policy_and_capacity(replays):
    table = replay_table(replays, SETTINGS, seed=7)
    assert table["policy"].unique(maintain_order=True).to_list() == [*PUBLISHED[:-1], *OURS, "belady"]
    assert table["capacity_experts"].unique().sort().to_list() == [4, 12, 24]
    assert table.height == 2 * 14 * 3
    lossless = table.filter(pl.col("policy") != "drop_cold")
    assert (lossless["hits"] + lossless["misses"] == lossless["accesses"]).all()
    assert (lossless["mass_given_up"] == 0).all()
    assert table["hit_rate"].to_list() == pytest.approx((table["hits"] / table["accesses"]).to_list())
    assert table.filter(pl.col("hit_rate_low") > pl.col("hit_rate")).is_empty()
    assert table.filter(pl.col("hit_rate_high") < pl.col("hit_rate")).is_empty()


def test_a_lossy_policy_says_what_it_gives_up(replays):
    table = replay_table(replays, SETTINGS, seed=7)
    lossy = table.filter((pl.col("policy") == "drop_cold") & (pl.col("capacity_experts") == 4))
    assert (lossy["mass_given_up"] > 0).all()
    assert lossy["mass_given_up"].to_list() == pytest.approx(lossy["mass_skipped"].to_list())
    assert (lossy["hits"] + lossy["misses"] < lossy["accesses"]).all()


def test_the_timing_table_has_a_row_a_device_and_latency_too_and_no_lossless_time_below_its_bound(replays):
    table = timing_table(replays, SETTINGS, seed=7)
    assert table.height == 2 * 3 * 14 * 2 * 3
    assert max(table.filter(pl.col("policy") != "drop_cold")["fraction_of_bound"].to_list()) <= 1
    assert table["tokens_per_second"].to_list() == pytest.approx((1000 / table["ms_per_token"]).to_list())
    assert (table["ms_per_token_low"] <= table["ms_per_token"] + 1e-9).all()
    assert (table["ms_per_token_high"] >= table["ms_per_token"] - 1e-9).all()
    # what is neither computing nor predicting is waiting
    lru = table.filter(pl.col("policy") == "lru")
    predicting = table.filter(pl.col("policy").is_in(OURS))
    joined = predicting.join(lru, on=[*KEY, "predictor_ms"], suffix="_lru")
    assert joined.height == predicting.height
    for row in joined.iter_rows(named=True):
        rest, rest_lru = (row[f"ms_per_token{s}"] - row[f"stall_ms_per_token{s}"] for s in ("", "_lru"))
        # of three layers two are followed by another
        layers_ms = 2 * SETTINGS.layer_latency_ms if "layer_prefetch" in row["policy"] else 0
        assert rest == pytest.approx(rest_lru + row["predictor_ms"] + layers_ms)


def test_a_policy_that_predicts_nothing_takes_as_long_whatever_the_latency(replays):
    table = timing_table(replays, SETTINGS, seed=7).filter(pl.col("policy") == "lru")
    assert table["predictor_ms"].unique().sort().to_list() == [0.0, 0.1, 2.0]
    assert (table.group_by(KEY).agg(pl.col("ms_per_token").n_unique())["ms_per_token"] == 1).all()


def test_at_the_break_even_latency_prediction_is_as_fast_as_going_without(replays):
    table = timing_table(replays, SETTINGS, seed=7)
    row = table.filter(pl.col("policy") == "token_unigram_prefetch_lru").row(5, named=True)
    assert table.filter(pl.col("policy") == "lru")["break_even_latency_ms"].is_null().all()
    same = pl.all_horizontal(pl.col(name) == row[name] for name in KEY)
    rival = table.filter(same & pl.col("policy").is_in(PUBLISHED[:6]))["ms_per_token"].to_list()
    slower = row["ms_per_token"] - row["predictor_ms"] + row["break_even_latency_ms"]
    assert slower == pytest.approx(min(rival))


def test_without_devices_the_tables_of_times_are_empty_and_keep_their_columns():
    settings = SETTINGS.model_copy(update={"devices": ()})
    trace = make_trace(1, num_experts=8)
    tables = all_tables(replay_splits({"test": trace}, trace, [], settings), settings, 7)
    for name in ("timing.csv", "break_even.csv", "time_by_bandwidth.csv", "timeline.csv", "costliest_misses.csv"):
        assert tables[name].is_empty()
        assert len(tables[name].columns) > 5


def test_only_prefetchers_prefetch(replays):
    table = replay_table(replays, SETTINGS, seed=7)
    fetching = table.filter(pl.col("prefetches") > 0)["policy"].unique().to_list()
    assert sorted(fetching) == sorted(["pre_gated", *OURS[:4]])


def test_a_comparison_is_the_difference_of_two_rows(replays):
    table, pairs = replay_table(replays, SETTINGS, seed=7), comparison_table(replays, SETTINGS, seed=7)
    key = ["split", "capacity_experts"]
    rates = table.select(*key, "policy", "hit_rate")
    joined = pairs.join(rates, left_on=[*key, "a"], right_on=[*key, "policy"]).join(
        rates, left_on=[*key, "b"], right_on=[*key, "policy"], suffix="_b"
    )
    assert joined.height == 2 * 3 * 91
    expected = joined["hit_rate"] - joined["hit_rate_b"]
    assert joined["difference"].to_list() == pytest.approx(expected.to_list())
    assert (pairs["low"] <= pairs["high"]).all()


def test_a_comparison_of_times_is_the_difference_on_the_first_device_where_it_is_timed(replays):
    pairs = comparison_table(replays, SETTINGS, seed=7)
    times = timing_table(replays, SETTINGS, seed=7).filter(
        (pl.col("device") == SETTINGS.devices[0]) & (pl.col("predictor_ms") == SETTINGS.predictor_latency_ms)
    )
    key = ["split", "capacity_experts"]
    of = times.select(*key, "policy", "ms_per_token")
    joined = pairs.join(of, left_on=[*key, "a"], right_on=[*key, "policy"]).join(
        of, left_on=[*key, "b"], right_on=[*key, "policy"], suffix="_b"
    )
    assert joined.height == 2 * 2 * 91
    assert joined["ms_difference"].to_list() == pytest.approx(
        (joined["ms_per_token"] - joined["ms_per_token_b"]).to_list()
    )
    assert (joined["ms_low"] <= joined["ms_high"]).all()
    assert pairs.filter(pl.col("capacity_experts") == 4)["ms_difference"].is_null().all()


def test_the_ablation_adds_one_thing_at_a_time(replays):
    table = ablation_table(replays, SETTINGS, seed=7)
    added = ["lru", "prefetch by token step", "prefetch by layer step", "only above 0.1"]
    added += ["eviction by predicted next use", "bypass", "belady"]
    assert table["added"].unique(maintain_order=True).to_list() == added
    assert table.height == 2 * 3 * 7
    whole = replay_table(replays, SETTINGS, seed=7).filter(pl.col("capacity_experts") == 12)
    for name, policy in (("prefetch by token step", "token_unigram_prefetch_lru"), ("belady", "belady")):
        mine = table.filter(pl.col("added") == name)["hit_rate"].unique().sort().to_list()
        assert mine == whole.filter(pl.col("policy") == policy)["hit_rate"].unique().sort().to_list()


def test_break_even_lies_where_the_lines_cross():
    def line(values: list[float], policy: str) -> list[Timed]:
        return [
            Timed(policy, "d", 4, link, 0.0, ms, 0.0, 0.0, 0, 0, 0, np.zeros(1))
            for link, ms in zip((1.0, 4.0, 16.0), values, strict=True)
        ]

    rival = line([10.0, 8.0, 2.0], "lru")
    assert crossings(line([12.0, 6.0, 3.0], "ours"), rival) == [
        {"against": "lru", "bandwidth_gb_per_s": pytest.approx(2.0), "pays": "above"},
        {"against": "lru", "bandwidth_gb_per_s": pytest.approx(4 * 4 ** (2 / 3)), "pays": "below"},
    ]
    assert crossings(line([9.0, 7.0, 1.0], "ours"), rival)[0]["pays"] == "always"
    assert crossings(line([11.0, 9.0, 3.0], "ours"), rival)[0]["pays"] == "never"


def test_break_even_and_its_lines_stand_for_every_device(replays):
    lines, table = by_bandwidth_table(replays), break_even_table(replays)
    assert lines["bandwidth_gb_per_s"].unique().sort().to_list() == [0.5, 8.0, 64.0]
    assert set(table["policy"].to_list()) == set(OURS)
    assert set(table["against"].to_list()) <= set(PUBLISHED[:6])
    assert set(table["device"].to_list()) == set(SETTINGS.devices)
    limit = table.filter(pl.col("policy") == "token_unigram_prefetch_lru").row(0, named=True)
    timing = timing_table(replays, SETTINGS, seed=7).filter(
        (pl.col("policy") == limit["policy"]) & (pl.col("predictor_ms") == SETTINGS.predictor_latency_ms)
    )
    same = pl.all_horizontal(pl.col(name) == limit[name] for name in KEY)
    assert timing.filter(same)["break_even_latency_ms"].to_list() == [limit["predictor_ms_limit"]]


def test_the_timeline_of_a_prompt_adds_up_to_its_time(replays):
    timeline, costliest = timeline_tables(replays, SETTINGS)
    trace = replays[-1].trace
    assert timeline.columns == list(TIMELINE)
    ours = timeline.filter(pl.col("policy") == OURS[0])
    assert timeline["policy"].unique(maintain_order=True).to_list() == [OURS[0], "lru"]
    (prompt,) = timeline["prompt_id"].unique().to_list()
    index = trace.prompt_ids.index(prompt)
    steps = np.diff(trace.prompt_offsets)[index] - max(0, int(trace.num_prefill_P[index]) - 1)
    assert ours.height == steps * 3
    ends = ours["start_ms"] + ours["compute_ms"] + ours["stall_ms"]
    assert ends[:-1].to_list() == pytest.approx(ours["start_ms"][1:].to_list())
    decoded = ours.filter(pl.col("position") >= int(trace.num_prefill_P[index]))
    row = next(t for t in replays[-1].timed if (t.policy, t.capacity_experts, t.predictor_ms) == (OURS[0], 12, 0.1))
    assert (decoded["compute_ms"] + decoded["stall_ms"]).sum() == pytest.approx(row.decode_ms_P[index])
    waited = decoded.filter((pl.col("demand_loads") > 0) | (pl.col("prefetches_late") > 0))
    assert waited["predicted"].is_not_null().all()
    assert waited["predicted"].is_between(0, 1).all()
    assert costliest.columns == list(COSTLIEST)
    assert costliest["stall_ms"].to_list() == sorted(costliest["stall_ms"].to_list(), reverse=True)
    assert costliest["stall_ms"][0] >= decoded["stall_ms"].max()


def test_processes_give_the_same_tables_as_one(replays):
    settings = SETTINGS.model_copy(update={"workers": 2, "capacities": (0.5,), "timed_capacities": None})
    one = SETTINGS.model_copy(update={"capacities": (0.5,), "timed_capacities": None})
    tables = [
        replay_table(replay_splits({"test": drawn(1)}, drawn(3), [Drawn()], chosen), chosen, 7)
        for chosen in (settings, one)
    ]
    assert tables[0].equals(tables[1])


def test_policies_that_the_traces_do_not_allow_are_named_with_the_reason():
    trace = replace(drawn(1), weights_TLK=None)
    settings = SETTINGS.model_copy(
        update={"policies": None, "devices": (), "capacities": (0.5,), "timed_capacities": None}
    )
    tables = all_tables(replay_splits({"test": trace}, trace, [], settings), settings, 7)
    reasons = dict(tables["left_out.csv"].select("policy", "reason").iter_rows())
    assert "router weights" in reasons["drop_cold"]
    assert not set(reasons) & set(tables["replay.csv"]["policy"].to_list())
    assert "belady" in tables["replay.csv"]["policy"].to_list()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": ("lru", "clairvoyance")}, r"policy 'clairvoyance' is not known; choose one of .*lru"),
        ({"policies": ("drop_cold",)}, "drop_cold.*weights"),
        ({"devices": ("abacus",)}, "known are .*laptop_nvme"),
    ],
)
def test_what_cannot_be_replayed_is_refused_by_name(change, message):
    trace = replace(drawn(1), weights_TLK=None)
    with pytest.raises(InputError, match=message):
        replay_splits({"test": trace}, trace, [], SETTINGS.model_copy(update=change))


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
        ({"timed_capacities": (0.5,)}, "headline_capacity among them"),
        ({"predictor_latencies_ms": (-1.0,)}, "no number below 0"),
        ({"bandwidths_gb_per_s": (4.0, 2.0)}, "must rise"),
    ],
)
def test_capacities_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        SimulateSettings(**wrong)


@pytest.mark.parametrize("keep_warm", [True, False])
def test_with_a_batch_every_policy_is_asked_for_shared_experts_once(replays, keep_warm):
    trace = make_trace(1, num_layers=3, num_experts=8, lengths=(30, 20, 40), prefill=(10, 0, 20))
    lossless = tuple(name for name in PUBLISHED if name != "drop_cold")
    settings = SETTINGS.model_copy(update={"batch": 3, "keep_warm": keep_warm, "policies": lossless})
    (together,) = replay_splits({"test_in_domain": trace}, trace, [Drawn()], settings)
    alone = replays[0].at(12)
    assert list(together.at(12)) == [name for name in alone if name != "drop_cold"]
    for name, replay in together.at(12).items():
        assert replay.total.tokens == alone[name].total.tokens
        assert replay.decode.accesses < alone[name].decode.accesses
        assert replay.total.accesses == replay.accesses_P.sum()
    table = timing_table([together], settings, seed=7)
    assert max(table["fraction_of_bound"].to_list()) <= 1
