"""What hidden states are worth: every predictor that reads them beside ours without, over the same choices."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.blocks import Block, Section, folded, section, table
from moe_beyond.reporting.columns import cells
from moe_beyond.reporting.names import label
from moe_beyond.reporting.read import TOKEN, Run

_WHEN = {TOKEN: "before the token", "attention": "before its attention"}


def hidden_section(run: Run) -> Section:
    """All places, as predictors are used; folded, the places where each knows something, phases, other splits."""
    rows = run.tables["hidden"]
    if rows.is_empty():
        return section("hidden", [])
    written, k = cells("hidden", k=run.card["top_k"]), run.card["top_k"]
    splits = [split for split in run.splits if split in rows["split"]]
    blocks: list[Block] = []
    further: list[Block] = []
    for split in splits:
        here = _worded(rows.filter(split=split))
        whole = here.filter(phase="all")
        first = table(f"All layers, {label(split).lower()}", whole.filter(places="all"), written)
        (blocks if split == splits[0] else further).append(first)
        caption = f"Only layers that have so many below them, {label(split).lower()}"
        further.append(table(caption, whole.filter(places="below"), written))
        phases = here.filter(pl.col("phase") != "all", places="all", horizon="1")
        further.append(table(f"Text given and text generated, {label(split).lower()}", phases, cells("phases", k=k)))
    return section("hidden", [*blocks, *folded("Like with like, phases, other splits", further)], k=k)


def _worded(rows: pl.DataFrame) -> pl.DataFrame:
    """With `ahead`, how far ahead in words; the best of each horizon first."""
    number = pl.col("horizon").cast(pl.Int64, strict=False)
    far = pl.format("{} {}", pl.col("horizon"), pl.when(number == 1).then(pl.lit("layer")).otherwise(pl.lit("layers")))
    words = pl.col("horizon").replace(_WHEN)
    ahead = pl.when(number.is_null()).then(words).otherwise(far)
    order = pl.when(pl.col("horizon") == TOKEN).then(-1).otherwise(number.fill_null(0))
    return rows.with_columns(ahead=ahead).sort(order, -pl.col("recall_at_k"), maintain_order=True)
