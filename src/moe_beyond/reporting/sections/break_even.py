"""From where on prefetching by the predictor pays: below which bandwidth, above which latency of the predictor not."""

from __future__ import annotations

from typing import Any

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, DataTable, Figure, Section, wide_table
from moe_beyond.reporting.figures import plots
from moe_beyond.reporting.headline import hardest_split, split_label
from moe_beyond.reporting.names import is_learned, label, legend, ordered
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import number

_LINES = 6


def break_even_section(tables: Tables) -> Section:
    """Time over bandwidth with the break-even marks, and the limits of the predictor's latency on each device."""
    title = "Where prefetching stops paying"
    blocks = [*_by_bandwidth(tables), *_limits(tables)]
    lead = (
        "A predictor costs its own latency and the bytes of wrong prefetches. Below some bandwidth the link is busy "
        "with demand loads and prefetches only get in their way; above some latency of the predictor waiting for its "
        "answer takes longer than it saves."
    )
    absent = all(isinstance(block, Absent) for block in blocks)
    return Section("break-even", "Break-even", title, "" if absent else lead, tuple(blocks))


def _by_bandwidth(tables: Tables) -> list[Block]:
    table, title = tables["time_by_bandwidth"], "Time per token over the link's bandwidth"
    if table.frame is None:
        return [Absent(title, table.absent)]
    split = _split(tables, table.rows)
    part = table.rows.filter(pl.col("split") == split).sort("bandwidth_gb_per_s", maintain_order=True)
    parts = [("", part)]
    if "device" in part.columns:
        parts = [(str(device), rows) for (device,), rows in part.group_by("device", maintain_order=True)]
    blocks: list[Block] = []
    for device, rows in parts:
        if rows["bandwidth_gb_per_s"].n_unique() < 2:
            blocks.append(Absent(f"{title}{_on(device)}", f"{table.path} has fewer than two bandwidths for it"))
        else:
            blocks.append(_bandwidth_figure(tables, device, split, rows))
    return blocks


def _bandwidth_figure(tables: Tables, device: str, split: str, rows: pl.DataFrame) -> Figure:
    marks = break_even_rows(tables, split, device)
    policies = _few(tables, rows, {row["against"] for row in marks})
    rows = rows.filter(pl.col("policy").is_in(policies))
    crossings = {row["bandwidth_gb_per_s"]: row["pays"] for row in marks if row["bandwidth_gb_per_s"] is not None}
    table = wide_table(
        rows.with_columns(bandwidth=pl.col("bandwidth_gb_per_s").map_elements(number, pl.String)),
        index="bandwidth",
        on="policy",
        value="ms_per_token",
        order=policies,
        headings=[label(name) for name in policies],
        caption=f"Milliseconds per token by bandwidth{_on(device)}, {split_label(split)}",
        source=tables["time_by_bandwidth"].path,
        shares=False,
        first="GB/s",
    )
    ends = "; ".join(
        f"{label(name)} from {number(mine['ms_per_token'][0])} to {number(mine['ms_per_token'][-1])} ms"
        for name in policies
        for mine in (rows.filter(pl.col("policy") == name),)
    )
    said = "".join(f" Ours pays {_pays(row)}." for row in marks)
    alt = f"Line chart on logarithmic axes, from the slowest to the fastest link: {ends}.{said}"
    chart = plots.time_by_bandwidth(rows, policies, crossings)
    name = "_".join(filter(None, ("bandwidth", _slug(device))))
    title = f"Time per token over bandwidth{_on(device)}"
    return Figure(name, title, alt, chart, table, legend=legend(policies))


def _few(tables: Tables, rows: pl.DataFrame, rivals: set[str]) -> list[str]:
    """Ours, whom it is held against, LRU, and the best others without the predictor at the middle bandwidth.

    The predictor's other policies lie so near to ours that no eye could tell them apart.
    """
    middle = rows["bandwidth_gb_per_s"].unique().sort()
    at = rows.filter(pl.col("bandwidth_gb_per_s") == middle[len(middle) // 2]).sort("ms_per_token", "policy")
    ours = _ours(rows, tables)
    others = [name for name in at["policy"].to_list() if not is_learned(name)]
    first = [name for name in others if name in rivals or name == "lru"]
    return ordered([*ours, *first, *[name for name in others if name not in first]][:_LINES])


def break_even_rows(tables: Tables, split: str, device: str = "") -> list[dict[str, Any]]:
    """Rows of break_even.csv of ours on one split, of one device if it is named; none where the table is absent."""
    frame = tables["break_even"].frame
    if frame is None:
        return []
    rows = frame.filter((pl.col("split") == split) & pl.col("policy").is_in(_ours(frame, tables)))
    return list((rows.filter(pl.col("device") == device) if device else rows).iter_rows(named=True))


def break_even_sentence(tables: Tables, split: str, device: str, capacity: int) -> str:
    """From which bandwidth on, and up to which latency of the predictor, ours pays there; empty where unknown."""
    rows = [row for row in break_even_rows(tables, split, device) if row["capacity_experts"] == capacity]
    if not rows:
        return ""
    limit = _latency(rows[0]["predictor_ms_limit"], tables.latency_ms)
    pays = " and ".join(_pays(row) for row in rows)
    return (
        f"Break-even of {label(rows[0]['policy'])} against {label(rows[0]['against'])}: over the links tried it pays "
        f"{pays}; at this device's bandwidth up to a predictor latency of {limit}."
    )


def _ours(frame: pl.DataFrame, tables: Tables) -> list[str]:
    ours, named = tables.learned_policy, frame["policy"].unique(maintain_order=True).to_list()
    return [ours] if ours is not None and ours in named else [name for name in named if is_learned(name)][:1]


def _limits(tables: Tables) -> list[Block]:
    """Every device and capacity: against whom, from which bandwidth, up to which latency."""
    table, title = tables["break_even"], "Limits of bandwidth and of the predictor's latency"
    if table.frame is None:
        return [Absent(title, table.absent)]
    split = _split(tables, table.rows)
    rows = tuple(
        (
            label(row["device"]),
            number(row["capacity_experts"]),
            label(row["policy"]),
            label(row["against"]),
            _pays(row),
            _latency(row["predictor_ms_limit"], tables.latency_ms),
        )
        for row in break_even_rows(tables, split)
    )
    if not rows:
        return [Absent(title, f"{table.path} has no rows of the predictor on {split}")]
    columns = ("Device", "Experts", "Ours", "Against", "Pays over the links tried", "Up to a latency of")
    return [DataTable(f"{title}, {split_label(split)}", columns, rows, table.path, wide=True)]


def _pays(row: dict[str, Any]) -> str:
    """On which side of which bandwidth it pays; without a crossing, always or never."""
    bandwidth = row["bandwidth_gb_per_s"]
    return str(row["pays"]) if bandwidth is None else f"{row['pays']} {number(bandwidth)} GB/s"


def _latency(limit: float | None, measured: float | None) -> str:
    """The limit, and how it stands to the latency that export measured."""
    if limit is None:
        return "no limit found"
    if limit <= 0:
        return "none: too slow even if it took no time"
    beside = "" if measured is None else f" ({number(limit / measured, 2)} times the measured one)"
    return f"{number(limit)}\u00a0ms{beside}"


def _split(tables: Tables, frame: pl.DataFrame) -> str:
    hardest, known = hardest_split(tables), frame["split"].unique(maintain_order=True).to_list()
    return hardest if hardest in known and hardest is not None else str(known[-1])


def _on(device: str) -> str:
    return f": {label(device)}" if device else ""


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())
