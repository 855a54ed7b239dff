"""The section on caching: hit rate and bytes over capacity, a pair of figures a split, the other policies by group."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, Figure, Folded, Section, wide_table
from moe_beyond.reporting.choice import GROUPS, groups, headline_standouts
from moe_beyond.reporting.figures import plots
from moe_beyond.reporting.headline import cache_rows, nearest_capacity, split_label
from moe_beyond.reporting.names import label, legend
from moe_beyond.reporting.sections.explorer import policy_table
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import number, percent

_LINES = 9  # more lines in a chart cannot be told apart


def cache_section(tables: Tables, fraction: float) -> Section:
    """Hit rate and bytes over capacity for each split.

    Args:
        tables: The pipeline's tables.
        fraction: The headline capacity, at which the policies that are drawn are chosen.
    """
    title = "Hit rate and bytes over capacity"
    replay = tables["replay"].frame
    if replay is None:
        return Section("cache", "Capacity", title, blocks=(Absent(title, tables["replay"].absent),))
    lead = (
        "A hit is an expert that is already in fast memory when its layer starts. Whole steps are replayed as "
        "events: what a layer wants at once is judged at once. A prefetch arrives in time here however slow the "
        "link, so read hit rates beside bytes. The dashed mark is one token cycle, the experts that one token "
        "touches in all layers: below it a global LRU evicts nearly everything before it comes round again."
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
            few = headline_standouts(tables, split, fraction)
            blocks += [_hit_figure(tables, split, part, few), _bytes_figure(tables, split, part, few)]
            blocks += _others(tables, split, part, few, fraction)
    if len(tables.splits) == 1:
        blocks.append(Absent("A second test split", "the traces hold no prompts of another domain"))
    return Section("cache", "Capacity", title, lead, tuple(blocks))


def _others(tables: Tables, split: str, part: pl.DataFrame, few: list[str], fraction: float) -> list[Block]:
    """Hit rate of the policies that are not among the few, a figure a group."""
    rows = cache_rows(tables, split, nearest_capacity(part, split, fraction))
    rows = sorted((row for row in rows if row.policy not in few), key=lambda row: (-row.hit_rate, row.policy))
    by_group: dict[str, list[str]] = {}
    for row in rows:
        by_group.setdefault(groups(row, tables.lossy)[0], []).append(row.policy)
    figures: list[Block] = []
    for group, names in by_group.items():
        for start in range(0, len(names), _LINES):
            some = names[start : start + _LINES]
            place = "" if len(names) <= _LINES else f", {start + 1} to {start + len(some)} of {len(names)}"
            figures.append(
                _hit_figure(
                    tables,
                    split,
                    part,
                    some,
                    words=f"{GROUPS[group].lower()}{place}",
                    ending=f"{group}_{start // _LINES}",
                )
            )
    if not figures:
        return []
    return [Folded(f"The other {len(rows)} policies, {split_label(split)}", tuple(figures))]


def _cycle(tables: Tables) -> tuple[float | None, int | None]:
    cycle, total = tables.token_cycle, tables.model_experts
    return (None, None) if cycle is None or not total else (cycle / total, cycle)


def _hit_figure(
    tables: Tables, split: str, part: pl.DataFrame, policies: list[str], *, words: str = "", ending: str = ""
) -> Figure:
    part = part.filter(pl.col("policy").is_in(policies))
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
        caption=f"Hit rate by capacity, {split_label(split)}{f', {words}' if words else ''}",
        source=tables["replay"].path,
        shares=True,
        first="Capacity",
    )
    chart = plots.hit_rate(part, policies, *_cycle(tables))
    return Figure(
        "_".join(filter(None, ("hit_rate", split, ending))),
        f"Hit rate over capacity: {label(split).lower()}{f', {words}' if words else ''}",
        alt,
        chart,
        table,
        legend=legend(policies),
    )


def _bytes_figure(tables: Tables, split: str, part: pl.DataFrame, policies: list[str]) -> Figure:
    part = part.filter(pl.col("policy").is_in(policies))
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
    return Figure(
        f"bytes_per_token_{split}",
        f"Bytes over capacity: {label(split).lower()}",
        alt,
        chart,
        table,
        legend=legend(policies),
    )
