"""Sections about the predictor: recall against baselines, the size search, training."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, DataTable, Figure, Section, wide_table
from moe_beyond.reporting.figures import plots
from moe_beyond.reporting.headline import at_horizon, by_layer, overall, recall_name, scores, split_label, top_k
from moe_beyond.reporting.names import label, legend, ordered
from moe_beyond.reporting.sections.horizons import horizon_blocks
from moe_beyond.reporting.tables import Table, Tables, find
from moe_beyond.reporting.text import MISSING, interval, number, percent, size

_TRUE = ("true", "1", "1.0", "yes")
_TRIAL_EXTRAS = {
    "layer_latency_ms": "Layer step, ms",
    "ms_per_token": "Modelled ms per token",
    "hit_rate": "Hit rate",
}
_OUTCOMES = {
    *("trial", "state", "recall_at_k", "recall_at_k_ahead_1", "latency_ms", "layer_latency_ms", "parameters"),
    *("size_bytes", "ms_per_token", "hit_rate", "use", "on_front", "chosen", "reason", "kind", "chosen_trial"),
}
_OPTIONAL_SCORES = {"f1_active": "F1 of the active class", "f1_macro": "Macro F1", "accuracy": "Element accuracy"}


def predictor_section(tables: Tables) -> Section:
    """recall@k of every predictor: overall per split, then layer by layer."""
    title = f"{recall_name(tables)} of the predictor and the baselines"
    quality = tables["quality"].frame
    if quality is None:
        return Section("predictor", "Recall", title, blocks=(Absent(title, tables["quality"].absent),))
    lead = (
        f"{recall_name(tables)} is the share of a token's experts among the equally many that the predictor rates "
        "highest, named before the token's first layer runs. Popularity always names the most used experts, token "
        "unigram those most used for this token's text, previous token those of the token before. The last two learn "
        "nothing about context; a predictor is worth its latency only above them."
    )
    scored = [split for split in tables.splits if not overall(quality, split).is_empty()]
    blocks: list[Block] = [_overall_figure(tables, scored)] if scored else []
    for split in tables.splits:
        if split not in scored:
            blocks.append(
                Absent(f"Scores on {split_label(split)}", f"{tables['quality'].path} has no rows for {split}")
            )
            continue
        blocks += [score_table(tables, split), *_layer_blocks(tables, split)]
    if len(tables.splits) == 1:
        blocks.append(Absent("A second test split", "the traces hold no prompts of another domain"))
    blocks += [*_phase_blocks(tables), *horizon_blocks(tables)]
    return Section("predictor", "Recall", title, lead, tuple(blocks))


def score_table(tables: Tables, split: str) -> DataTable:
    """Overall scores of each predictor on one split."""
    rows = {row["predictor"]: row for row in overall(tables["quality"].rows, split).iter_rows(named=True)}
    extra = [name for name in _OPTIONAL_SCORES if tables["quality"].has(name)]
    body = tuple(
        (
            label(score.predictor),
            percent(score.recall),
            interval(score.low, score.high) or "no interval",
            *(percent(rows[score.predictor][name]) for name in extra),
        )
        for score in scores(tables, split)
    )
    headings = ("Predictor", recall_name(tables), "95 % interval", *(_OPTIONAL_SCORES[name] for name in extra))
    return DataTable(f"Scores on {split_label(split)}", headings, body, tables["quality"].path)


def _overall_figure(tables: Tables, splits: list[str]) -> Figure:
    said, rows = [], []
    for split in splits:
        found = scores(tables, split)
        said.append(f"{label(split)}: " + ", ".join(f"{label(row.predictor)} {percent(row.recall)}" for row in found))
        rows += [
            (label(row.predictor), label(split), percent(row.recall), interval(row.low, row.high) or "no interval")
            for row in found
        ]
    frame = pl.concat([overall(tables["quality"].rows, split) for split in splits])
    chart = plots.recall_overall(frame, tables.predictors, [(split, label(split)) for split in splits], top_k(tables))
    name = recall_name(tables)
    table = DataTable(
        f"{name} overall", ("Predictor", "Split", name, "95 % interval"), tuple(rows), tables["quality"].path
    )
    alt = f"Dot plot with intervals. {'. '.join(said)}."
    return Figure("recall", f"{name} overall", alt, chart, table, wide=True)


def _layer_blocks(tables: Tables, split: str) -> list[Block]:
    rows = by_layer(tables["quality"].rows, split)
    title = f"{recall_name(tables)} by layer: {label(split).lower()}"
    if rows["layer"].n_unique() < 2:
        return [Absent(title, f"{tables['quality'].path} has fewer than two layers for {split}")]
    predictors = ordered(rows["predictor"].to_list())
    parts = []
    for name in predictors:
        mine = rows.filter(pl.col("predictor") == name)
        low, high = mine.sort("recall_at_k").row(0, named=True), mine.sort("recall_at_k").row(-1, named=True)
        parts.append(
            f"{label(name)} between {percent(low['recall_at_k'])} (layer {low['layer']}) and "
            f"{percent(high['recall_at_k'])} (layer {high['layer']})"
        )
    table = wide_table(
        rows,
        index="layer",
        on="predictor",
        value="recall_at_k",
        order=predictors,
        headings=[label(name) for name in predictors],
        caption=f"{recall_name(tables)} by layer, {split_label(split)}",
        source=tables["quality"].path,
        shares=True,
        first="Layer",
    )
    chart = plots.recall_by_layer(rows, predictors, top_k(tables))
    return [
        Figure(
            f"recall_by_layer_{split}",
            title,
            f"Line chart over layers. {'; '.join(parts)}.",
            chart,
            table,
            legend=legend(predictors),
        )
    ]


def _phase_blocks(tables: Tables) -> list[Block]:
    """Prefill beside decode, where the table separates them."""
    quality = at_horizon(tables["quality"].rows)
    quality = quality.filter((pl.col("layer") == "all") & (pl.col("phase") != "all"))
    quality = quality.filter(pl.col("split").is_in(tables.splits))
    title = "Prefill and decode apart"
    phases = quality["phase"].unique(maintain_order=True).to_list()
    if len(phases) < 2:
        return [Absent(title, f"{tables['quality'].path} does not separate two phases on the test splits")]
    blocks: list[Block] = []
    for split in tables.splits:
        part = quality.filter(pl.col("split") == split)
        tokens = {row["phase"]: row["tokens"] for row in part.iter_rows(named=True)}
        table = wide_table(
            part,
            index="predictor",
            on="phase",
            value="recall_at_k",
            order=phases,
            headings=[f"{phase}, {number(tokens.get(phase))} tokens" for phase in phases],
            caption=f"{recall_name(tables)} by phase, {split_label(split)}",
            source=tables["quality"].path,
            shares=True,
            first="Predictor",
        )
        blocks.append(replace(table, rows=tuple((label(row[0]), *row[1:]) for row in table.rows)))
    return blocks


def search_section(tables: Tables) -> Section:
    """The Pareto front of the size search, why its winner won, and what eight bits cost it."""
    title = "How large a predictor"
    table = tables["trials"]
    if table.frame is None:
        return Section("search", "Size", title, blocks=(Absent(title, table.absent), *_quantisation(tables)))
    trials = _marked(table)
    front = trials.filter(pl.col("kind") == "on the Pareto front")
    lead = (
        f"{trials.height} candidates were measured, each on the validation split only"
        f"{_ended_early(table.rows, trials)}; {front.height} are on the Pareto front: none other is better in every "
        f"respect.{_choice(tables, trials)}"
    )
    if trials.height < 2:
        reason = f"{table.path} has one measured trial, and a front needs two"
        blocks = (Absent("Pareto front", reason), _trial_table(trials, table.path), *_quantisation(tables))
        return Section("search", "Size", title, lead, blocks)
    alt = (
        f"Scatter plot of {trials.height} trials. Latency from {number(trials['latency_ms'].min())} to "  # type: ignore[arg-type]
        f"{number(trials['latency_ms'].max())} ms, recall from {percent(trials['recall_at_k'].min())} to "  # type: ignore[arg-type]
        f"{percent(trials['recall_at_k'].max())}."  # type: ignore[arg-type]
    )
    figure = Figure(
        "pareto",
        "Latency against recall of each trial",
        alt,
        plots.pareto(trials),
        _trial_table(trials, table.path),
        wide=True,
    )
    return Section("search", "Size", title, lead, (figure, *_quantisation(tables)))


def _ended_early(rows: pl.DataFrame, measured: pl.DataFrame) -> str:
    ended = rows.height - measured.height
    return f" ({ended} more ended early)" if ended else ""


def _choice(tables: Tables, trials: pl.DataFrame) -> str:
    """Which trial was chosen, of what shape, what it reached, and the reason that the search gave."""
    chosen = trials.filter("chosen_trial")
    if chosen.is_empty():
        return ""
    row = chosen.row(0, named=True)
    shape = ", ".join(f"{name} {row[name]}" for name in _shape(trials))
    reason = f" The reason: {row['reason']}." if row.get("reason") else " It was chosen by the rule in params.yaml."
    return (
        f" Ringed is the chosen one, trial {row['trial']}{f' ({shape})' if shape else ''}, with "
        f"{percent(row['recall_at_k'])} validation {recall_name(tables)} at {number(row['latency_ms'])} ms.{reason}"
    )


def _shape(trials: pl.DataFrame) -> list[str]:
    """Columns that describe a candidate rather than what became of it."""
    return [name for name in trials.columns if name not in _OUTCOMES]


def _marked(table: Table) -> pl.DataFrame:
    true = pl.col("on_front").str.to_lowercase().is_in(_TRUE)
    return (
        table.rows.drop_nulls(["recall_at_k", "latency_ms"])
        .with_columns(
            kind=pl.when(true).then(pl.lit("on the Pareto front")).otherwise(pl.lit("dominated")),
            chosen_trial=pl.col("chosen").str.to_lowercase().is_in(_TRUE),
        )
        .sort("latency_ms")
    )


def _trial_table(trials: pl.DataFrame, source: str) -> DataTable:
    shape = _shape(trials)
    more = {name: heading for name, heading in _TRIAL_EXTRAS.items() if name in trials.columns}
    rows = []
    emphasis = None
    for place, row in enumerate(trials.iter_rows(named=True)):
        remark = "chosen" if row["chosen_trial"] else "on the front" if row["kind"] != "dominated" else "dominated"
        emphasis = place if row["chosen_trial"] else emphasis
        rows.append(
            (
                number(row["trial"]),
                *(_plain(row[name]) for name in shape),
                number(row["parameters"]),
                percent(row["recall_at_k"], 2),
                number(row["latency_ms"]),
                *(number(row[name]) for name in more),
                remark,
            )
        )
    headings = (
        "Trial",
        *(label(name) for name in shape),
        "Parameters",
        "Validation recall@k",
        "Latency, ms",
        *more.values(),
        "Remark",
    )
    return DataTable("Trials, fastest first", headings, tuple(rows), source, emphasis)


def _plain(value: object) -> str:
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _quantisation(tables: Tables) -> list[Block]:
    """Eight bits against four times as many, for both steps."""
    table = tables["quantisation"]
    if table.frame is None:
        return [Absent("Eight-bit weights", table.absent)]
    rows = tuple(
        (
            label(row["step"]),
            "32-bit floats" if row["int8_operators"] == "none" else f"8 bits in {row['int8_operators']}",
            size(row["size_bytes"]),
            number(row["latency_ms"]),
            percent(row["recall_at_k"], 2),
            "" if row["int8_operators"] == "none" else f"{row['lost_points']:.2f}",
            "yes" if row["chosen"].lower() in _TRUE else "no",
        )
        for row in table.frame.iter_rows(named=True)
    )
    columns = ("Step", "Weights", "Size", "Latency, ms", "Validation recall@k", "Points lost", "Shipped in 8 bits")
    caption = "Eight-bit weights: what they save and what they lose"
    return [DataTable(caption, columns, rows, table.path, wide=True)]


def training_section(tables: Tables) -> Section:
    """Loss and validation recall over epochs."""
    title = "Training"
    table = tables["history"]
    if table.frame is None:
        return Section("training", "Training", title, blocks=(Absent(title, table.absent),))
    # a logger may write losses of one epoch in separate rows
    columns = [
        name for name in ("train_loss", "validation_loss", "validation_recall_at_k") if name in table.frame.columns
    ]
    history = table.frame.group_by("epoch").agg(pl.col(columns).drop_nulls().last()).sort("epoch")
    if history.height < 2:
        return Section(
            "training", "Training", title, blocks=(Absent("Learning curves", f"{table.path} has one epoch"),)
        )
    first, last = history.row(0, named=True), history.row(-1, named=True)
    change = f"{number(first['validation_loss'])} to {number(last['validation_loss'])}"
    lead = f"{history.height} epochs; validation loss went from {change}"
    best = history.drop_nulls("validation_loss").sort("validation_loss").row(0, named=True)
    lead += f", lowest in epoch {number(best['epoch'])} ({number(best['validation_loss'])})."
    if last["train_loss"] is not None and last["validation_loss"] > last["train_loss"]:
        gap = (last["validation_loss"] / last["train_loss"] - 1) * 100
        lead += f" At the end it stands {gap:.0f} % above the training loss."
    rows = tuple(
        (
            number(row["epoch"]),
            number(row["train_loss"]),
            number(row["validation_loss"]),
            *((percent(row["validation_recall_at_k"]),) if "validation_recall_at_k" in columns else ()),
        )
        for row in history.iter_rows(named=True)
    )
    headings = ("Epoch", "Training loss", "Validation loss", *(("Validation recall@k",) if len(columns) == 3 else ()))
    data = DataTable("Loss by epoch", headings, rows, table.path)
    blocks: list[Block] = [
        Figure("training_loss", "Loss by epoch", f"Line chart. {lead}", plots.loss_curves(history), data),
    ]
    if "validation_recall_at_k" in columns:
        scored = history.drop_nulls("validation_recall_at_k")
        alt = (
            f"Line chart of validation recall from {percent(scored['validation_recall_at_k'][0])} to "
            f"{percent(scored['validation_recall_at_k'][-1])}."
        )
        recall = DataTable(
            "Validation recall by epoch",
            ("Epoch", "Validation recall@k"),
            tuple(
                (number(row["epoch"]), percent(row["validation_recall_at_k"])) for row in scored.iter_rows(named=True)
            ),
            table.path,
        )
        blocks.append(Figure("training_recall", "Validation recall by epoch", alt, plots.recall_curve(history), recall))
    return Section("training", "Training", title, lead, tuple(blocks))


def deployed_size(tables: Tables) -> tuple[str, str]:
    """Latency and size of the exported predictor as text."""
    latency = MISSING if tables.latency_ms is None else f"{number(tables.latency_ms)} ms"
    return latency, size(find(tables.metrics.get("export", {}), "size_bytes"))
