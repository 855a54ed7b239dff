from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond.reporting.findings import Finding, findings
from moe_beyond.reporting.headline import cache_rows, contest, nearest_capacity, scores
from moe_beyond.reporting.tables import Table, Tables

OURS = "predictor_prefetch_lru"


def with_table(tables: Tables, name: str, frame: pl.DataFrame | None) -> Tables:
    """The same tables with one exchanged; None takes it away."""
    table = Table(tables[name].path, frame, "" if frame is not None else f"{tables[name].path} was not written")
    return replace(tables, csv=tables.csv | {name: table})


def set_where(frame: pl.DataFrame, condition: pl.Expr, **values: object) -> pl.DataFrame:
    return frame.with_columns(
        pl.when(condition)
        .then(value if isinstance(value, pl.Expr) else pl.lit(value))
        .otherwise(pl.col(name))
        .alias(name)
        for name, value in values.items()
    )


def texts(found: list[Finding], tone: str) -> str:
    return " ".join(finding.text for finding in found if finding.tone == tone)


@given(share=st.floats(0.001, 1))
def test_the_headline_capacity_is_the_nearest_replayed_one(tables: Tables, share: float):
    replay = tables["replay"].rows
    chosen = nearest_capacity(replay, "test_in_domain", share)
    sizes = replay.filter(pl.col("split") == "test_in_domain")["capacity_experts"].unique()
    assert abs(chosen - share * 320) == min(abs(size - share * 320) for size in sizes)


def test_a_contest_pits_ours_against_the_best_that_can_be_built(tables: Tables):
    result = contest(tables, "test_in_domain", 0.1)
    assert result is not None
    rows = cache_rows(tables, "test_in_domain", 32)
    buildable = {row.policy: row.hit_rate for row in rows if row.policy not in (OURS, "belady")}
    assert result.ours.policy == OURS
    assert result.rival.hit_rate == max(buildable.values())
    assert result.bound is not None
    assert result.bound.policy == "belady"
    assert result.demand is not None
    assert result.demand.prefetches == 0


@settings(max_examples=25)
@given(recall=st.floats(0, 1), width=st.floats(0, 0.2))
def test_recall_findings_take_the_side_of_the_numbers(tables: Tables, recall: float, width: float):
    quality = tables["quality"].rows
    mine = (pl.col("predictor") == "predictor") & (pl.col("layer") == "all") & (pl.col("phase") == "all")
    changed = set_where(
        quality, mine, recall_at_k=recall, recall_low=max(0, recall - width), recall_high=min(1, recall + width)
    )
    altered = with_table(tables, "quality", changed)
    found = [f for f in findings(altered, 0.1) if "the best baseline" in f.text and "another domain" in f.text]
    rival = max((row for row in scores(altered, "test_out_of_domain")[1:]), key=lambda row: row.recall)
    assert rival.high is not None
    if recall <= rival.recall:
        expected = "bad"
    elif recall - width > rival.high:
        expected = "good"
    else:
        expected = "neutral"
    assert [f.tone for f in found] == [expected]
    assert ("overlap" in found[0].text) == (expected == "neutral")


def test_layers_in_which_a_baseline_is_as_good_are_named(tables: Tables):
    lost = (pl.col("predictor") == "predictor") & pl.col("layer").is_in(["2", "4"])
    changed = set_where(tables["quality"].rows, lost, recall_at_k=0.01)
    bad = texts(findings(with_table(tables, "quality", changed), 0.1), "bad")
    assert "layers (2 and 4" in bad or "layers (2, 4" in bad


@settings(max_examples=25)
@given(hit_rate=st.floats(0, 1))
def test_hit_rate_findings_take_the_side_of_the_numbers(tables: Tables, hit_rate: float):
    here = (pl.col("policy") == OURS) & (pl.col("split") == "test_out_of_domain") & (pl.col("capacity_experts") == 32)
    altered = with_table(tables, "replay", set_where(tables["replay"].rows, here, hit_rate=hit_rate))
    result = contest(altered, "test_out_of_domain", 0.1)
    assert result is not None
    found = [f for f in findings(altered, 0.1) if f.text.startswith("Prefetching") and "on another domain" in f.text]
    assert [f.tone for f in found] == ["good" if hit_rate > result.rival.hit_rate else "bad"]
    lost = [f for f in findings(altered, 0.1) if "a policy without the trained predictor hits more" in f.text]
    assert any("another domain" in f.text for f in lost) == (hit_rate < result.rival.hit_rate)


@pytest.mark.parametrize(("mib", "tone"), [(9.0, "bad"), (0.001, "good")])
def test_prefetch_that_moves_more_bytes_than_it_saves_is_said_to(tables: Tables, mib: float, tone: str):
    replay = set_where(tables["replay"].rows, pl.col("policy") == OURS, mib_per_token=mib)
    found = findings(with_table(tables, "replay", replay), 0.1)
    assert ("moves more bytes than it saves" in texts(found, "bad")) == (tone == "bad")
    assert ("moves no more bytes" in texts(found, "good")) == (tone == "good")


def test_mostly_useless_prefetches_are_named(tables: Tables):
    replay = set_where(
        tables["replay"].rows, pl.col("policy") == OURS, prefetches=1000, prefetches_useful=200, prefetches_useless=800
    )
    assert "80\u00a0% of the experts it prefetched were not used" in texts(
        findings(with_table(tables, "replay", replay), 0.1), "bad"
    )


def test_a_headline_below_one_token_cycle_is_called_flattering(tables: Tables):
    assert "below one token cycle" not in texts(findings(tables, 0.1), "bad")
    assert "below one token cycle" in texts(findings(tables, 0.05), "bad")


def test_undecided_comparisons_are_counted_from_ours_alone(tables: Tables):
    neutral = texts(findings(tables, 0.1), "neutral")
    assert "In 2 of 4 paired comparisons of Predictor prefetch + LRU" in neutral


def test_what_training_prompts_and_the_own_domain_flatter_is_said(tables: Tables):
    quality = tables["quality"].rows
    train = quality.filter(pl.col("split") == "test_in_domain").with_columns(
        split=pl.lit("train"), recall_at_k=pl.col("recall_at_k") + 0.1
    )
    found = findings(with_table(tables, "quality", pl.concat([quality, train])), 0.1)
    assert "From the prompts it was trained on to held-out ones the predictor loses 10.0 points" in texts(found, "bad")
    assert "From its own domain to another the predictor loses" in texts(found, "bad")


def test_times_that_the_predictor_never_wins_are_held_against_it(tables: Tables):
    timing = tables["timing"].rows
    slow = set_where(timing, pl.col("policy") == OURS, ms_per_token=1e6)
    fast = set_where(timing, pl.col("policy") == OURS, ms_per_token=1e-6)
    assert "fastest tokens at 0 of 8 capacities" in texts(findings(with_table(tables, "timing", slow), 0.1), "bad")
    assert "fastest tokens at 8 of 8 capacities" in texts(findings(with_table(tables, "timing", fast), 0.1), "good")


def test_every_finding_names_a_table(tables: Tables):
    for finding in findings(tables, 0.05):
        assert finding.source.startswith("reports/")
