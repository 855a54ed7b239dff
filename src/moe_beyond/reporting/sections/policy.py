"""The section that sets policies side by side at the headline capacity: the few first, all of them folded."""

from __future__ import annotations

from typing import Any

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, DataTable, Folded, Passage, Section
from moe_beyond.reporting.choice import headline_standouts, kind
from moe_beyond.reporting.headline import CacheRow, cache_rows, nearest_capacity, split_label
from moe_beyond.reporting.names import is_bound, label, needs_another_router
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import MISSING, interval, mib, number, percent


def policies_section(tables: Tables, fraction: float) -> Section:
    """Hit rate, bytes, modelled time on every device, and what was given up, for each split."""
    title = f"Policies with {percent(fraction, 0)} of the experts in fast memory"
    replay = tables["replay"]
    splits = [] if replay.frame is None else [name for name in tables.splits if name in replay.frame["split"].unique()]
    if not splits:
        reason = replay.absent or f"{replay.path} has no rows of a test split"
        return Section("policies", "Policies", title, blocks=(Absent(title, reason),))
    lead = (
        "Ours, the best of each kind, and the fastest on each device; all others unfold below. Intervals come from "
        "resampling prompts."
    )
    blocks: list[Block] = []
    for split in splits:
        few = headline_standouts(tables, split, fraction)
        blocks.append(overview(tables, split, fraction, few))
        others = [row.policy for row in _rows(tables, split, fraction) if row.policy not in few]
        if others:
            everything = overview(tables, split, fraction, [*few, *others])
            blocks.append(
                Folded(f"All {len(few) + len(others)} policies, {split_label(split)}", (everything,), wide=True)
            )
    return Section("policies", "Policies", title, lead, (*blocks, *_notes(tables)))


def overview(tables: Tables, split: str, fraction: float, policies: list[str]) -> DataTable:
    """The named policies on one split at the headline capacity, fastest first where times are modelled."""
    rows = [row for row in _rows(tables, split, fraction) if row.policy in policies]
    times = _times(tables, split, rows[0].capacity_experts)
    devices = tables.devices if times else []
    first = devices[0] if devices else ""
    rows.sort(key=lambda row: (_ms(times.get((row.policy, first))), -row.hit_rate, row.policy))
    size = f", {mib(rows[0].capacity_experts * tables.expert_mib)}" if tables.expert_mib else ""
    caption = f"{label(split)}, {number(rows[0].capacity_experts)} experts{size}" + (
        f"; fastest on {label(first)} first" if first else "; most hits first"
    )
    columns: tuple[str, ...] = ("Policy", "Kind", "Hit rate", "95 % interval", "MiB per token")
    columns += tuple(f"{label(device)}, ms per token" for device in devices)
    columns += ("Router weight given up",) if tables.lossy else ()
    cells = tuple(
        (
            label(row.policy),
            kind(row, tables.lossy),
            percent(row.hit_rate),
            interval(row.low, row.high) or MISSING,
            number(row.mib_per_token),
            *(_timed(times.get((row.policy, device))) for device in devices),
            *((percent(row.mass_given_up or None, 2),) if tables.lossy else ()),
        )
        for row in rows
    )
    ours = next((place for place, row in enumerate(rows) if row.policy == tables.learned_policy), None)
    return DataTable(caption, columns, cells, tables["replay"].path, emphasis=ours)


def _rows(tables: Tables, split: str, fraction: float) -> list[CacheRow]:
    return cache_rows(tables, split, nearest_capacity(tables["replay"].rows, split, fraction))


def _times(tables: Tables, split: str, capacity: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of timing.csv by policy and device."""
    if tables.times is None:
        return {}
    part = tables.times.filter((pl.col("split") == split) & (pl.col("capacity_experts") == capacity))
    return {(row["policy"], row["device"]): row for row in part.iter_rows(named=True)}


def _ms(row: dict[str, Any] | None) -> float:
    return float("inf") if row is None else float(row["ms_per_token"])


def _timed(row: dict[str, Any] | None) -> str:
    """Milliseconds per token, with their interval where the table has one."""
    if row is None:
        return MISSING
    low, high = row.get("ms_per_token_low"), row.get("ms_per_token_high")
    between = "" if low is None or high is None else f" [{number(low)},\u00a0{number(high)}]"
    return f"{number(row['ms_per_token'])}{between}"


def _notes(tables: Tables) -> list[Block]:
    said = []
    if any(is_bound(policy) for policy in tables.policies):
        said.append(
            "A bound knows the future and loads on demand. No policy that loads on demand can hit more, and none at "
            "all can load less; a policy that prefetches may hit more, at the price of loads that come to nothing."
        )
    if tables.lossy:
        said.append(
            "A lossy policy does with less than the router wants: it skips experts, lets others stand in, or loads "
            "fewer bits. The weight given up is the share of the router's weight that no expert of its choice computed "
            "at full precision. What that costs in answers is not measured here, so no lossy policy counts as a winner."
        )
    said += [
        f"{label(policy)} needs a model trained to choose experts a layer earlier, so it counts with them."
        for policy in tables.policies
        if needs_another_router(policy)
    ]
    left_out = tables["left_out"].frame
    reasons: tuple[str, ...] = ()
    if left_out is not None:
        rows = left_out.unique(["policy", "reason"], maintain_order=True)
        reasons = tuple(f"{label(row['policy'])}: {row['reason']}." for row in rows.iter_rows(named=True))
    notes: list[Block] = [Passage(text) for text in said]
    return [*notes, Passage(title="Not replayed", points=reasons)] if reasons else notes
