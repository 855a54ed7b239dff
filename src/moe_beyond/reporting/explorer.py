"""The explorer, and the tables of all policies at one capacity that it starts from."""

from __future__ import annotations

from typing import Any

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, DataTable, Explorer, Passage, Section
from moe_beyond.reporting.clock import Clock
from moe_beyond.reporting.headline import CacheRow, cache_rows, nearest_capacity
from moe_beyond.reporting.names import is_bound, label, looks
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import MISSING, interval, mib, number, percent

_NBSP = "\u00a0"
POLICY_COLUMNS = ("Policy", "Hit rate", "95 % interval", "in decode", "MiB per token", "Prefetches used")


def explorer_section(tables: Tables, fraction: float) -> Section:
    """Every policy at once, for a split, a capacity and (where times are modelled) a device that the reader picks."""
    title = "Explorer"
    replay = tables["replay"]
    splits = [] if replay.frame is None else [name for name in tables.splits if name in replay.frame["split"].unique()]
    if not splits:
        reason = replay.absent or f"{replay.path} has no rows of a test split"
        return Section("explorer", "Explorer", title, blocks=(Absent(title, reason),))
    lead = (
        "Pick how much of the model fits into fast memory. Every number is a row of a table; nothing is interpolated. "
        "Policies marked as bounds know the future and cannot be built."
    )
    return Section("explorer", "Explorer", title, lead, (explorer(tables, splits, fraction),))


def explorer(tables: Tables, splits: list[str], fraction: float) -> Explorer:
    """The explorer's data and its first state: the last of `splits` at the capacity nearest to `fraction`."""
    clock = Clock.read(tables["timing"].frame)
    replay = tables["replay"].rows
    entries = []
    for split in splits:
        capacities = replay.filter(pl.col("split") == split)["capacity_experts"].unique().sort().to_list()
        start = capacities.index(nearest_capacity(replay, split, fraction))
        states = [_state(tables, clock, split, capacity) for capacity in capacities]
        entries.append({"id": split, "label": label(split), "start": start, "states": states})
    data = {
        "columns": [*POLICY_COLUMNS, *(heading for _, heading in clock.columns)],
        "splits": entries,
        "devices": [label(name) for name in clock.devices],
        "latency": clock.latencies.index(tables.modelled_latency_ms) if clock.latencies else 0,
        "latencies": [f"{number(value)}{_NBSP}ms" for value in clock.latencies],
    }
    opening = policy_table(tables, splits[-1], nearest_capacity(replay, splits[-1], fraction))
    sources = [tables["replay"].path, *([tables["timing"].path] if clock.devices else [])]
    return Explorer(data, opening, tuple(sources))


def _state(tables: Tables, clock: Clock, split: str, capacity: int) -> dict[str, Any]:
    """One position of the slider: a row a policy, best hit rate first, its times by device and latency."""
    styles = looks(tables.policies)
    rows = _best_first(tables, split, capacity)
    return {
        "label": _capacity_text(rows[0], tables.expert_mib),
        "best": clock.fastest(split, capacity, [row.policy for row in rows if not is_bound(row.policy)]),
        "rows": [
            {
                "cells": _cells(row),
                "hit": row.hit_rate,
                "colour": styles[row.policy].colour.removeprefix("@"),
                "times": clock.cells(split, row.policy, capacity),
            }
            for row in rows
        ],
    }


def policy_table(tables: Tables, split: str, capacity: int) -> DataTable:
    """Every policy on one split at one capacity, best hit rate first."""
    rows = _best_first(tables, split, capacity)
    caption = f"{label(split)} at {_capacity_text(rows[0], tables.expert_mib)}"
    return DataTable(caption, POLICY_COLUMNS, tuple(_cells(row) for row in rows), tables["replay"].path)


def _best_first(tables: Tables, split: str, capacity: int) -> list[CacheRow]:
    return sorted(cache_rows(tables, split, capacity), key=lambda row: (-row.hit_rate, row.policy))


def _cells(row: CacheRow) -> tuple[str, ...]:
    return (
        label(row.policy),
        percent(row.hit_rate),
        interval(row.low, row.high) or MISSING,
        percent(row.decode_hit_rate),
        number(row.mib_per_token),
        percent(row.useful_share),
    )


def _capacity_text(row: CacheRow, expert_mib: float | None) -> str:
    text = f"{number(row.capacity_experts)} experts, {percent(row.capacity_fraction)} of the model"
    return text if expert_mib is None else f"{text}, {mib(row.capacity_experts * expert_mib)}"


def headline_policies(tables: Tables, fraction: float) -> list[Block]:
    """One table a split: every policy at the headline capacity."""
    replay = tables["replay"].frame
    if replay is None:
        return [Absent("Policies at the headline capacity", tables["replay"].absent)]
    splits = [split for split in tables.splits if split in replay["split"].unique()]
    blocks: list[Block] = []
    for split in splits:
        capacity = nearest_capacity(replay, split, fraction)
        blocks.append(policy_table(tables, split, capacity))
    if any(is_bound(policy) for policy in tables.policies):
        text = (
            "A bound knows the future and loads on demand. No policy that loads on demand can hit more, and none at "
            "all can load less; a policy that prefetches may hit more, at the price of loads that come to nothing."
        )
        blocks.append(Passage(text))
    return blocks
