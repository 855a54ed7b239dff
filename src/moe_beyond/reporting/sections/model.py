"""Sections about the model: the suitability card, who is popular, how soon experts come back."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, DataTable, Figure, Passage, Section, wide_table
from moe_beyond.reporting.figures import plots
from moe_beyond.reporting.names import label, legend, ordered
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import number, percent
from moe_beyond.settings import flatten

CARD = "reports/assess/card.json"
_SHARES = ("fraction", "share", "rate", "ratio", "overlap")
_MOST_COLUMNS = 128
_TOP_EXPERTS = 8
_CURVE_ROWS = 25  # a table of every capacity would be longer than the rest of the page


def model_section(tables: Tables) -> Section:
    """The card and the figures behind it."""
    blocks = [*_card(tables), *_heat_map(tables), *_curves(tables), *_layers(tables), *_reuse(tables)]
    lead = (
        "Whether a model suits offloading can be read from its routing alone: uneven popularity favours pinning, "
        "quick reuse favours caching, and a working set far below the model leaves something to save."
    )
    return Section("model", "Routing", "The model's routing", lead, tuple(blocks))


def _card(tables: Tables) -> list[Block]:
    if not tables.card:
        return [Absent("Suitability card", f"{CARD} was not written")]
    reasons = tuple(str(reason) for reason in tables.card.get("reasons", ()))
    rest = flatten({key: value for key, value in tables.card.items() if key not in ("verdict", "reasons")})
    rows = tuple(
        (label(key.replace(".", ", ")), _measure(key, value))
        for key, value in rest.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    )
    blocks: list[Block] = []
    if reasons:
        blocks.append(Passage(title=f"Verdict from the traces: {tables.card.get('verdict', 'none')}", points=reasons))
    if rows:
        blocks.append(DataTable("Suitability card", ("Measure", "Value"), rows, CARD))
    return blocks


def _measure(key: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    share = key.startswith("shares.") or key.endswith(_SHARES)
    return percent(value) if share and isinstance(value, float) else number(value)


def _heat_map(tables: Tables) -> list[Block]:
    table = tables["popularity"]
    if table.frame is None:
        return [Absent("Heat map of layers by experts", table.absent)]
    frame = table.frame.sort("layer", "expert")
    experts = frame["expert"].unique().sort().to_list()
    top = frame.sort("share", descending=True).row(0, named=True)
    unused = frame.filter(pl.col("share") == 0).height
    alt = (
        f"Heat map of {frame['layer'].n_unique()} layers by {len(experts)} experts. The most popular is expert "
        f"{top['expert']} of layer {top['layer']}, with {percent(top['share'])} of its layer's choices, "
        f"{top['share'] * len(experts):.1f} times an even share; {unused} experts were never chosen."
    )
    data = _all_shares(frame, table.path) if len(experts) <= _MOST_COLUMNS else _top_shares(frame, table.path)
    chart = plots.heat_map(frame, len(experts))
    return [Figure("heat_map", "How often each expert is chosen", alt, chart, data, wide=True)]


def _all_shares(frame: pl.DataFrame, source: str) -> DataTable:
    experts = frame["expert"].unique().sort().to_list()
    return wide_table(
        frame,
        index="layer",
        on="expert",
        value="share",
        order=experts,
        headings=[str(expert) for expert in experts],
        caption="Share of a layer's choices by expert",
        source=source,
        shares=True,
        first="Layer",
    )


def _top_shares(frame: pl.DataFrame, source: str) -> DataTable:
    """The most popular experts of each layer: a table of all of them could not be read."""
    rows = []
    for (layer,), part in frame.group_by("layer", maintain_order=True):
        top = part.sort("share", "expert", descending=[True, False]).head(_TOP_EXPERTS)
        cells = (f"{row['expert']}: {percent(row['share'])}" for row in top.iter_rows(named=True))
        rows.append((str(layer), *cells, number(part.filter(pl.col("share") == 0).height)))
    headings = ("Layer", *(f"{place + 1}." for place in range(_TOP_EXPERTS)), "Never chosen")
    return DataTable("Most popular experts of each layer; the file has all", headings, tuple(rows), source)


def _layers(tables: Tables) -> list[Block]:
    table = tables["layers"]
    if table.frame is None:
        return [Absent("Evenness and overlap by layer", table.absent)]
    frame = table.frame.sort("layer")
    if frame.height < 2:
        return [Absent("Evenness and overlap by layer", f"{table.path} has one layer")]
    columns = [name for name in frame.columns if frame[name].dtype.is_numeric()]
    rows = tuple(tuple(number(row[name]) for name in columns) for row in frame.iter_rows(named=True))
    data = DataTable("Routing by layer", tuple(label(name) for name in columns), rows, table.path)
    evenness = frame["entropy_bits"] / frame["max_entropy_bits"]
    alt = f"Line chart over layers. Evenness between {percent(evenness.min())} and {percent(evenness.max())}."  # type: ignore[arg-type]
    if table.has("previous_token_overlap"):
        overlap = frame["previous_token_overlap"]
        alt += f" Overlap with the token before between {percent(overlap.min())} and {percent(overlap.max())}."  # type: ignore[arg-type]
    return [Figure("layers", "Evenness and overlap by layer", alt, plots.entropy_by_layer(frame), data)]


def _curves(tables: Tables) -> list[Block]:
    table = tables["hit_curves"]
    if table.frame is None:
        return [Absent("Hit rate at every capacity", table.absent)]
    policies = ordered(table.frame["policy"].to_list())
    frame = table.frame.sort("capacity_experts", maintain_order=True)
    capacities = frame.select("capacity_experts").unique().sort("capacity_experts")
    if capacities.height < 2:
        return [Absent("Hit rate at every capacity", f"{table.path} has fewer than two capacities")]
    # a bound may be computed at fewer capacities than LRU: a row of the table shows all policies side by side
    common = frame.group_by("capacity_experts").len().filter(pl.col("len") == len(policies)).select("capacity_experts")
    shown = plots.thin((common if common.height > 1 else capacities).sort("capacity_experts"), _CURVE_ROWS)
    data = wide_table(
        frame.join(shown, on="capacity_experts", how="semi", maintain_order="left"),
        index="capacity_experts",
        on="policy",
        value="hit_rate",
        order=policies,
        headings=[label(name) for name in policies],
        caption=f"Hit rate at {shown.height} of {capacities.height} capacities; the file has all",
        source=table.path,
        shares=True,
        first="Experts",
    )
    half = []
    for name in policies:
        enough = frame.filter((pl.col("policy") == name) & (pl.col("hit_rate") >= 0.5))
        if not enough.is_empty():
            row = enough.row(0, named=True)
            half.append(f"{label(name)} reaches one half at {number(row['capacity_experts'])} experts")
    said = "; ".join(half) or "No policy reaches one half"
    alt = f"Line chart of hit rate at every capacity from one pass over the trace. {said}."
    cycle, total = tables.token_cycle, tables.model_experts
    fraction = cycle / total if cycle is not None and total else None
    chart = plots.hit_curves(frame, policies, fraction, cycle)
    return [
        Figure(
            "hit_curves",
            "Hit rate at every capacity, token by token",
            alt,
            chart,
            data,
            wide=True,
            legend=legend(policies),
        )
    ]


def _reuse(tables: Tables) -> list[Block]:
    table = tables["reuse_distances"]
    if table.frame is None:
        return [Absent("Reuse distances", table.absent)]
    frame = table.frame.drop_nulls().filter(pl.col("distance").is_finite() & (pl.col("distance") > 0)).sort("distance")
    if frame.height < 2:
        return [Absent("Reuse distances", f"{table.path} has fewer than two distances")]
    shown = plots.thin(frame, _CURVE_ROWS)
    rows = tuple((number(row["distance"]), percent(row["cumulative_share"])) for row in shown.iter_rows(named=True))
    caption = f"Share of accesses by reuse distance, {shown.height} of {frame.height} distances; the file has all"
    data = DataTable(caption, ("Tokens, at most", "Share of accesses"), rows, table.path)
    half = frame.filter(pl.col("cumulative_share") >= 0.5)
    alt = "Rising curve on a logarithmic axis. " + (
        f"Half of all accesses name an expert that the prompt used at most {number(half['distance'][0])} tokens ago."
        if not half.is_empty()
        else f"{percent(1 - frame['cumulative_share'][-1])} of all accesses are an expert's first use in its prompt."
    )
    chart = plots.reuse_distances(frame)
    return [Figure("reuse_distances", "How soon an expert comes back", alt, chart, data)]
