"""The page's first sentence: short, computed, and as ready to say that the predictor loses."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from moe_beyond.reporting.headline import contest
from moe_beyond.reporting.names import label
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.verdict import races, verdict
from tests.reporting.test_findings import OURS, set_where, with_table


def winning(tables: Tables) -> Tables:
    """The same tables, with ours five times as fast."""
    quick = set_where(tables["timing"].rows, pl.col("policy") == OURS, ms_per_token=pl.col("ms_per_token") / 5)
    return with_table(tables, "timing", quick)


def test_gives_the_gain_over_the_best_rival_on_each_device(tables: Tables):
    tables = winning(tables)
    result = contest(tables, "test_out_of_domain", 0.1)
    assert result is not None
    found = races(tables, result)
    assert [race.device for race in found] == ["phone_ufs", "laptop_nvme"]
    times = tables["timing"].rows.filter(
        (pl.col("split") == "test_out_of_domain") & (pl.col("capacity_experts") == 32) & (pl.col("predictor_ms") == 0.1)
    )
    for race in found:
        here = times.filter(pl.col("device") == race.device)
        assert race.ours_ms == here.filter(pl.col("policy") == OURS)["ms_per_token"][0]
        others = here.filter((pl.col("policy") != OURS) & (pl.col("policy") != "belady"))
        assert race.rival_ms == others["ms_per_token"].min()
    gains = sorted(race.gain for race in found)
    assert gains[0] > 0
    sentence = verdict(tables, 0.1).sentence
    assert sentence.startswith("Worth offloading: the predictor makes tokens ")
    assert sentence.endswith("faster than the best policy without it, on 2 of 2 devices.")
    assert len(sentence.split()) < 30
    for gain in gains:
        assert f"{100 * gain:.{0 if gain >= 0.1 else 1}f}\u00a0%" in sentence


def test_says_so_when_the_predictor_wins_nowhere(tables: Tables):
    slow = set_where(tables["timing"].rows, pl.col("policy") == OURS, ms_per_token=1e6)
    sentence = verdict(with_table(tables, "timing", slow), 0.1).sentence
    assert "no faster on any of 2 devices" in sentence
    assert "is at least as fast" in sentence


def test_counts_only_the_devices_that_are_won(tables: Tables):
    lost = (pl.col("policy") == OURS) & (pl.col("device") == "phone_ufs")
    timed = with_table(tables, "timing", set_where(winning(tables)["timing"].rows, lost, ms_per_token=1e6))
    assert verdict(timed, 0.1).sentence.endswith("on 1 of 2 devices.")


def test_a_policy_that_gives_up_accuracy_is_no_rival(tables: Tables):
    replay = tables["replay"].rows.with_columns(mass_given_up=pl.lit(0.0))
    quick = (pl.col("policy") == "static_popularity", pl.col("policy") == "token_unigram_prefetch_lru")
    times = set_where(winning(tables)["timing"].rows, quick[0] | quick[1], ms_per_token=1e-9)
    timed = with_table(tables, "timing", times)
    assert "no faster on any" in verdict(timed, 0.1).sentence
    lossy = with_table(timed, "replay", set_where(replay, quick[0] | quick[1], mass_given_up=0.02))
    assert verdict(lossy, 0.1).sentence.endswith("on 2 of 2 devices.")
    result = contest(lossy, "test_out_of_domain", 0.1)
    assert result is not None
    assert result.rival.policy == "lru"


def test_the_paragraph_below_speaks_of_hits_and_bytes(tables: Tables):
    result = contest(tables, "test_out_of_domain", 0.1)
    assert result is not None
    assert result.demand is not None
    text = verdict(tables, 0.1).because
    assert text.startswith("With 10\u00a0% of the experts in fast memory, on another domain, ")
    assert f"{label(OURS)} hits {100 * result.ours.hit_rate:.1f}\u00a0%" in text
    assert f"{label(result.rival.policy)}, hits {100 * result.rival.hit_rate:.1f}\u00a0%" in text
    assert f"{result.ours.mib_per_token / result.demand.mib_per_token:.2f} times the bytes" in text


def test_without_times_the_hit_rates_decide(tables: Tables):
    sentence = verdict(with_table(tables, "timing", None), 0.1).sentence
    assert sentence.startswith("Worth offloading: prefetching by the predictor hits ")


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("go with a bigger cache", "Worth offloading with a bigger cache: the"),
        ("do not", "Not worth offloading: the"),
        ("", "The predictor"),
    ],
)
def test_opens_with_the_card(tables: Tables, card: str, words: str):
    assert verdict(replace(tables, card=tables.card | {"verdict": card}), 0.1).sentence.startswith(words)


def test_without_a_replay_it_says_so(tables: Tables):
    found = verdict(with_table(tables, "replay", None), 0.1)
    assert found.sentence == "Worth offloading. No replay of a trained predictor stands beside it yet."
    assert found.because == ""
    bare = replace(with_table(tables, "replay", None), card={})
    assert verdict(bare, 0.1).sentence == "No verdict yet: reports/simulate/replay.csv was not written"
