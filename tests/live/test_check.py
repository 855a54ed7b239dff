"""The live check: a right replay differs in nothing, a wrong one is found out, lossy policies are told apart."""

import numpy as np
import polars as pl
import pytest

from moe_beyond.live.check import check, metrics
from moe_beyond.live.session import Case
from moe_beyond.simulator.policies.catalogue import build
from moe_beyond.simulator.policies.on_demand import LayerLru
from moe_beyond.simulator.policies.settings import PolicySettings
from moe_beyond.simulator.policies.static import StaticPopularity
from moe_beyond.simulator.schedule.events import events_of
from tests.live.live_case import LiveCase

GB_PER_S = 0.002


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return LiveCase.of("qwen3_moe", tmp_path_factory.mktemp("check"))


def checked(case, *checks):
    rows = check(
        case.model, case.tokenizer, case.store, case.trace, checks, capacity_experts=9, lookahead=2, gb_per_s=GB_PER_S
    )
    return {row["policy"]: row for row in rows.iter_rows(named=True)}


def test_on_demand_the_replay_is_right_about_every_event(case):
    rows = checked(case, Case(LayerLru()), Case(build("mixtral_offloading", case.trace, PolicySettings())))
    assert list(rows) == ["lru", "layer_lru", "mixtral_offloading"], "LRU first, unasked"
    for row in rows.values():
        assert not row["lossy"] and row["greatest_logit_difference"] < 1e-5
        assert row["events"] == events_of(case.trace).num_events
    for row in (rows["lru"], rows["layer_lru"]):
        assert row["events_that_differ"] == 0
        moved_ms = row["mib_per_token"] * 2**20 / (GB_PER_S * 1e6)
        # to the resolution of a sleep
        assert row["ms_per_token"] >= row["stall_ms_per_token"] > 0.95 * moved_ms
        for name in ("hit_rate", "mib_per_token"):
            assert row[name] == pytest.approx(row[f"modelled_{name}"])
    # prefetches make hits a matter of time
    assert rows["mixtral_offloading"]["events_that_differ"] is None
    # the device is LRU's own run
    assert rows["lru"]["modelled_ms_per_token"] == pytest.approx(rows["lru"]["ms_per_token"], rel=0.05)


def test_decisions_other_than_the_replay_s_are_found_out(case):
    score_M = np.arange(case.meta.num_model_experts, dtype=np.float32)
    online = StaticPopularity(-score_M).online(case.meta)
    (row,) = list(checked(case, Case(StaticPopularity(score_M), online)).values())[1:]
    assert row["events_that_differ"] > 0
    assert row["hit_rate"] != row["modelled_hit_rate"]
    assert row["greatest_logit_difference"] < 1e-5


def test_a_lossy_policy_is_marked_and_changes_the_logits(case):
    row = checked(case, Case(build("drop_cold", case.trace, PolicySettings())))["drop_cold"]
    assert row["lossy"] and row["greatest_logit_difference"] > 1e-2


def test_metrics_are_of_lossless_policies_and_of_ours():
    rows = [
        ("lru", False, 50.0, 50.0, 0.2, 0.2, 30, 1, 2e-6),
        ("own", False, 40.0, 30.0, 0.4, 0.5, 30, None, 3e-6),
        ("mote", True, 10.0, 10.0, 0.9, 0.9, 30, 7, 0.5),
    ]
    times = ["ms_per_token", "modelled_ms_per_token", "hit_rate", "modelled_hit_rate"]
    columns = ["policy", "lossy", *times, "events", "events_that_differ", "greatest_logit_difference"]
    found = metrics(pl.DataFrame(rows, columns, orient="row"), "own")
    assert {name: value["value"] for name, value in found.items()} == {
        **{"events_that_differ": 1, "events_compared": 30, "greatest_logit_difference": 3e-6},
        **{"ms_per_token": 40, "modelled_ms_per_token": 30, "hit_rate": 0.4, "modelled_hit_rate": 0.5},
        "time_error": -0.25,
    }
    assert "time_error" not in metrics(pl.DataFrame(rows, columns, orient="row"), None)
