"""Where the time goes: one prompt token by token, and the misses that cost most, beside what the predictor had said."""

from __future__ import annotations

from typing import Any

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, DataTable, Figure, Folded, Passage, Section, Steps
from moe_beyond.reporting.figures import timeline as why_plots
from moe_beyond.reporting.headline import split_label
from moe_beyond.reporting.names import is_bound, is_learned, label
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import MISSING, listed, number, percent

_COUNTS = ("demand_loads", "prefetches_in_time", "prefetches_late", "prefetches_useless", "evictions")
_SUMS = ("compute_ms", "stall_ms", *_COUNTS)
_WORST_TOKENS = 5
_WORST_MISSES = 12
_UNSEEN = 0.25  # below this an expert is rarely among those named
_MOST_TOKENS = 96  # of a longer prompt the first ones: more bars cannot be told apart


def why_section(tables: Tables) -> Section:
    """The timeline of one prompt and the costliest misses."""
    title = "Where the time goes"
    blocks = [*_timeline(tables), *_misses(tables)]
    lead = (
        "One prompt of a test split, replayed on one device. A bar is a token: what it computed, and what it waited "
        "for. A prefetch in time costs nothing; one that is late is waited for; a useless one only took up the link."
    )
    absent = all(isinstance(block, Absent) for block in blocks)
    return Section("why", "Why it stalls", title, "" if absent else lead, tuple(blocks))


def shown_prompt(frame: pl.DataFrame) -> pl.DataFrame:
    """The events that are drawn: one prompt on one device under one policy, ours where it was replayed."""
    policies = frame["policy"].unique(maintain_order=True).to_list()
    ours = next((name for name in policies if is_learned(name) and not is_bound(name)), policies[0])
    part = frame.filter(pl.col("policy") == ours)
    for column in ("device", "prompt_id"):
        part = part.filter(pl.col(column) == part[column][0])
    return part.sort("position", "layer", maintain_order=True)


def _timeline(tables: Tables) -> list[Block]:
    table, title = tables["timeline"], "Timeline of one prompt"
    if table.frame is None:
        return [Absent(title, table.absent)]
    events = shown_prompt(table.frame)
    positions = events["position"].unique().sort().to_list()
    events = events.filter(pl.col("position").is_in(positions[:_MOST_TOKENS]))
    per_token = events.group_by("position", maintain_order=True).agg(
        pl.col("token_text").first(), *(pl.col(name).sum() for name in _SUMS)
    )
    some = f", its first {_MOST_TOKENS} tokens" if len(positions) > _MOST_TOKENS else ""
    place = f"{label(events['policy'][0])} on {label(events['device'][0])}"
    blocks: list[Block] = [_tokens(per_token, f"{place}, prompt {events['prompt_id'][0]}{some}", table.path)]
    if events["layer"].n_unique() > 1:
        blocks.append(_layers(events, place, table.path))
        blocks.append(_steps(events, place, table.path))
    return [*blocks, *_policies_beside(table.frame, events, table.path)]


def _tokens(per_token: pl.DataFrame, where: str, source: str) -> Figure:
    waited = float(per_token["stall_ms"].sum())
    total = waited + float(per_token["compute_ms"].sum())
    worst = per_token.sort("stall_ms", descending=True).head(_WORST_TOKENS)
    named = listed(
        [
            f"\u201c{_text(row['token_text'])}\u201d ({number(row['stall_ms'])} ms)"
            for row in worst.iter_rows(named=True)
        ]
    )
    share = percent(waited / total, 0) if total else MISSING
    alt = (
        f"Stacked bars, one for each of {per_token.height} tokens: {number(total)} ms, of which {share} waiting. "
        f"The longest waits: {named}."
    )
    rows = tuple(
        (
            number(row["position"]),
            _text(row["token_text"]),
            number(row["compute_ms"]),
            number(row["stall_ms"]),
            *(number(row[name]) for name in _COUNTS),
        )
        for row in per_token.iter_rows(named=True)
    )
    columns: tuple[str, ...] = ("Token", "Text", "Computing, ms", "Waiting, ms", "Loads on demand")
    columns += ("Prefetches in time", "late", "useless", "Evicted")
    data = DataTable(f"Token by token: {where}", columns, rows, source)
    chart = why_plots.tokens(per_token)
    title = f"{share} of this prompt's time is waiting: {where}"
    return Figure("timeline", title, alt, chart, data, wide=True, legend=why_plots.SPENT_LOOKS)


def _layers(events: pl.DataFrame, where: str, source: str) -> Figure:
    by_layer = events.group_by("layer", maintain_order=True).agg(*(pl.col(name).sum() for name in _SUMS)).sort("layer")
    worst = by_layer.sort("stall_ms", descending=True).row(0, named=True)
    total = float(by_layer["stall_ms"].sum())
    share = percent(worst["stall_ms"] / total, 0) if total else MISSING
    alt = (
        f"Heat map of tokens by layers, darker where a layer waited longer. Layer {worst['layer']} waited longest: "
        f"{number(worst['stall_ms'])} ms, {share} of all waiting."
    )
    rows = tuple(
        (
            str(row["layer"]),
            number(row["compute_ms"]),
            number(row["stall_ms"]),
            *(number(row[name]) for name in _COUNTS),
        )
        for row in by_layer.iter_rows(named=True)
    )
    columns: tuple[str, ...] = (
        "Layer",
        "Computing, ms",
        "Waiting, ms",
        "Loads on demand",
        "Prefetches in time",
        "late",
        "useless",
    )
    data = DataTable(f"Layer by layer, all tokens: {where}", (*columns, "Evicted"), rows, source)
    title = f"Which layer waits for experts: {where}"
    return Figure("timeline_layers", title, alt, why_plots.layers(events), data, wide=True)


