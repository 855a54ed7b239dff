"""The explorer, and the tables of policies at one capacity that it starts from."""

from __future__ import annotations

from typing import Any

import polars as pl

from moe_beyond.reporting.blocks import Absent, DataTable, Explorer, Section
from moe_beyond.reporting.choice import FEW, GROUPS, groups, standouts
from moe_beyond.reporting.clock import Clock
from moe_beyond.reporting.headline import CacheRow, cache_rows, nearest_capacity
from moe_beyond.reporting.names import label, looks
from moe_beyond.reporting.sections.break_even import break_even_sentence
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import MISSING, interval, mib, number, percent

_NBSP = "\u00a0"
_COLUMNS = ("Policy", "Hit rate", "95 % interval", "in decode", "MiB per token", "Prefetches used")
_LEADING = 2  # columns of time before the hit rate: milliseconds and tokens per second
_GIVEN_UP = "Router weight given up"


def policy_columns(tables: Tables) -> tuple[str, ...]:
    """Headings of a table of policies; the last one only where some policy is lossy."""
    return (*_COLUMNS, _GIVEN_UP) if tables.lossy else _COLUMNS


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
        "Bounds know the future and cannot be built. A policy that gives up accuracy changes the model's answers: "
        "it shows what it gave up, and is never called the fastest."
    )
    return Section("explorer", "Explorer", title, lead, (explorer(tables, splits, fraction),))


def explorer(tables: Tables, splits: list[str], fraction: float) -> Explorer:
    """The explorer's data and its first state: the last of `splits` at the capacity nearest to `fraction`."""
    clock = Clock.read(tables["timing"].frame)
    replay = tables["replay"].rows
    entries: list[dict[str, Any]] = []
    for split in splits:
        capacities = replay.filter(pl.col("split") == split)["capacity_experts"].unique().sort().to_list()
        start = capacities.index(nearest_capacity(replay, split, fraction))
        states = [_state(tables, clock, split, capacity) for capacity in capacities]
        entries.append({"id": split, "label": label(split), "start": start, "states": states})
    found = {group for entry in entries for state in entry["states"] for row in state["rows"] for group in row["in"]}
    # a narrow screen shows the first columns only: time leads where there is any
    headings, times = policy_columns(tables), [heading for _, heading in clock.columns]
    data = {
        "columns": [headings[0], *times[:_LEADING], *headings[1:], *times[_LEADING:]],
        "leading": len(times[:_LEADING]),
        "groups": [[group, words] for group, words in GROUPS.items() if group in found | {"all"}],
        "splits": entries,
        "devices": [label(name) for name in clock.devices],
        "latency": clock.latencies.index(tables.modelled_latency_ms) if clock.latencies else 0,
        "latencies": [f"{number(value)}{_NBSP}ms" for value in clock.latencies],
    }
    opening = policy_table(tables, splits[-1], nearest_capacity(replay, splits[-1], fraction))
    sources = [tables["replay"].path, *([tables["timing"].path] if clock.devices else [])]
    sources += [tables["break_even"].path] if clock.devices and tables["break_even"].frame is not None else []
    return Explorer(data, opening, tuple(sources))


def _state(tables: Tables, clock: Clock, split: str, capacity: int) -> dict[str, Any]:
    """One position of the slider: a row a policy, best hit rate first, its times by device and latency."""
    styles = looks(tables.policies)
    rows = _best_first(tables, split, capacity)
    honest = [row.policy for row in rows if tables.can_win(row.policy)]
    few = standouts(rows, tables.learned_policy, tables.lossy, clock.winners(split, capacity, honest))
    return {
        "label": _capacity_text(rows[0], tables.expert_mib),
        "best": clock.fastest(split, capacity, honest),
        "even": [break_even_sentence(tables, split, device, capacity) for device in clock.devices],
        "rows": [
            {
                "cells": _cells(row, tables),
                "in": [*([FEW] if row.policy in few else []), *groups(row, tables.lossy)],
                "hit": row.hit_rate,
                "mib": row.mib_per_token,
                "colour": styles[row.policy].colour.removeprefix("@"),
                "times": clock.cells(split, row.policy, capacity),
                "ms": clock.ms(split, row.policy, capacity),
            }
            for row in rows
        ],
    }


def policy_table(tables: Tables, split: str, capacity: int, only: list[str] | None = None) -> DataTable:
    """Policies on one split at one capacity, best hit rate first; all of them, or those named."""
    rows = [row for row in _best_first(tables, split, capacity) if only is None or row.policy in only]
    caption = f"{label(split)} at {_capacity_text(rows[0], tables.expert_mib)}"
    cells = tuple(_cells(row, tables) for row in rows)
    return DataTable(caption, policy_columns(tables), cells, tables["replay"].path)


def _best_first(tables: Tables, split: str, capacity: int) -> list[CacheRow]:
    return sorted(cache_rows(tables, split, capacity), key=lambda row: (-row.hit_rate, row.policy))


def _cells(row: CacheRow, tables: Tables) -> tuple[str, ...]:
    cells = (
        label(row.policy),
        percent(row.hit_rate),
        interval(row.low, row.high) or MISSING,
        percent(row.decode_hit_rate),
        number(row.mib_per_token),
        percent(row.useful_share),
    )
    return (*cells, percent(row.mass_given_up or None, 2)) if tables.lossy else cells


def _capacity_text(row: CacheRow, expert_mib: float | None) -> str:
    text = f"{number(row.capacity_experts)} experts, {percent(row.capacity_fraction)} of the model"
    return text if expert_mib is None else f"{text}, {mib(row.capacity_experts * expert_mib)}"
