"""Sections about caching: the explorer, hit rate and bytes over capacity, times, comparisons."""

from __future__ import annotations

from typing import Any

import polars as pl

from moe_beyond.reporting import plots
from moe_beyond.reporting.blocks import Absent, Block, DataTable, Explorer, Figure, Passage, Section, wide_table
from moe_beyond.reporting.headline import CacheRow, cache_rows, nearest_capacity, split_label
from moe_beyond.reporting.names import is_bound, label, looks
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import MISSING, interval, mib, number, percent, signed

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
    devices = _devices(tables)
    expert_mib = tables.expert_mib
    columns = [*POLICY_COLUMNS, *(("ms per token", "Tokens per second", "Stall, ms per token") if devices else ())]
    data: dict[str, object] = {
        "columns": columns,
        "splits": [{"id": split, "label": label(split), "states": []} for split in splits],
        "devices": devices,
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


def _devices(tables: Tables) -> list[str]:
    frame = tables["timing"].frame
    return [] if frame is None else [str(name) for name in frame["device"].unique(maintain_order=True).to_list()]


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


def cache_section(tables: Tables) -> Section:
    """Hit rate and bytes over capacity for each split."""
    title = "Hit rate and bytes over capacity"
    replay = tables["replay"].frame
    if replay is None:
        return Section("cache", "Capacity", title, blocks=(Absent(title, tables["replay"].absent),))
    lead = (
        "A hit is an expert that is already in fast memory when its layer starts. Whole steps are replayed as "
        "events: what a layer wants at once is judged at once. The dashed mark is one token cycle, the experts that "
        "one token touches in all layers: below it a global LRU evicts everything before it comes round again."
    )
    blocks: list[Block] = []
    for split in tables.splits:
        part = replay.filter(pl.col("split") == split).sort("capacity_experts", maintain_order=True)
        if part.is_empty():
            blocks.append(Absent(f"Replay of {split_label(split)}", f"{tables['replay'].path} has no rows for {split}"))
        elif part["capacity_experts"].n_unique() < 2:
            reason = f"{tables['replay'].path} has one capacity for {split}, and a curve needs two"
            blocks += [
                policy_table(tables, split, int(part["capacity_experts"][0])),
                Absent("Curves over capacity", reason),
            ]
        else:
            blocks += [_hit_figure(tables, split, part), _bytes_figure(tables, split, part)]
    if len(tables.splits) == 1:
        blocks.append(Absent("A second test split", "the traces hold no prompts of another domain"))
    return Section("cache", "Capacity", title, lead, tuple(blocks))


def _cycle(tables: Tables) -> tuple[float | None, int | None]:
    cycle, total = tables.token_cycle, tables.model_experts
    return (None, None) if cycle is None or not total else (cycle / total, cycle)


def _hit_figure(tables: Tables, split: str, part: pl.DataFrame) -> Figure:
    policies = [name for name in tables.policies if name in part["policy"].unique()]
    lowest, highest = part["capacity_fraction"].min(), part["capacity_fraction"].max()
    ends = "; ".join(
        f"{label(name)} from {percent(rows['hit_rate'][0], 0)} to {percent(rows['hit_rate'][-1], 0)}"
        for name in policies
        for rows in (part.filter(pl.col("policy") == name),)
    )
    alt = f"Line chart, capacity from {percent(lowest, 0)} to {percent(highest, 0)} of the experts. Hit rate: {ends}."  # type: ignore[arg-type]
    table = wide_table(
        part,
        index="capacity_fraction",
        on="policy",
        value="hit_rate",
        order=policies,
        headings=[label(name) for name in policies],
        caption=f"Hit rate by capacity, {split_label(split)}",
        source=tables["replay"].path,
        shares=True,
        first="Capacity",
    )
    chart = plots.hit_rate(part, policies, *_cycle(tables))
    return Figure(f"hit_rate_{split}", f"Hit rate over capacity: {label(split).lower()}", alt, chart, table)


def _bytes_figure(tables: Tables, split: str, part: pl.DataFrame) -> Figure:
    policies = [name for name in tables.policies if name in part["policy"].unique()]
    ends = "; ".join(
        f"{label(name)} from {number(rows['mib_per_token'][0])} to {number(rows['mib_per_token'][-1])}"
        for name in policies
        for rows in (part.filter(pl.col("policy") == name),)
    )
    table = wide_table(
        part,
        index="capacity_fraction",
        on="policy",
        value="mib_per_token",
        order=policies,
        headings=[label(name) for name in policies],
        caption=f"MiB moved per token by capacity, demand and prefetch together, {split_label(split)}",
        source=tables["replay"].path,
        shares=False,
        first="Capacity",
    )
    chart = plots.bytes_per_token(part, policies, *_cycle(tables))
    alt = f"Line chart of MiB moved per token from the smallest to the largest capacity: {ends}."
    return Figure(f"bytes_per_token_{split}", f"Bytes over capacity: {label(split).lower()}", alt, chart, table)


def timing_section(tables: Tables) -> Section:
    """Milliseconds per token over capacity, a figure a device, on the hardest split."""
    title = "Time per token"
    timing = tables["timing"].frame
    if timing is None:
        return Section("time", "Time", title, blocks=(Absent(title, tables["timing"].absent),))
    split = next((name for name in reversed(tables.splits) if name in timing["split"].unique()), timing["split"][0])
    blocks: list[Block] = []
    for device in _devices(tables):
        part = timing.filter((pl.col("split") == split) & (pl.col("device") == device))
        part = part.sort("capacity_experts", maintain_order=True)
        if part["capacity_experts"].n_unique() < 2:
            blocks.append(Absent(f"Time on {device}", f"{tables['timing'].path} has fewer than two capacities for it"))
            continue
        policies = [name for name in tables.policies if name in part["policy"].unique()]
        best = part.sort("ms_per_token").row(0, named=True)
        alt = (
            f"Line chart of milliseconds per token over capacity on {device}; the least is "
            f"{number(best['ms_per_token'])} ms with {label(best['policy'])} at {number(best['capacity_experts'])} "
            "experts."
        )
        table = wide_table(
            part,
            index="capacity_experts",
            on="policy",
            value="ms_per_token",
            order=policies,
            headings=[label(name) for name in policies],
            caption=f"Milliseconds per token on {device}, {split_label(split)}",
            source=tables["timing"].path,
            shares=False,
            first="Capacity, experts",
        )
        blocks.append(
            Figure(f"time_{_slug(device)}", f"Time per token: {device}", alt, plots.step_latency(part, policies), table)
        )
    lead = (
        "One link with its bandwidth and set-up time carries demand loads before prefetches; a layer's compute "
        "overlaps with prefetch, and the predictor's own latency is charged. The times are modelled, not measured on "
        "the device, unless the device's description says that it was fitted to a recording."
    )
    return Section("time", "Time", title, lead, tuple(blocks))


def comparison_section(tables: Tables, fraction: float) -> Section:
    """Paired differences by prompt with their intervals: ours against each other policy at the headline capacity."""
    title = "Who beats whom, and how sure that is"
    frame = tables["comparisons"].frame
    if frame is None:
        return Section("comparisons", "Comparisons", title, blocks=(Absent(title, tables["comparisons"].absent),))
    ours = tables.learned_policy
    blocks: list[Block] = []
    for split in tables.splits:
        part = frame.filter((pl.col("split") == split) & ((pl.col("a") == ours) | (pl.col("b") == ours)))
        if ours is None or part.is_empty():
            reason = f"{tables['comparisons'].path} compares the trained predictor with nothing there"
            blocks.append(Absent(f"Comparisons on {split_label(split)}", reason))
            continue
        total = tables.model_experts or part["capacity_experts"].max()
        capacity = min(part["capacity_experts"].unique().to_list(), key=lambda size: abs(size - fraction * total))  # type: ignore[operator]
        rows = [
            _compared(row, ours) for row in part.filter(pl.col("capacity_experts") == capacity).iter_rows(named=True)
        ]
        caption = f"{label(ours)} minus each other policy, {split_label(split)}, {number(capacity)} experts"
        columns = ("Against", "Difference in hit rate, points", "95 % interval", "Hits more")
        blocks.append(DataTable(caption, columns, tuple(rows), tables["comparisons"].path))
    lead = (
        "Ours is the policy that the trained predictor drives. Both sides replay the same prompts; prompts, not "
        "tokens, are resampled, because tokens of one prompt resemble each other. Where the interval includes zero, "
        "the table names no winner. The file has every pair at every capacity."
    )
    return Section("comparisons", "Comparisons", title, lead, tuple(blocks))


def _compared(row: dict[str, Any], ours: str) -> tuple[str, ...]:
    """A row of comparisons.csv seen from ours: the table may hold the pair the other way round."""
    flip = -1 if row["b"] == ours else 1
    other = row["a"] if row["b"] == ours else row["b"]
    low, high = sorted((flip * row["low"], flip * row["high"]))
    winner = "ours" if low > 0 else "the other" if high < 0 else "undecided"
    return (label(other), signed(flip * row["difference"]), interval(low, high, 2), winner)


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


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())
