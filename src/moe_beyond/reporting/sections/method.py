"""Data and splits, method and limits, the parameters of the replay."""

from __future__ import annotations

import polars as pl

from moe_beyond.advisor.pinning_table import published_pinning
from moe_beyond.devices.errors import published_errors
from moe_beyond.reporting.blocks import Block, Section, Text, facts, folded, section, table
from moe_beyond.reporting.columns import cells
from moe_beyond.reporting.names import label
from moe_beyond.reporting.read import Run
from moe_beyond.reporting.text import number, texts

_COUNTS = {
    "split": "What splitting found",
    "extract": "What was recorded",
    "reference": "The traced model, trained here",
}


def data_section(run: Run) -> Section:
    """Where prompts come from, how they were split, and the contamination that was found."""
    by = run.prompts.group_by("split", "domain", maintain_order=True)
    counts = by.agg(prompts=pl.len(), distinct=pl.col("fingerprint").n_unique()).sort("split", "domain")
    tested = pl.when(pl.col("split").is_in(run.splits)).then(pl.lit("Test: ")).otherwise(pl.lit(""))
    named = tested + pl.col("split").replace_strict({split: label(split) for split in counts["split"].unique()})
    shown = table("Prompts by split and domain", counts.with_columns(split=named), cells("data"))
    counted = [facts(caption, run.metrics[stage]) for stage, caption in _COUNTS.items() if run.metrics[stage]]
    return section("data", [shown, *folded("Counts", counted)], source=run.card["source"], licence=run.card["licence"])


def method_section(run: Run) -> Section:
    """What the numbers mean, their limits, and the parameters behind them."""
    fixed, settings = texts(), run.settings
    assumed = {"lookahead": settings.lookahead_layers, "size": number(settings.timed_expert_mib)}
    limits = fixed["limits_one_split"] if len(run.splits) == 1 else []
    stand_in = fixed["limits_reference"] if run.source == "reference" else []
    timed = fixed["limits_timed"] if settings.timed_expert_mib is not None else []
    points = {
        "Method": [fixed["prefill"][settings.prefill], *fixed["method_points"]],
        "Limits": [*fixed["limits"], *limits, *stand_in, *timed],
        "Words": fixed["words"],
    }
    blocks: list[Block] = [
        Text("", tuple(point.format(**assumed) for point in sentences), title) for title, sentences in points.items()
    ]
    if run.devices:
        blocks.append(table("How far modelled time is from measured", published_errors(), cells("device_errors")))
        blocks.append(table("What pinning was worth on published traces", published_pinning(), cells("pinning")))
    return section("method", [*blocks, *folded("Parameters", [facts("Parameters", run.parameters)])])
