"""The tables say what the replays counted and what was charged, and their intervals are paired by prompt."""

import numpy as np
import polars as pl
import pytest

from moe_beyond.devices.device import load_device
from moe_beyond.simulator.bounds.hit_curves import belady_curve
from moe_beyond.simulator.bounds.time_bound import time_bound
from tests.simulator.study.cases import HEADLINE, SETTINGS

CHARGES = {"ours": (0.3, 0.05), "rival": (0.02, 0.0)}
PLACE = ["split", "device", "capacity_experts"]


def spread(values):
    return np.percentile(values, [2.5, 97.5]).tolist()


def interval(row, name):
    return [row[f"{name}_low"], row[f"{name}_high"]]


def resampled(num_prompts, *ratios, seed=7):
    """Each ratio in every resample, prompt by prompt: a list a resample."""
    draws = np.random.default_rng(seed).multinomial(num_prompts, [1 / num_prompts] * num_prompts, 200)
    return [[often @ ratio.numerator_P / (often @ ratio.denominator_P) for ratio in ratios] for often in draws]


@pytest.mark.parametrize("table", ["on_device", "pays", "ablation"])
def test_no_row_is_charged_less_than_its_own_predictors_steps_take_there(replays, tables, table):
    facts, seen = replays[0].facts, set()
    for row in tables[table].iter_rows(named=True):
        slowdown = load_device(row["device"]).predictor_slowdown
        predictor = facts[row["policy"]].predictor if table == "pays" else row["predictor"]
        token_step_ms, layer_step_ms = CHARGES.get(predictor, (0, 0))
        assert (predictor is not None) == row["policy"].startswith(("ours_", "rival_"))
        layer_step_ms *= "layer_prefetch" in row["policy"]
        expected = (token_step_ms * slowdown, layer_step_ms * slowdown)
        assert (row["token_step_ms"], row["layer_step_ms"]) == pytest.approx(expected)
        seen.add(expected)
    # with a predictor and without, in pays with one alone; ahead of layers and not
    assert len(seen) > (2 if table == "pays" else 4)


def test_what_is_charged_is_in_the_time(tables):
    """What is neither computing nor predicting is waiting: of three layers two are followed by another.

    But for admission into the cache, which the phone's processor does.
    """
    assert load_device("phone_ufs").admit_gb_per_s is not None
    table = tables["on_device"].filter(~pl.col("lossy") & (pl.col("device") != "phone_ufs"))
    assert table.height
    lru = table.filter(pl.col("policy") == "lru")
    joined = table.join(lru, on=PLACE, suffix="_lru")
    assert joined.height == table.height
    for row in joined.iter_rows(named=True):
        rest, rest_lru = (row[f"ms_per_token{s}"] - row[f"stall_ms_per_token{s}"] for s in ("", "_lru"))
        assert rest == pytest.approx(rest_lru + row["token_step_ms"] + 2 * row["layer_step_ms"])