def _steps(events: pl.DataFrame, where: str, source: str) -> Steps:
    """Every token in turn, layer by layer; first the one that waited longest."""
    labels, bodies, waits = [], [], []
    for (position,), part in events.group_by("position", maintain_order=True):
        waited = float(part["stall_ms"].sum())
        waits.append(waited)
        labels.append(f"Token {number(int(position))}, {_text(part['token_text'][0])}: waited {number(waited)} ms")
        bodies.append(tuple(_event(row) for row in part.iter_rows(named=True)))
    worst = waits.index(max(waits))
    columns: tuple[str, ...] = (
        "Layer",
        "Starts at, ms",
        "Computing, ms",
        "Waiting, ms",
        "Loads on demand",
        "Prefetches in time",
    )
    columns += ("late", "useless", "Evicted", "Probability given to what was waited for")
    first = DataTable(labels[worst], columns, bodies[worst], source, wide=True)
    return Steps(f"Token by token, layer by layer: {where}", tuple(labels), tuple(bodies), first, worst)


def _event(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(row["layer"]),
        number(row["start_ms"]),
        number(row["compute_ms"]),
        number(row["stall_ms"]),
        *(number(row[name]) for name in _COUNTS),
        MISSING if row["predicted"] is None else percent(row["predicted"]),
    )


def _policies_beside(frame: pl.DataFrame, shown: pl.DataFrame, source: str) -> list[Block]:
    """The same prompt under every policy and on every device of the table, where there are several."""
    part = frame.filter(pl.col("prompt_id") == shown["prompt_id"][0])
    sums = part.group_by("device", "policy", maintain_order=True).agg(*(pl.col(name).sum() for name in _SUMS))
    if sums.height < 2:
        return []
    rows = tuple(
        (
            label(row["policy"]),
            label(row["device"]),
            number(row["compute_ms"] + row["stall_ms"]),
            number(row["stall_ms"]),
            *(number(row[name]) for name in _COUNTS),
        )
        for row in sums.sort("device", pl.col("compute_ms") + pl.col("stall_ms")).iter_rows(named=True)
    )
    columns: tuple[str, ...] = (
        "Policy",
        "Device",
        "All, ms",
        "Waiting, ms",
        "Loads on demand",
        "Prefetches in time",
        "late",
    )
    columns += ("useless", "Evicted")
    return [DataTable("The same prompt under every replayed policy", columns, rows, source, wide=True)]


def _misses(tables: Tables) -> list[Block]:
    """The misses that were waited for longest, first those of the hardest split."""
    table, title = tables["costliest_misses"], "The costliest misses"
    if table.frame is None:
        return [Absent(title, table.absent)]
    blocks: list[Block] = [Passage(_blame(table.rows))]
    splits = list(reversed(table.rows["split"].unique(maintain_order=True).to_list()))
    few = _miss_table(table.rows, splits[0], table.path, _WORST_MISSES)
    every = tuple(_miss_table(table.rows, split, table.path) for split in splits)
    if sum(len(listing.rows) for listing in every) == len(few.rows):
        return [*blocks, few]
    return [*blocks, few, Folded(f"All {table.rows.height} that the file lists", every)]


def _miss_table(frame: pl.DataFrame, split: str, source: str, most: int | None = None) -> DataTable:
    """The misses of one split, longest first; all of them, or so many."""
    part = frame.filter(pl.col("split") == split).sort("stall_ms", descending=True, maintain_order=True)
    where = f"The costliest misses, {split_label(split)}"
    if {"policy", "device"} <= set(part.columns):
        where += f", {label(part['policy'][0])} on {label(part['device'][0])}"
    return DataTable(where, _MISS_COLUMNS, _miss_rows(part if most is None else part.head(most)), source, wide=True)


_MISS_COLUMNS = (
    "Token",
    "Layer",
    "Waited, ms",
    "Experts waited for",
    "Probability that the predictor had given them",
    "Prompt",
    "Position",
)


def _blame(rows: pl.DataFrame) -> str:
    """Whether the predictor saw the listed misses coming, and from which place most of them come."""
    known = rows.drop_nulls("predicted")
    layer = rows["layer"].value_counts(sort=True).row(0)
    where = f"{number(layer[1])} of {number(rows.height)} are in layer {layer[0]}"
    if known.is_empty():
        return f"Of the listed misses {where}."
    blind = known.filter(pl.col("predicted") < _UNSEEN).height
    return (
        f"Of the listed misses {where}. In {number(blind)} of {number(known.height)} the predictor had given the "
        f"experts that were waited for less than {percent(_UNSEEN, 0)} on average: there it is wrong; in the others it "
        "had named them, and the link or the cache was too small."
    )


def _miss_rows(part: pl.DataFrame) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            _text(row["token_text"]),
            str(row["layer"]),
            number(row["stall_ms"]),
            ", ".join(str(row["experts_missed"]).split()),
            "no answer" if row["predicted"] is None else percent(row["predicted"]),
            str(row["prompt_id"]),
            number(row["position"]),
        )
        for row in part.iter_rows(named=True)
    )


def _text(token: str | None) -> str:
    """A token as a reader can see it: blanks and line ends shown."""
    if not token:
        return MISSING
    return token.replace("\u0120", "\u2423").replace("\u010a", "\u23ce").replace(" ", "\u2423").replace("\n", "\u23ce")
