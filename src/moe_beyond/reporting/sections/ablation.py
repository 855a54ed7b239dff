"""What each part of our policy is worth: it is put together piece by piece at the headline capacity."""

from __future__ import annotations

from typing import Any

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, DataTable, Section
from moe_beyond.reporting.headline import split_label
from moe_beyond.reporting.names import label
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import interval, number, percent

_NAMES = ("variant", "added", "step", "policy")  # the first of these columns that is there names a row
_HEADINGS = {
    "hit_rate": "Hit rate",
    "mib_per_token": "MiB per token",
    "ms_per_token": "ms per token",
    "prefetches_useful": "Useful prefetches",
}


def ablation_section(tables: Tables) -> Section:
    """A table a split, a row a piece that was added."""
    table, title = tables["ablation"], "What each part of our policy is worth"
    name = next((name for name in _NAMES if table.has(name)), None)
    if table.frame is None or name is None:
        reason = table.absent or f"{table.path} has none of the columns {', '.join(_NAMES)}"
        return Section("ablation", "Ablation", title, blocks=(Absent(title, reason),))
    lead = (
        "Our policy put together piece by piece, each row with what the rows above it have. A part that is not worth "
        "its bytes or its time shows as a row that is no better than the one before it."
    )
    blocks: list[Block] = []
    for split in table.rows["split"].unique(maintain_order=True).to_list():
        part = table.rows.filter(pl.col("split") == split)
        blocks.append(_ablation(part, name, split, table.path))
    return Section("ablation", "Ablation", title, lead, tuple(blocks))


def _ablation(part: pl.DataFrame, name: str, split: str, source: str) -> DataTable:
    """Pieces in their order; milliseconds in a column a device where the table has them by device."""
    devices = part["device"].unique(maintain_order=True).drop_nulls().to_list() if "device" in part.columns else []
    found: dict[str, dict[str, Any]] = {}
    times: dict[tuple[str, str], str] = {}
    for row in part.iter_rows(named=True):
        found.setdefault(row[name], row)
        if devices:
            times[row[name], row["device"]] = _value("ms_per_token", row)
    shown = [key for key in _HEADINGS if key in part.columns and not (devices and key == "ms_per_token")]
    rows = tuple(
        (
            label(str(piece)),
            *(_value(key, row) for key in shown),
            *(times.get((piece, device), "") for device in devices),
        )
        for piece, row in found.items()
    )
    columns = ("With", *(_HEADINGS[key] for key in shown), *(f"{label(device)}, ms per token" for device in devices))
    caption = f"{split_label(split)[:1].upper()}{split_label(split)[1:]}, {number(part['capacity_experts'][0])} experts"
    return DataTable(caption, columns, rows, source, wide=True)


def _value(key: str, row: dict[str, Any]) -> str:
    """A cell with its interval where the table has one."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if key == "hit_rate":
        return f"{percent(row[key])} {interval(low, high)}".strip()
    between = "" if low is None or high is None else f" [{number(low)}, {number(high)}]"
    return f"{number(row[key])}{between}"
