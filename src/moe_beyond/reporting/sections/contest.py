"""Sections that decide between policies: time per token on each device, and paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, DataTable, Figure, Section, wide_table
from moe_beyond.reporting.choice import headline_standouts
from moe_beyond.reporting.figures import plots
from moe_beyond.reporting.headline import split_label
from moe_beyond.reporting.names import label, legend, ordered
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import MISSING, interval, mib, number, signed


def timing_section(tables: Tables, parameters: Mapping[str, Any], fraction: float) -> Section:
    """Milliseconds per token over capacity, a figure a device, on the hardest split.

    Args:
        tables: The pipeline's tables.
        parameters: Flat parameters of the run; those of the clock are named beside its results.
        fraction: The headline capacity, at which the policies that are drawn are chosen.
    """
    title = "Time per token"
    timing = tables.times
    if timing is None:
        reason = tables["timing"].absent or f"{tables['timing'].path} has no split in which tokens were decoded"
        return Section("time", "Time", title, blocks=(Absent(title, reason),))
    split = next((name for name in reversed(tables.splits) if name in timing["split"].unique()), timing["split"][0])
    blocks: list[Block] = []
    few = None if tables["replay"].frame is None else headline_standouts(tables, split, fraction)
    for device in tables.devices:
        part = timing.filter((pl.col("split") == split) & (pl.col("device") == device))
        part = part.filter(pl.col("policy").is_in(few)) if few else part
        part = part.sort("capacity_experts", maintain_order=True)
        if part["capacity_experts"].n_unique() < 2:
            blocks.append(
                Absent(
                    f"Time per token: {label(device)}", f"{tables['timing'].path} has fewer than two capacities for it"
                )
            )
            continue
        policies = ordered(part["policy"].to_list())
        best = part.sort("ms_per_token").row(0, named=True)
        alt = (
            f"Line chart of milliseconds per token over capacity, {label(device)}; the least is "
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
            caption=f"Milliseconds per token, {label(device)}, {split_label(split)}",
            source=tables["timing"].path,
            shares=False,
            first="Capacity, experts",
        )
        blocks.append(
            Figure(
                f"time_{_slug(device)}",
                f"Time per token: {label(device)}",
                alt,
                plots.step_latency(part, policies),
                table,
                legend=legend(policies),
            )
        )
    lead = (
        "One link with its bandwidth and set-up time carries demand loads before prefetches; a layer's compute "
        "overlaps with prefetch, and the predictor's own latency is charged. The times are modelled, not measured on "
        f"the device.{_assumptions(tables, parameters)}"
    )
    return Section("time", "Time", title, lead, tuple(blocks))


def _assumptions(tables: Tables, parameters: Mapping[str, Any]) -> str:
    """The clock's parameters in a sentence, the predictor's latency beside the one that export measured."""
    said = []
    if (latency := parameters.get("simulate.predictor_latency_ms")) is not None:
        measured = "" if tables.latency_ms is None else f" (export measured {number(tables.latency_ms)} ms)"
        said.append(f"the predictor takes {number(latency)} ms a token{measured}")
    if (lookahead := parameters.get("simulate.lookahead_layers")) is not None:
        said.append(f"prefetches run at most {number(lookahead)} layers ahead")
    if (size := parameters.get("simulate.timed_expert_mib")) is not None:
        said.append(f"every expert is timed as if it had {mib(size)}, whatever its true size")
    return f" Assumed: {'; '.join(said)}." if said else ""


def comparison_section(tables: Tables, fraction: float) -> Section:
    """Paired differences by prompt with their intervals: ours against each other policy at the headline capacity."""
    title = "Who beats whom, and how sure that is"
    frame = tables["comparisons"].frame
    if frame is None:
        return Section("comparisons", "Comparisons", title, blocks=(Absent(title, tables["comparisons"].absent),))
    ours = tables.learned_policy
    blocks: list[Block] = []
    for split in tables.splits:
        part = frame.filter((pl.col("split") == split) & (pl.col("a").eq_missing(ours) | pl.col("b").eq_missing(ours)))
        if ours is None or part.is_empty():
            reason = f"{tables['comparisons'].path} compares the trained predictor with nothing there"
            blocks.append(Absent(f"Comparisons on {split_label(split)}", reason))
            continue
        total = tables.model_experts or part["capacity_experts"].max()
        capacity = min(part["capacity_experts"].unique().to_list(), key=lambda size: abs(size - fraction * total))  # type: ignore[operator]
        here = part.filter(pl.col("capacity_experts") == capacity)
        timed = "ms_difference" in here.columns and here["ms_difference"].null_count() < here.height
        rows = [_compared(row, ours, timed=timed) for row in here.iter_rows(named=True)]
        caption = f"{label(ours)} minus each other policy, {split_label(split)}, {number(capacity)} experts"
        columns: tuple[str, ...] = ("Against", "Difference in hit rate, points", "95 % interval", "Hits more")
        if timed:
            device = label(str(here["ms_device"].drop_nulls()[0]))
            columns += (f"Difference in ms per token, {device}", "95 % interval", "Is faster")
        blocks.append(DataTable(caption, columns, tuple(rows), tables["comparisons"].path, wide=timed))
    lead = (
        "Ours is the policy that the trained predictor drives. Both sides replay the same prompts; prompts, not "
        "tokens, are resampled, because tokens of one prompt resemble each other. Where the interval includes zero, "
        "the table names no winner. The file has every pair at every capacity."
    )
    return Section("comparisons", "Comparisons", title, lead, tuple(blocks))


def _compared(row: dict[str, Any], ours: str, *, timed: bool) -> tuple[str, ...]:
    """A row of comparisons.csv seen from ours: the table may hold the pair the other way round."""
    flip = -1 if row["b"] == ours else 1
    other = row["a"] if row["b"] == ours else row["b"]
    low, high = sorted((flip * row["low"], flip * row["high"]))
    winner = "ours" if low > 0 else "the other" if high < 0 else "undecided"
    cells = (label(other), signed(flip * row["difference"]), interval(low, high, 2), winner)
    if not timed:
        return cells
    if row["ms_difference"] is None:
        return (*cells, MISSING, MISSING, MISSING)
    low, high = sorted((flip * row["ms_low"], flip * row["ms_high"]))
    quicker = "ours" if high < 0 else "the other" if low > 0 else "undecided"
    between = f"[{low:.3g},\u00a0{high:.3g}]".replace("-", "\u2212")
    return (*cells, f"{flip * row['ms_difference']:+.3g}".replace("-", "\u2212"), between, quicker)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())
