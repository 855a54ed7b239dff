"""Negative results are named, and there are none to name where nothing lost."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.negative import negative_results
from moe_beyond.reporting.tables import Tables
from tests.reporting.test_findings import OURS, set_where, with_table


def test_names_who_loses_to_lru_in_hits_bytes_and_time(tables: Tables):
    worse = set_where(tables["replay"].rows, pl.col("policy") == "static_popularity", hit_rate=0.0)
    slow = set_where(tables["timing"].rows, pl.col("policy") == OURS, ms_per_token=1e6)
    said = negative_results(with_table(with_table(tables, "replay", worse), "timing", slow), 0.1)
    assert said[0].startswith("1 of 3 policies (Static popularity) hit less than plain LRU with 10")
    assert any("2 of 2 policies (Predictor prefetch + LRU, Token" in text.replace(" and ", ", ") for text in said)
    assert any(
        text.startswith("Phone, UFS flash: ") and text.endswith("of ours Predictor prefetch + LRU.") for text in said
    )


def test_says_nothing_where_nothing_lost(tables: Tables):
    best = set_where(tables["replay"].rows, pl.col("policy") == "lru", hit_rate=0.0, mib_per_token=1e9)
    quick = set_where(tables["timing"].rows, pl.col("policy") == "lru", ms_per_token=1e9)
    assert negative_results(with_table(with_table(tables, "replay", best), "timing", quick), 0.1) == ()
    assert negative_results(with_table(tables, "replay", None), 0.1) == ()
