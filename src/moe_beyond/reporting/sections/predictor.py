"""The predictor: recall beside baselines, by layer and horizon; what its probabilities are worth; size and training."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.blocks import Block, Figure, Section, Table, Text, folded, section, table
from moe_beyond.reporting.columns import cells
from moe_beyond.reporting.figures.charts import scatter
from moe_beyond.reporting.figures.lines import Axis, curves
from moe_beyond.reporting.names import DASHES, Look, label, looks
from moe_beyond.reporting.read import TOKEN, Run
from moe_beyond.reporting.text import number, percent, words

_MIB = 2**20
_DIAGONAL = "as often as predicted"


def predictor_section(run: Run) -> Section:
    """Recall on the test splits, layer by layer, calibration, and what int8 costs."""
    layers = [figure for split in run.splits for figure in _by_layer(run, split)]
    first, *others = _overall(run)
    blocks: list[Block] = [first, *layers[:1], *_reliability(run), *_int8(run)]
    blocks += folded("Other splits", [*others, *layers[1:]])
    return section("predictor", blocks, k=run.card["top_k"])


def series(run: Run) -> pl.DataFrame:
    """The table `quality`, in `series` a line's label: the predictor, and how far ahead its layer step looks."""
    names = {name: label(name) for name in run.tables["quality"]["predictor"].unique()}
    name, horizon = pl.col("predictor").replace_strict(names), pl.col("horizon")
    layers = pl.when(horizon == "1").then(pl.lit("layer")).otherwise(pl.lit("layers"))
    ahead = pl.format("{}, {} {} ahead", name, horizon, layers)
    return run.tables["quality"].with_columns(series=pl.when(horizon == TOKEN).then(name).otherwise(ahead))


def recall_looks(run: Run) -> dict[str, Look]:
    """Ours blue at every horizon, another colour for each baseline."""
    rows = series(run).select("series", "predictor").unique(maintain_order=True)
    ours = pl.col("predictor") == run.predictor
    own = {name: Look("@blue", dash) for name, dash in zip(rows.filter(ours)["series"], DASHES, strict=False)}
    return own | {name: look for name, look in looks(["", *rows.filter(~ours)["series"]]).items() if name}


def _overall(run: Run) -> list[Table]:
    """A table a split, the training prompts last: how much of the recall is memorised."""
    written = cells("recall", k=run.card["top_k"])
    ends = {"recall_low": "recall_at_k_low", "recall_high": "recall_at_k_high"}
    whole = series(run).filter(phase="all", layer="all").rename(ends)
    return [table(label(split), whole.filter(split=split), written) for split in (*run.splits, "train")]


def by_layer(run: Run, split: str) -> pl.DataFrame:
    """Recall of every line by layer: columns series, predictor, horizon, layer (a number), recall_at_k."""
    rows = series(run).filter(pl.col("layer") != "all", split=split, phase="all")
    kept = rows.select("series", "predictor", "horizon", pl.col("layer").cast(pl.Int64), "recall_at_k")
    return kept.sort("layer", maintain_order=True)


def _by_layer(run: Run, split: str) -> list[Figure]:
    rows, name = by_layer(run, split), f"recall@{run.card['top_k']}"
    if rows["layer"].n_unique() < 2:
        return []
    title = f"{name} by layer and horizon: {label(split).lower()}"
    x, y = Axis("layer", "layer", "count"), Axis("recall_at_k", name, "percent")
    return [curves(run.figure("recall_by_layer", split), title, rows, recall_looks(run), x=x, y=y)]


def _reliability(run: Run) -> list[Figure]:
    rows = run.tables["calibration"].filter(split=run.split)
    if rows.height < 2:
        return []
    error = number(100 * run.metrics["export"]["calibration_error"][run.split])
    ends = pl.DataFrame({"series": _DIAGONAL, "mean_probability": [0.0, 1.0], "observed_share": [0.0, 1.0]})
    drawn = rows.select(pl.lit("predictor").alias("series"), "mean_probability", "observed_share")
    figure = curves(
        "calibration",
        f"Calibration: off by {error} points on average, {label(run.split).lower()}",
        pl.concat([drawn, ends]),
        {"predictor": Look("@blue"), _DIAGONAL: Look("@grey", DASHES[2])},
        x=Axis("mean_probability", "predicted probability", "percent", whole=True),
        y=Axis("observed_share", "share used by the router", "percent", whole=True),
        table=table("Predicted probabilities and what the router used", rows, cells("calibration")),
    )
    return [figure]


def _int8(run: Run) -> list[Text]:
    whole, int8 = run.metrics["export"], run.metrics["export"]["int8"]
    parts = [
        f"{name.replace('_', ' ')} {number(int8[f'{name}_bytes'] / _MIB)} MiB instead of "
        f"{number(whole[f'{name}_bytes'] / _MIB)}, {number(int8[f'{name}_lost_points'])} points of recall lost"
        for name in ("token_step", "layer_step", "hidden_step")
        if f"{name}_bytes" in int8
    ]
    return [Text(f"In int8: {'; '.join(parts)}.")] if parts else []


def training_section(run: Run) -> Section:
    """The search for a size, and the fit at the chosen one."""
    trials, fit = run.trials, run.metrics["train"]
    measured = trials.drop_nulls("recall_at_k").sort("token_step_ms", "recall_at_k", descending=[False, True])
    parameters = trials.columns[: trials.columns.index("recall_at_k")]
    shape = {label(name): words(name) for name in parameters if name != "state"}
    rows = pl.concat([measured, trials.filter(pl.col("recall_at_k").is_null())])
    numbers = table("Trials, least latency first", rows, shape | cells("trials"), "chosen")
    blocks: list[Block] = [numbers]
    if measured.height > 1:
        low, high = (percent(float(measured["recall_at_k"].sort()[end])) for end in (0, -1))
        alt = f"Scatter plot of {measured.height} trials, recall from {low} to {high}; the chosen one is ringed."
        title = "Trials: recall over latency, the Pareto front joined, the choice ringed"
        blocks = [Figure("pareto", title, alt, scatter(measured), numbers, {})]
    return section(
        "training",
        [*blocks, *_losses(run)],
        trials=trials.height,
        measured=measured.height,
        reason=run.metrics["tune"]["chosen"]["reason"],
        parameters=number(fit["parameters"]),
        epochs=fit["epochs"],
        best=fit["best_epoch"],
    )


def _losses(run: Run) -> list[Figure]:
    history, measures = run.history.sort("epoch"), {"train_loss": "training", "validation_loss": "validation"}
    if history.height < 2:
        return []
    long = history.unpivot([*measures], index="epoch", variable_name="series", value_name="loss").drop_nulls("loss")
    figure = curves(
        "training",
        "Loss by epoch",
        long.with_columns(pl.col("series").replace_strict(measures)),
        {"training": Look("@vermilion", DASHES[1]), "validation": Look("@blue")},
        x=Axis("epoch", "epoch", "count"),
        y=Axis("loss", "binary cross-entropy"),
        table=table("Loss and recall by epoch", history, cells("epochs")),
    )
    return [figure]
