"""The paper's own replay: our predictor and the published predictions in the same caches."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.blocks import Block, Section, folded, section, table
from moe_beyond.reporting.columns import cells
from moe_beyond.reporting.names import PAPER_LRU, label
from moe_beyond.reporting.read import TOKEN, Run

_CACHES = {"paper_lru": "The paper's LRU, its replay unchanged", "lru": "LRU in which only a use renews an expert"}


def paper_section(run: Run) -> Section:
    """Both sides in every row, so that no row compares two caches; the paper's own replay first."""
    blocks: list[Block] = []
    for split in run.splits:
        rows = run.tables["paper_replay"].filter(split=split)
        caches = sorted(rows["cache"].unique(maintain_order=True).to_list(), key=lambda cache: cache != PAPER_LRU)
        for cache in caches:
            caption = f"{_CACHES.get(cache, label(cache))}: {label(split).lower()}"
            blocks.append(table(caption, rows.filter(cache=cache), cells("paper_caches")))
    every = table("Every predictor in the paper's own replay", _protocol(run), cells("paper_protocol"))
    return section("paper", [*blocks, *folded(every.caption, [every] if every.rows else [])])


def _protocol(run: Run) -> pl.DataFrame:
    """The table `published_protocol`, its intervals beside their columns."""
    ends = {"low": "hit_rate_low", "high": "hit_rate_high"}
    ends |= {"mib_low": "mib_per_token_low", "mib_high": "mib_per_token_high"}
    ahead = pl.col("horizon").replace(TOKEN, "before the token")
    return run.tables["published_protocol"].rename(ends).with_columns(horizon=ahead)
