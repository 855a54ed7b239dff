"""The explorer, and the tables of all policies at one capacity that it starts from."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, DataTable, Explorer, Passage, Section
from moe_beyond.reporting.headline import CacheRow, cache_rows, nearest_capacity
from moe_beyond.reporting.names import is_bound, label, looks
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import MISSING, interval, mib, number, percent

POLICY_COLUMNS = ("Policy", "Hit rate", "95 % interval", "in decode", "MiB per token", "Prefetches used")


def explorer_section(tables: Tables, fraction: float) -> Section:
    """Every policy at once, for a split, a capacity and (where times are modelled) a device that the reader picks."""
    title = "Explorer"
    if tables["replay"].frame is None:
        return Section("explorer", "Explorer", title, blocks=(Absent(title, tables["replay"].absent),))
    lead = (
        "Pick how much of the model fits into fast memory. Every number is a row of the replay; nothing is "
        "interpolated. Policies marked as bounds know the future and cannot be built."
    )
    return Section("explorer", "Explorer", title, lead, (explorer(tables, fraction),))


def explorer(tables: Tables, fraction: float) -> Explorer:
    """The explorer's data and its first state."""
    replay = tables["replay"].rows
    splits = [split for split in tables.splits if split in replay["split"].unique()]
    devices = tables.devices
    expert_mib = tables.expert_mib
    columns = [*POLICY_COLUMNS, *(("ms per token", "Tokens per second", "Stall, ms per token") if devices else ())]
    data: dict[str, object] = {
        "columns": columns,
        "splits": [{"id": split, "label": label(split), "states": []} for split in splits],
        "devices": [label(name) for name in devices],
    }
    styles = looks(tables.policies)
    for split, entry in zip(splits, data["splits"], strict=True):  # type: ignore[call-overload]
        part = replay.filter(pl.col("split") == split)
        entry["start"] = 0
        for place, capacity in enumerate(part["capacity_experts"].unique().sort().to_list()):
            rows = sorted(cache_rows(tables, split, capacity), key=lambda row: (-row.hit_rate, row.policy))
            entry["states"].append(
                {
                    "label": _capacity_text(rows[0], expert_mib),
                    "rows": [
                        {
                            "cells": _cells(row),
                            "hit": row.hit_rate,
                            "colour": styles[row.policy].colour.removeprefix("@"),
                            "times": _times(tables, split, row, devices),
                        }
                        for row in rows
                    ],
                }
            )
            if capacity == nearest_capacity(replay, split, fraction):
                entry["start"] = place
    opening = splits[-1]
    capacity = nearest_capacity(replay, opening, fraction)
    return Explorer(data, policy_table(tables, opening, capacity))


def policy_table(tables: Tables, split: str, capacity: int) -> DataTable:
    """Every policy on one split at one capacity, best hit rate first."""
    rows = sorted(cache_rows(tables, split, capacity), key=lambda row: (-row.hit_rate, row.policy))
    caption = f"{label(split)} at {_capacity_text(rows[0], tables.expert_mib)}"
    return DataTable(caption, POLICY_COLUMNS, tuple(_cells(row) for row in rows), tables["replay"].path)


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


def _times(tables: Tables, split: str, row: CacheRow, devices: list[str]) -> list[list[str]]:
    """For each device: ms per token, tokens per second, stall."""
    frame = tables["timing"].frame
    if frame is None:
        return []
    mine = frame.filter(
        (pl.col("split") == split)
        & (pl.col("policy") == row.policy)
        & (pl.col("capacity_experts") == row.capacity_experts)
    )
    found = {entry["device"]: entry for entry in mine.iter_rows(named=True)}
    columns = ("ms_per_token", "tokens_per_second", "stall_ms_per_token")
    return [
        [number(found[device].get(column)) if device in found else MISSING for column in columns] for device in devices
    ]


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
