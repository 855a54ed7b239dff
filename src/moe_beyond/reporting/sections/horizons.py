"""What the predictor gains by waiting: recall layer by layer, from the token step and from some layers ahead."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, DataTable, Figure, wide_table
from moe_beyond.reporting.figures import plots
from moe_beyond.reporting.headline import by_layer, overall, recall_name, split_label, top_k
from moe_beyond.reporting.names import label, legend
from moe_beyond.reporting.tables import TOKEN, Tables
from moe_beyond.reporting.text import interval, percent, points

_TITLE = "The later it is asked, the more it knows"


def horizon_blocks(tables: Tables) -> list[Block]:
    """For each split a table of recall by horizon; for each with two layers or more a figure over layers."""
    ours = tables.learned_predictor
    if len(tables.horizons) < 2 or ours is None:
        reason = f"{tables['quality'].path} has the token step alone; no step ahead of a layer was scored"
        return [Absent(_TITLE, reason)]
    blocks: list[Block] = []
    for split in tables.splits:
        table = horizon_table(tables, split, ours)
        if table is not None:
            blocks += [table, *_figure(tables, split, ours)]
    return blocks or [Absent(_TITLE, f"{tables['quality'].path} has no rows of a test split")]


def horizon_words(horizon: str) -> str:
    """A horizon as a reader meets it."""
    if horizon == TOKEN:
        return "before the token's first layer"
    return "after the layer before" if horizon == "1" else f"{horizon} layers ahead"


def horizon_table(tables: Tables, split: str, ours: str) -> DataTable | None:
    """Recall of ours at every horizon and what it gains over the token step; None where the split was not scored."""
    found = []
    for horizon in tables.horizons:
        ours_there = overall(tables["quality"].rows, split, horizon).filter(pl.col("predictor") == ours)
        if not ours_there.is_empty():
            found.append((horizon, ours_there.row(0, named=True)))
    if not found:
        return None
    base = found[0][1]["recall_at_k"]
    rows = tuple(
        (
            horizon_words(horizon).capitalize(),
            percent(row["recall_at_k"]),
            interval(row.get("recall_low"), row.get("recall_high")) or "no interval",
            "" if horizon == TOKEN else points(row["recall_at_k"] - base),
        )
        for horizon, row in found
    )
    columns = ("Asked", recall_name(tables), "95 % interval", "Gain")
    return DataTable(f"{recall_name(tables)} by horizon, {split_label(split)}", columns, rows, tables["quality"].path)


def _figure(tables: Tables, split: str, ours: str) -> list[Block]:
    parts = []
    for horizon in tables.horizons:
        rows = by_layer(tables["quality"].rows, split, horizon).filter(pl.col("predictor") == ours)
        name = ours if horizon == TOKEN else f"{ours}_ahead_{horizon}"
        parts.append(rows.select("layer", "recall_at_k", predictor=pl.lit(name)))
    frame = pl.concat(parts)
    if frame["layer"].n_unique() < 2:
        return [Absent(_TITLE, f"{tables['quality'].path} has fewer than two layers for {split}")]
    names = frame["predictor"].unique(maintain_order=True).to_list()
    table = wide_table(
        frame,
        index="layer",
        on="predictor",
        value="recall_at_k",
        order=names,
        headings=[label(name) for name in names],
        caption=f"{recall_name(tables)} of ours by layer and horizon, {split_label(split)}",
        source=tables["quality"].path,
        shares=True,
        first="Layer",
    )
    said = [
        f"{label(name)} between {percent(rows['recall_at_k'].min())} and {percent(rows['recall_at_k'].max())}"  # type: ignore[arg-type]
        for name in names
        for rows in (frame.filter(pl.col("predictor") == name),)
    ]
    chart = plots.recall_by_layer(frame, names, top_k(tables))
    title = f"{recall_name(tables)} by layer and horizon: {label(split).lower()}"
    alt = f"Line chart over layers. {'; '.join(said)}."
    return [Figure(f"recall_by_horizon_{split}", title, alt, chart, table, legend=legend(names))]
