"""Every policy by device and capacity: the explorer, time over capacity, and ours put together piece by piece."""

from __future__ import annotations

from typing import Any

import polars as pl

from moe_beyond.reporting.blocks import Block, Explorer, Figure, Section, Text, folded, section, table
from moe_beyond.reporting.columns import capacity, cells
from moe_beyond.reporting.figures.lines import Axis, curves
from moe_beyond.reporting.names import BOUND, DASHES, LRU, Look, label
from moe_beyond.reporting.read import Run
from moe_beyond.reporting.sections.pays import charged_note
from moe_beyond.reporting.text import Row, number

ROLES = {
    "ours": "Ours, as chosen on validation prompts",
    "best": "Best without the predictor, by hindsight",
    "lru": "LRU",
    "bound": BOUND,
}
"""Lines of a chart over capacity, whichever policies they are at each capacity."""
_LOOKS = (Look("@blue"), Look("@orange", DASHES[1]), Look("@vermilion"), Look("@ink", DASHES[2]))
_GROUPS = {"main": "LRU, the best, ours and bounds", "lossless": "All lossless", "all": "All"}


def explorer_section(run: Run) -> Section:
    """Every policy, for a split, a device and a capacity that the reader picks."""
    rows, devices = policies(run), run.devices or [""]
    states = {split: {device: _states(rows, split, device) for device in devices} for split in run.splits}
    opening = states[run.split][devices[0]]
    data = {
        "splits": [[split, label(split)] for split in states],
        "devices": [[device, label(device) or "no device"] for device in devices],
        "groups": list(_GROUPS.items()),
        "states": states,
        "start": [state["experts"] for state in opening].index(run.capacity),
    }
    here = rows.filter(split=run.split, device=devices[0], capacity_experts=run.capacity)
    blocks: list[Block] = [Explorer(data, table(f"{number(run.capacity)} experts", here, cells("explorer"), "ours"))]
    missing = run.tables["not_replayed"].unique(["title", "reason"], maintain_order=True)
    points = tuple(f"{row['title']}: {row['reason']}" for row in missing.iter_rows(named=True))
    return section("explorer", [*blocks, *([Text("", points, "Not replayed")] if points else [])])


def policies(run: Run) -> pl.DataFrame:
    """A row a split, device, capacity and policy, the best first; without times a device without a name."""
    keys = ["split", "policy", "capacity_experts"]
    limitless = run.tables["unlimited_link"].with_columns(pl.col("prefetches").cast(pl.Boolean))
    if run.devices:
        own = limitless.select(*keys, "mass_given_up", unlimited_hit_rate="decode_hit_rate")
        return run.timed.join(own, on=keys, maintain_order="left").sort("ms_per_token", "policy")
    empty = [pl.lit(None).alias(name) for name in run.timed.columns if name not in limitless.columns]
    rows = limitless.with_columns(*empty, pl.lit(None).alias("hit_rate"), unlimited_hit_rate="hit_rate")
    return rows.with_columns(device=pl.lit("")).sort("unlimited_hit_rate", descending=True, maintain_order=True)


def _states(rows: pl.DataFrame, split: str, device: str) -> list[dict[str, Any]]:
    """A position of the slider each: its label, and its rows with the groups that show them."""
    found, written = [], cells("explorer")
    for (experts,), part in rows.filter(split=split, device=device).group_by("capacity_experts", maintain_order=True):
        lines = list(part.iter_rows(named=True))
        shown = [
            {"cells": [cell(row) for cell in written.values()], "in": _groups(row), "ours": row["ours"]}
            for row in lines
        ]
        found.append({"experts": experts, "label": capacity(lines[0]), "rows": shown})
    return sorted(found, key=lambda state: int(state["experts"]))


def _groups(row: Row) -> list[str]:
    # without times nothing was chosen, so all are shown
    main = row["ours"] in (None, True) or row["best_without_predictor"] or row["bound"] or row["policy"] == LRU
    return [name for name, belongs in zip(_GROUPS, (main, not row["lossy"], True), strict=True) if belongs]


def time_section(run: Run) -> Section:
    """Milliseconds a token over capacity, a figure a device."""
    figures = [figure for split, device in run.places for figure in _over_capacity(run, split, device)]
    return section("time", [*figures[:1], *folded("Other devices and splits", figures[1:])])


def over_capacity(run: Run, split: str, device: str) -> pl.DataFrame:
    """Rows of `on_device` by role (a key of `ROLES`), rising in capacity; the bound's numbers are its own."""
    rows = run.timed.filter(split=split, device=device).sort("capacity_experts", maintain_order=True)
    lru, own = rows.filter(policy=LRU), ("ms_per_token", "hit_rate", "mib_per_token")
    bound = lru.with_columns(pl.lit(BOUND).alias("title"), *(pl.col(f"bound_{name}").alias(name) for name in own))
    parts = {"ours": rows.filter("ours"), "best": rows.filter("best_without_predictor"), "lru": lru, "bound": bound}
    return pl.concat([part.with_columns(role=pl.lit(role)) for role, part in parts.items()])


def _over_capacity(run: Run, split: str, device: str) -> list[Figure]:
    frame = over_capacity(run, split, device).with_columns(series=pl.col("role").replace_strict(ROLES))
    if frame["capacity_experts"].n_unique() < 2:
        return []
    title = f"Time over capacity: {label(device)}, {label(split).lower()}"
    figure = curves(
        run.figure("ms_per_token", split, device),
        title,
        frame,
        {name: look for name, look in zip(ROLES.values(), _LOOKS, strict=True) if name in frame["series"]},
        x=Axis("capacity_fraction", "capacity, share of the model's experts", "percent"),
        y=Axis("ms_per_token", "ms per token"),
        table=table(title, frame.sort("capacity_experts", maintain_order=True), cells("over_capacity")),
        mark=run.token_cycle,
        note=charged_note(frame.filter(capacity_experts=run.capacity)),
        wide=True,
    )
    return [figure]


def ablation_section(run: Run) -> Section:
    """A table a device, a row a piece that was added; other devices and splits folded."""
    tables = [
        table(
            f"{label(device)}, {number(run.capacity)} experts, {label(split).lower()}",
            run.tables["ablation"].filter(split=split, device=device).sort("step"),
            cells("ablation"),
        )
        for split, device in run.places
    ]
    shown = [one for one in tables if one.rows]
    return section("ablation", [*shown[:1], *folded("Other devices and splits", shown[1:])])
