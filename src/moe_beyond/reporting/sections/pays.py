"""Does prefetching pay here? A verdict for each device and capacity, with the counts behind it."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.blocks import Block, Figure, Section, Table, Text, folded, section, table
from moe_beyond.reporting.columns import cells
from moe_beyond.reporting.figures.lines import Axis, curves
from moe_beyond.reporting.names import LRU, label, policy_looks
from moe_beyond.reporting.read import Run
from moe_beyond.reporting.text import Row, bounds, charged, number, percent, signed

_HIGH_RECALL, _LITTLE_IDLE, _IN_TIME = 0.5, 0.25, 0.5


def pays_section(run: Run) -> Section:
    """A paragraph a device at the headline's capacity; every capacity, the widths and bandwidths folded."""
    rows, blocks = run.tables["pays"], list[Block]()
    for device in run.devices:
        here = rows.filter(split=run.split, device=device, capacity_experts=run.capacity)
        blocks += [pays_words(row) for row in here.iter_rows(named=True)]
    tables = [table(label(split), rows.filter(split=split), cells("pays")) for split in run.splits]
    figures = [figure for device in run.devices for figure in _bandwidths(run, device)]
    blocks += folded("Every timed capacity", [shown for shown in tables if shown.rows])
    blocks += [*figures[:1], *folded("Time over bandwidth on the other devices", figures[1:])]
    blocks += folded("Time by prefetch width", [shown for device in run.devices for shown in _widths(run, device)])
    return section("pays", blocks)


def pays_words(row: Row) -> Text:
    """A row of the table `pays` in plain words."""
    saved, link = row["bytes_read_per_byte_saved"], row["pays_from_gb_per_s"]
    times = (
        f"{row['title']} takes {number(row['ms_per_token'])} ms a token, charged latency included ({charged(row)}); "
        f"{row['against_title']}, which prefetches nothing, {number(row['against_ms_per_token'])} ms: "
        f"{signed(row['difference_ms'])} ms {bounds(row, 'difference_ms')}."
    )
    sentences = [
        f"The link is idle {percent(row['link_idle_share_on_demand'])} of the time on demand and "
        f"{percent(row['link_idle_share'])} with prefetching.",
        f"{percent(row['prefetches_in_time'])} of the prefetches are used and in time; late ones still shorten waits.",
        f"The prefetch requests name {percent(row['recall_on_lru_misses'])} of the accesses that LRU misses.",
        "Prefetching saves no demand loads."
        if saved is None
        else f"It reads {number(saved)} bytes for each byte of demand loads that it saves.",
    ]
    if row["break_even_width"]:
        sentences.append(f"Of the widths tried, it is faster up to {number(row['break_even_width'])} experts a layer.")
    if link is not None:
        sentences.append(f"It pays from a bandwidth of {number(link)} GB/s on.")
    title = f"{label(row['device'])}, {number(row['capacity_experts'])} experts: {row['answer']}"
    return Text(times, (*sentences, *_why_not(row)), title, "good" if row["answer"] == "yes" else "bad")


def _why_not(row: Row) -> list[str]:
    """Why good predictions are not enough, where they are good and prefetching does not pay."""
    saved = row["bytes_read_per_byte_saved"]
    if row["answer"] == "yes" or (row["recall_on_lru_misses"] or 0) < _HIGH_RECALL:
        return []
    if row["link_idle_share_on_demand"] < _LITTLE_IDLE:
        why = "the link has little idle time in which a prefetch would cost nothing"
    elif saved is None or saved > 1:
        why = "the link has idle time, but prefetching reads more than it saves"
    elif (row["prefetches_in_time"] or 0) < _IN_TIME:
        why = "most prefetches come too late to save the stall"
    else:
        why = "the stall that it saves is less than the latency of predicting"
    return [f"Recall is high, and still it does not pay: {why}."]


def _bandwidths(run: Run, device: str) -> list[Figure]:
    """Time over the link's bandwidth: LRU, what prefetching stands against, the best without the predictor, ours."""
    rows = run.tables["by_bandwidth"].filter(split=run.split, device=device)
    if rows["bandwidth_gb_per_s"].n_unique() < 2:
        return []
    pays = run.tables["pays"].filter(split=run.split, device=device, capacity_experts=run.capacity)
    named = pl.col("policy").is_in([LRU, *pays["policy"], *pays["against"]])
    drawn = run.at(run.split, device).filter(named | pl.col("ours") | pl.col("best_without_predictor"))
    policies = drawn.filter(pl.col("policy").is_in(rows["policy"].implode()))
    looks = policy_looks(policies.iter_rows(named=True), run.predictor)
    figure = curves(
        run.figure("bandwidth", run.split, device),
        f"Time over bandwidth: {label(device)}, {number(run.capacity)} experts",
        rows.filter(pl.col("title").is_in(list(looks))).rename({"title": "series"}),
        looks,
        x=Axis("bandwidth_gb_per_s", "bandwidth, GB/s", log=True),
        y=Axis("ms_per_token", "ms per token", log=True),
        note=charged_note(policies),
        wide=True,
    )
    return [figure]


def charged_note(policies: pl.DataFrame) -> str:
    """The latency charged to the predictors of some policies."""
    named = [f"{row['title']} {charged(row)}" for row in policies.iter_rows(named=True) if row["token_step_ms"]]
    return f"Charged latency, ms: {'; '.join(named)}." if named else ""


def _widths(run: Run, device: str) -> list[Table]:
    here = {"split": run.split, "device": device}
    pays = run.tables["pays"].filter(capacity_experts=run.capacity, **here)
    rows = run.tables["by_width"].filter(**here).join(pays.select("token_step_ms", "layer_step_ms"), how="cross")
    titles = rows["title"].unique(maintain_order=True)
    return [table(f"{label(device)}: {title}", rows, cells("widths")) for title in titles]
