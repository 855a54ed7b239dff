"""Where the time goes: one prompt token by token and layer by layer, and the misses that cost most."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.blocks import Block, Figure, Section, Table, Text, folded, section, table
from moe_beyond.reporting.columns import cells
from moe_beyond.reporting.figures.charts import bars, heat
from moe_beyond.reporting.figures.lines import Axis
from moe_beyond.reporting.names import Look, label
from moe_beyond.reporting.read import Run
from moe_beyond.reporting.sections.pays import charged_note
from moe_beyond.reporting.text import Cell, charged, listed, number, of, percent, token, words

_SPENT = {"compute_ms": "computing and predicting", "stall_ms": "stall"}
_LOOKS = dict(zip(_SPENT.values(), (Look("@sky"), Look("@vermilion")), strict=True))
_COUNTS = {
    "demand_loads": "Demand loads",
    "prefetches_in_time": "Prefetches in time",
    "prefetches_late": "Prefetches late",
    "prefetches_useless": "Prefetches wasted",
    "evictions": "Evictions",
}
_SUMS = [*_SPENT, *_COUNTS]
_MORE = [Axis(column, heading.lower(), "count") for column, heading in _COUNTS.items()]
_CELLS: dict[str, Cell] = {
    "Computing and predicting, ms": of("compute_ms"),
    "Stall, ms": of("stall_ms"),
    **{heading: of(column) for column, heading in _COUNTS.items()},
}
_WORST = 12
_UNSEEN = 0.25  # below this an expert is rarely among those requested


def timeline_section(run: Run) -> Section:
    """The prompt of median stall under ours, beside LRU, on the headline's device."""
    rows = run.tables["timeline"]
    if rows.is_empty():
        return section("timeline", [])
    shown = rows.filter(policy=rows["policy"][0])
    where = f"{shown['title'][0]}, {label(shown['device'][0])}"
    latency = run.at(shown["split"][0], shown["device"][0]).select("policy", "token_step_ms", "layer_step_ms")
    sums = rows.group_by("policy", "title", maintain_order=True).agg(pl.col(_SUMS).sum())
    sums = sums.join(latency, on="policy", maintain_order="left")
    cells = {"Policy": words("title"), "Charged latency, ms": charged} | _CELLS
    beside = table("The same prompt, its prefill included, under each policy", sums, cells)
    # a prefill in one step would dwarf the tokens that follow
    drawn = shown.filter(pl.col("position") > 0) if run.settings.prefill == "batched" else shown
    figures = (_tokens(drawn, where, charged_note(sums)), _layers(drawn, where))
    return section("timeline", [*figures, beside, *_misses(run)])


def _tokens(events: pl.DataFrame, where: str, note: str) -> Figure:
    events = events.with_columns(token_text=pl.Series([token(text) for text in events["token_text"]], dtype=pl.String))
    sums = events.group_by("position", "token_text", maintain_order=True).agg(pl.col(_SUMS).sum())
    index = ["position", "token_text", *_COUNTS]
    long = sums.unpivot([*_SPENT], index=index, variable_name="series", value_name="ms")
    worst = sums.sort("stall_ms", descending=True, maintain_order=True).head(3).iter_rows(named=True)
    named = listed([f"{row['token_text']} ({number(row['stall_ms'])} ms)" for row in worst])
    cells = {"Token": of("position"), "Text": words("token_text")} | _CELLS
    computed, waited = (float(sums[name].sum()) for name in _SPENT)
    return Figure(
        "timeline",
        f"{percent(waited / (computed + waited), 0)} of this prompt's time is stall: {where}",
        f"Stacked bars, one a token: {number(waited)} ms of stall in {number(computed + waited)} ms. Longest: {named}.",
        bars(long.with_columns(pl.col("series").replace_strict(_SPENT), pl.col("ms").round(3)), _LOOKS, _MORE),
        table(f"Token by token, prompt {events['prompt_id'][0]}", sums, cells),
        _LOOKS,
        note,
        wide=True,
    )


def _layers(events: pl.DataFrame, where: str) -> Figure:
    sums = events.group_by("layer", maintain_order=True).agg(pl.col(_SUMS).sum()).sort("layer")
    worst = sums.sort("stall_ms", maintain_order=True).row(-1, named=True)
    x, y = Axis("position", "token of the prompt", "count"), Axis("layer", "layer", "count")
    return Figure(
        "timeline_layers",
        f"Which layer stalls: {where}",
        "Heat map of tokens by layers, the stronger the colour the longer the stall. "
        f"Layer {worst['layer']} stalled longest, {number(worst['stall_ms'])} ms.",
        heat(events, x, y, Axis("stall_ms", "stall, ms"), _MORE),
        table("Layer by layer, all tokens", sums, {"Layer": of("layer")} | _CELLS),
        {},
        wide=True,
    )


def _misses(run: Run) -> list[Block]:
    rows = run.tables["costliest_misses"]
    if rows.is_empty():
        return []
    blind = rows.filter(pl.col("predicted") < _UNSEEN).height
    cause = (
        f"In {blind} of the {rows.height} costliest misses the predictor had given the experts waited for less than "
        f"{percent(_UNSEEN, 0)} on average: there the prediction is wrong. In the others the link or the cache was too "
        "small."
    )
    every = table("The costliest misses", rows, cells("misses"))
    few = Table(every.caption, every.columns, every.rows[:_WORST])
    return [few, Text(cause), *folded(f"All {rows.height} of them", [every] if rows.height > _WORST else [])]
