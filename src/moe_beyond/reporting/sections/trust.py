"""The section on what the predictor's probabilities are worth: calibration, and how many experts cover how much."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, DataTable, Figure, Section, wide_table
from moe_beyond.reporting.figures import plots
from moe_beyond.reporting.headline import split_label, top_k
from moe_beyond.reporting.names import label, legend
from moe_beyond.reporting.sections.horizons import horizon_words
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import MISSING, interval, listed, number, percent

_COVERAGES = (0.8, 0.9, 0.95)
_HONEST = 0.01  # stated and observed shares this close are called equal


def trust_section(tables: Tables) -> Section:
    """A reliability chart and coverage by the number of named experts, test splits together."""
    blocks = [*_calibration(tables), *_width(tables), *_by_layer(tables), *_sets(tables)]
    leads = [calibration_sentence(tables), width_sentence(tables)]
    title = "What its probabilities are worth"
    return Section("trust", "Certainty", title, " ".join(lead for lead in leads if lead), tuple(blocks))


def calibration_errors(tables: Tables) -> dict[str, float]:
    """Split -> expected calibration error, from the bins; empty where they are absent."""
    frame = tables["calibration"].frame
    if frame is None:
        return {}
    gap = (pl.col("mean_probability") - pl.col("observed_share")).abs()
    errors = frame.group_by("split", maintain_order=True).agg((gap * pl.col("count")).sum() / pl.col("count").sum())
    return {split: float(error) for split, error in errors.rows()}


def calibration_sentence(tables: Tables) -> str:
    """How far statements are off on average, and whether confident ones come true as often as they say."""
    errors, frame = calibration_errors(tables), tables["calibration"].frame
    if frame is None:
        return ""
    split = frame["split"][-1]
    said = (
        f"On {split_label(split)} a stated probability is off by {100 * errors[split]:.2f} points on average (expected "
        "calibration error; most statements are small and say \u201cnot this one\u201d)."
    )
    sure = frame.filter((pl.col("split") == split) & (pl.col("bin_low") >= 0.5))
    if sure.is_empty():
        return f"{said} It never says more than one half."
    weighted = [
        (pl.col(name) * pl.col("count")).sum() / pl.col("count").sum()
        for name in ("mean_probability", "observed_share")
    ]
    stated, came = sure.select(*weighted).row(0)
    manner = "too sure of itself" if stated > came + _HONEST else "too timid" if stated < came - _HONEST else "honest"
    return (
        f"{said} Where it rates an expert at one half or more, it says {percent(stated)} on average and "
        f"{percent(came)} come true: there it is {manner}."
    )


def width_sentence(tables: Tables) -> str:
    """How many experts of a layer must be named for which coverage, on the hardest split."""
    frame = tables["width"].frame
    if frame is None:
        return ""
    split, k = frame["split"][-1], top_k(tables)
    rows = frame.filter(pl.col("split") == split).sort("width")
    reached = []
    for share in _COVERAGES:
        enough = rows.filter(pl.col("recall") >= share)
        if not enough.is_empty():
            reached.append(f"{number(enough['width'][0])} for {percent(share, 0)}")
    widest = rows.row(-1, named=True)
    rest = f"the {number(widest['width'])} most probable cover {percent(widest['recall'])} of the true experts."
    if not reached:
        return f"Of each layer {rest}"
    own = f" (the router uses {k})" if k else ""
    return f"Experts to name in a layer{own} for a coverage of the true ones: {listed(reached)}; {rest}"


def _calibration(tables: Tables) -> list[Block]:
    table = tables["calibration"]
    title = "Stated probability against what came true"
    if table.frame is None:
        return [Absent(title, table.absent)]
    splits = table.frame["split"].unique(maintain_order=True).to_list()
    rows = tuple(
        (
            label(row["split"]),
            f"{percent(row['bin_low'], 0)} to {percent(row['bin_high'], 0)}",
            percent(row["mean_probability"], 2),
            percent(row["observed_share"], 2),
            number(row["count"]),
        )
        for row in table.frame.iter_rows(named=True)
    )
    data = DataTable(title, ("Split", "Bin", "Stated, mean", "Came true", "Statements"), rows, table.path)
    ends = [
        f"{label(split)}: statements of {percent(last['mean_probability'])} come true in "
        f"{percent(last['observed_share'])}"
        for split in splits
        for last in (table.frame.filter(pl.col("split") == split).row(-1, named=True),)
    ]
    alt = f"Reliability chart; on the diagonal a probability is what comes true. {'; '.join(ends)}."
    return [Figure("calibration", title, alt, plots.reliability(table.frame, splits), data, legend=legend(splits))]


def _width(tables: Tables) -> list[Block]:
    table = tables["width"]
    title = "Experts to name for which coverage"
    if table.frame is None:
        return [Absent(title, table.absent)]
    splits = table.frame["split"].unique(maintain_order=True).to_list()
    data = wide_table(
        table.frame.sort("width", maintain_order=True),
        index="width",
        on="split",
        value="recall",
        order=splits,
        headings=[label(split) for split in splits],
        caption="Share of true experts among the most probable ones",
        source=table.path,
        shares=True,
        first="Experts named in a layer",
    )
    ends = [
        f"{label(split)} from {percent(rows['recall'][0])} with one expert to {percent(rows['recall'][-1])} with "
        f"{number(rows['width'][-1])}"
        for split in splits
        for rows in (table.frame.filter(pl.col("split") == split).sort("width"),)
    ]
    alt = f"Rising line chart. {'; '.join(ends)}."
    chart = plots.coverage(table.frame, splits, top_k(tables))
    return [Figure("coverage", title, alt, chart, data, legend=legend(splits))]


def _by_layer(tables: Tables) -> list[Block]:
    """Calibration error of every layer of the hardest split, before and after scaling, for each horizon."""
    table, title = tables["calibration_by_layer"], "Calibration layer by layer"
    if table.frame is None:
        return [Absent(title, table.absent)]
    split = table.rows["split"][-1]
    part = table.rows.filter(pl.col("split") == split)
    horizons = part["horizon"].unique(maintain_order=True).to_list()
    cells = {(row["layer"], row["horizon"]): row for row in part.iter_rows(named=True)}
    layers = part["layer"].unique(maintain_order=True).to_list()
    rows = tuple(
        (
            "All layers" if layer == "all" else layer,
            *(
                MISSING if row is None else f"{100 * row['error_before']:.2f} \u2192 {100 * row['error']:.2f}"
                for row in (cells.get((layer, horizon)) for horizon in horizons)
            ),
        )
        for layer in layers
    )
    columns = ("Layer", *(horizon_words(horizon).capitalize() for horizon in horizons))
    caption = f"Expected calibration error in points, before \u2192 after scaling, {split_label(split)}"
    return [DataTable(caption, columns, rows, table.path)]


def _sets(tables: Tables) -> list[Block]:
    """What a stated coverage costs in experts, and whether it was kept: over all layers, and in the worst one."""
    table, title = tables["prefetch_sets"], "Prefetch sets of a stated coverage"
    if table.frame is None:
        return [Absent(title, table.absent)]
    rows = []
    split = table.rows["split"][-1]
    part = table.rows.filter(pl.col("split") == split)
    worst = {
        (row["horizon"], row["stated_coverage"]): row
        for row in part.filter(pl.col("layer") != "all").sort("coverage", descending=True).iter_rows(named=True)
    }
    for row in part.filter(pl.col("layer") == "all").iter_rows(named=True):
        least = worst.get((row["horizon"], row["stated_coverage"]))
        rows.append(
            (
                horizon_words(row["horizon"]).capitalize(),
                percent(row["stated_coverage"], 0),
                f"{percent(row['coverage'])} {interval(row['low'], row['high'])}".strip(),
                MISSING if least is None else f"{percent(least['coverage'])} (layer {least['layer']})",
                number(row["experts_per_layer"]),
            )
        )
    columns = ("Asked", "Coverage stated", "Coverage found", "In the worst layer", "Experts a layer")
    caption = (
        f"Sets chosen on validation prompts to cover a stated share of the true experts, {split_label(split)}: what "
        "they cover there, and how large they are"
    )
    return [DataTable(caption, columns, tuple(rows), table.path)]