def test_rows_hold_what_was_timed_with_intervals_by_prompt(replays, tables):
    table = tables["on_device"]
    assert table.select(*PLACE, "policy").is_duplicated().sum() == 0
    assert table.height == sum(len(split.timed_at(place)) for split in replays for place in split.places)
    split = replays[1]
    for row in table.filter(pl.col("split") == split.split).iter_rows(named=True):
        one = split.timed_at((row["device"], row["capacity_experts"]))[row["policy"]]
        names = ("ms_per_token", "stall_ms_per_token", "hit_rate", "mib_per_token")
        assert [row[name] for name in names] == [one.time.value, one.stall.value, one.hits.value, one.moved.value]
        assert row["tokens_per_second"] == pytest.approx(1000 / row["ms_per_token"])
        assert row["link_idle_share"] == one.link_idle_share
        for name in ("ms_per_token", "hit_rate", "mib_per_token"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
        prefetches = one.replay.total.prefetches
        if prefetches:
            assert row["late_share"] * prefetches == pytest.approx(one.late_prefetches)
            assert row["useless_share"] * prefetches == pytest.approx(one.replay.total.prefetches_useless)
        else:
            assert row["late_share"] is row["useless_share"] is None


@pytest.mark.parametrize("policy", ["ours_layer_prefetch_lru", "lfu"])
def test_differences_are_those_of_a_bootstrap_of_the_same_prompts(replays, tables, policy):
    for split in replays:
        timed, best = split.timed_at(HEADLINE), split.best_without_predictor(HEADLINE)
        at = {"split": split.split, "device": HEADLINE[0], "capacity_experts": HEADLINE[1]}
        (row,) = tables["on_device"].filter(policy=policy, **at).rows(named=True)
        ratios = [one.time for one in (timed[policy], timed["lru"], best)]
        values = np.array(resampled(split.trace.num_prompts, *ratios))
        assert interval(row, "ms_per_token") == pytest.approx(spread(values[:, 0]))
        assert interval(row, "against_lru_ms") == pytest.approx(spread(values[:, 0] - values[:, 1]))
        assert row["against_lru_ms"] == pytest.approx(timed[policy].ms_per_token - timed["lru"].ms_per_token)
        if policy == "lfu":
            assert row["against_best_ms"] is None, "ours alone is compared"
        else:
            assert interval(row, "against_best_ms") == pytest.approx(spread(values[:, 0] - values[:, 2]))
            assert row["against_best_ms"] == pytest.approx(timed[policy].ms_per_token - best.ms_per_token)


def test_one_row_a_place_is_ours_and_one_the_best_without_it(replays, tables):
    table = tables["on_device"]
    assert table.filter(pl.col("ours"))["predictor"].unique().to_list() == ["ours"]
    for split in replays:
        for device, slots in split.places:
            at = table.filter(split=split.split, device=device, capacity_experts=slots)
            best = split.best_without_predictor((device, slots)).replay.policy
            assert at.filter("ours")["policy"].to_list() == [split.chosen[device, slots]]
            assert at.filter("best_without_predictor")["policy"].to_list() == [best]


def test_the_gap_is_closed_from_lru_to_a_bound_that_no_lossless_policy_passes(replays, tables):
    table = tables["on_device"]
    assert (table.filter(pl.col("policy") == "lru")["gap_closed"] == 0).all()
    lossless = table.filter(~pl.col("lossy"))
    assert (lossless["gap_closed"] <= 1).all()
    assert (lossless["ms_per_token"] >= lossless["bound_ms_per_token"]).all()
    for row in table.iter_rows(named=True):
        gap_ms = row["against_lru_ms"] / (row["bound_ms_per_token"] - (row["ms_per_token"] - row["against_lru_ms"]))
        assert row["gap_closed"] == pytest.approx(gap_ms)
    case = replays[0].case
    bound = time_bound(case.events, belady_curve(case.events), 12, load_device("phone_ufs"), case.workload)
    first = table.row(0, named=True)
    assert [first[name] for name in PLACE] == ["test_in_domain", "phone_ufs", 12]
    found = (first["bound_ms_per_token"], first["bound_hit_rate"], first["bound_mib_per_token"])
    assert found == (bound.ms_per_token, bound.hit_rate, bound.mib_per_token)


def test_the_unlimited_link_counts_every_access(replays, tables):
    table = tables["unlimited_link"]
    assert table.height == 2 * 17 * 3
    lossless = table.filter(pl.col("policy") != "drop_cold")
    assert (lossless["hits"] + lossless["misses"] == lossless["accesses"]).all()
    assert (lossless["mass_given_up"] == 0).all()
    lossy = table.filter(policy="drop_cold", capacity_experts=4)
    assert (lossy["mass_given_up"] > 0).all()
    assert (lossy["hits"] + lossy["misses"] < lossy["accesses"]).all()
    assert table["hit_rate"].to_list() == pytest.approx((table["hits"] / table["accesses"]).to_list())
    assert (table["hit_rate_low"] <= table["hit_rate"]).all()
    assert (table["hit_rate"] <= table["hit_rate_high"]).all()
    fetched = table.filter(pl.col("prefetches") > 0)
    assert (fetched["prefetches"] == fetched["prefetches_useful"] + fetched["prefetches_useless"]).all()
    assert set(fetched["policy"]) == {name for name, one in replays[0].facts.items() if one.prefetches}
    # with a clock a prefetch can come too late, never the other way round: LRU loads the same on both
    rows, on_device = (one.filter(policy="lru", capacity_experts=12) for one in (table, tables["on_device"]))
    assert set(rows["decode_hit_rate"]) == set(on_device["hit_rate"])


def test_the_ablation_adds_one_thing_at_a_time(tables):
    table = tables["ablation"]
    added = ["lru", "prefetch by token step", "prefetch by layer step", "only above 0.1"]
    added += ["eviction by predicted next use", "bypass", "belady"]
    assert table["added"].unique(maintain_order=True).to_list() == added
    assert table.height == 2 * len(SETTINGS.devices) * 7
    # a threshold of 0.1 leaves nothing out of what is sure or not, so the last steps are ours as it is replayed
    names = ["lru", "ours_prefetch_lru", "ours_layer_prefetch_lru", "belady"]
    whole = tables["on_device"].filter(pl.col("capacity_experts") == 12)
    for step, policy in zip((0, 1, 2, 6), names, strict=True):
        both = (table.filter(step=step), whole.filter(policy=policy))
        mine, same = (one.select("split", "device", "ms_per_token", "hit_rate").sort("split", "device") for one in both)
        assert mine.equals(same)
