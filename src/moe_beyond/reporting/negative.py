"""What did not work, computed from the tables: it stands beside what did."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.headline import cache_rows, hardest_split, nearest_capacity, split_label
from moe_beyond.reporting.names import is_bound, is_learned, label
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import listed, number, percent

_MANY = 12  # names in one sentence


def negative_results(tables: Tables, fraction: float) -> tuple[str, ...]:
    """Sentences on policies that lose to plain LRU, in hits and in time, on the hardest split at the headline capacity.

    Args:
        tables: The pipeline's tables.
        fraction: The headline capacity.
    """
    split, replay = hardest_split(tables), tables["replay"].frame
    if split is None or replay is None or split not in replay["split"].unique():
        return ()
    capacity = nearest_capacity(replay, split, fraction)
    rows = [row for row in cache_rows(tables, split, capacity) if not is_bound(row.policy)]
    lru = next((row for row in rows if row.policy == "lru"), None)
    if lru is None:
        return ()
    where = f"with {percent(lru.capacity_fraction, 0)} of the experts on {split_label(split)}"
    said = []
    fewer = [row.policy for row in rows if row.hit_rate < lru.hit_rate]
    if fewer:
        said.append(f"{_some(fewer, len(rows) - 1)} hit less than plain LRU {where}.")
    more_bytes = [row.policy for row in rows if row.prefetches and row.mib_per_token > lru.mib_per_token]
    ahead = sum(row.prefetches > 0 for row in rows)
    if more_bytes:
        said.append(f"{_some(more_bytes, ahead)} that fetch ahead move more bytes than plain LRU {where}.")
    return (*said, *_slower(tables, split, capacity, where))


def _slower(tables: Tables, split: str, capacity: int, where: str) -> list[str]:
    """By device: who makes tokens slower than LRU, ours by name."""
    if tables.times is None:
        return []
    said = []
    part = tables.times.filter((pl.col("split") == split) & (pl.col("capacity_experts") == capacity))
    for device in tables.devices:
        times = dict(part.filter(pl.col("device") == device).select("policy", "ms_per_token").iter_rows())
        lru = times.pop("lru", None)
        if lru is None:
            continue
        built = {name: ms for name, ms in times.items() if not is_bound(name)}
        slower = [name for name, ms in built.items() if ms > lru]
        if slower:
            ours = [name for name in slower if is_learned(name)]
            own = f"; of ours {listed([label(name) for name in ours])}" if ours else "; none of ours"
            said.append(f"{label(device)}: {_some(slower, len(built))} make tokens slower than plain LRU {where}{own}.")
    return said


def _some(names: list[str], total: int) -> str:
    return f"{number(len(names))} of {number(total)} policies ({listed([label(name) for name in names], _MANY)})"
