"""Heat maps, stacked bars, the scatter of the search, and the frontier of quality and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from moe_beyond.reporting.blocks import Chart
from moe_beyond.reporting.figures.lines import Axis, finish
from moe_beyond.reporting.names import Look

_BAND = alt.Axis(labelOverlap=True, labelSeparation=4, labelAngle=0, ticks=False)
_ROW, _LEAST, _MOST = 20, 120, 520  # CSS pixels of a row, and of a heat map
_TALL = 420


def heat(frame: pl.DataFrame, across: Axis, down: Axis, value: Axis, more: Sequence[Axis] = ()) -> Chart:
    """Cells by two columns of whole numbers, the stronger in colour the greater the value.

    Args:
        frame: A row a cell.
        across: Columns of the map.
        down: Its rows.
        value: What colours a cell.
        more: Further numbers under the pointer.
    """
    kept = [axis.column for axis in (across, down, value, *more)]
    # thousands of cells travel in the page: no more digits than a colour or a tooltip can show
    cells = frame.select(kept).with_columns(pl.col(pl.Float64).round(4))
    chart = (
        alt.Chart(cells)
        .mark_rect()
        .encode(
            x=alt.X(f"{across.column}:O", title=across.title, axis=_BAND),
            y=alt.Y(f"{down.column}:O", title=down.title, axis=_BAND),
            color=alt.Color(
                f"{value.column}:Q",
                title=value.title,
                scale=alt.Scale(range="heatmap", interpolate="lab", domainMin=0),
                legend=alt.Legend(type="gradient", gradientLength=220, titleLimit=240),
            ),
            tooltip=[axis.tooltip for axis in (across, down, value, *more)],
        )
    )
    return finish(chart, max(_LEAST, min(_MOST, _ROW * cells[down.column].n_unique())))


def bars(frame: pl.DataFrame, looks: Mapping[str, Look], more: Sequence[Axis]) -> Chart:
    """Milliseconds of each token as stacked bars.

    Args:
        frame: Columns position, token_text, `series`, `ms`, and those of `more`.
        looks: Of the series, the lowest first.
        more: Further numbers under the pointer.
    """
    places = {name: place for place, name in enumerate(looks)}
    colours = alt.Scale(domain=list(looks), range=[look.colour for look in looks.values()])
    chart = (
        alt.Chart(frame.with_columns(place=pl.col("series").replace_strict(places)))
        .mark_bar()
        .encode(
            x=alt.X("position:O", title="token of the prompt", axis=_BAND, scale=alt.Scale(paddingInner=0.15)),
            y=alt.Y("ms:Q", title="ms", stack="zero"),
            color=alt.Color("series:N", scale=colours),
            order=alt.Order("place:Q"),
            tooltip=[
                alt.Tooltip("position:O", title="token"),
                alt.Tooltip("token_text:N", title="text"),
                alt.Tooltip("series:N", title="time"),
                *(axis.tooltip for axis in (Axis("ms", "ms"), *more)),
            ],
        )
    )
    return finish(chart, 240)


def scatter(trials: pl.DataFrame) -> Chart:
    """Trials by latency and recall, those on the Pareto front joined, the chosen one ringed.

    Args:
        trials: Columns trial, token_step_ms, recall_at_k, ms_per_token, chosen; least latency first.
    """
    x, y = Axis("token_step_ms", "charged latency of a token step, ms"), Axis("recall_at_k", "recall@k", "percent")
    best = pl.col(y.column).cum_max()
    marked = trials.with_columns(on_front=best > best.shift().fill_null(-1))
    base = alt.Chart(marked.select("trial", x.column, y.column, "ms_per_token", "chosen", "on_front")).encode(
        x=alt.X(f"{x.column}:Q", title=x.title, scale=alt.Scale(zero=False)),
        y=alt.Y(f"{y.column}:Q", title=y.title, axis=y.ticks, scale=alt.Scale(zero=False)),
        tooltip=["trial:Q", x.tooltip, y.tooltip, Axis("ms_per_token", "ms per token").tooltip],
    )
    front = base.transform_filter("datum.on_front")
    return finish(
        alt.layer(
            front.mark_line(color="@blue", strokeWidth=1.25),
            base.mark_point(size=80, color="@grey"),
            front.mark_point(size=80, color="@blue"),
            base.transform_filter("datum.chosen").mark_point(style="ring"),
        )
    )


def frontier(lossy: pl.DataFrame, lossless: pl.DataFrame) -> Chart:
    """Policies by the divergence that they cause and their time: the best joined, a rule at the lossless one.

    Args:
        lossy: Columns title, kl, ms_per_token, top1_agreement, on_front; divergences above 0.
        lossless: At most one such row.
    """
    x = Axis("kl", "divergence from the full model, nats", log=True)
    y = Axis("ms_per_token", "ms per token, measured")
    named, agreement = alt.Tooltip("title:N", title="policy"), Axis("top1_agreement", "same first choice", "percent")
    kl = alt.Tooltip("kl:Q", title=x.title, format=".2~e")
    # a name must not run out of the chart
    log = pl.col("kl").log10()
    late = log > (2 * log.max() + log.min()) / 3
    points = lossy.select("title", "kl", y.column, "top1_agreement", "on_front", late=late)
    base = alt.Chart(points).encode(
        x=alt.X("kl:Q", title=x.title, axis=alt.Axis(format="~e"), scale=alt.Scale(type="log")),
        y=alt.Y(f"{y.column}:Q", title=y.title, axis=y.ticks, scale=y.scale),
        tooltip=[named, kl, y.tooltip, agreement.tooltip],
    )
    front, other = (base.transform_filter(f"{sign}datum.on_front") for sign in ("", "!"))
    texts = [
        base.transform_filter(f"{sign}datum.late").mark_text(style=style).encode(text="title:N")
        for sign, style in (("!", "name-right"), ("", "name-left"))
    ]
    rule = alt.Chart(lossless.select("title", y.column)).encode(y=f"{y.column}:Q")
    words = rule.mark_text(style="name-left").encode(x=alt.value("width"), text="title:N")
    return finish(
        alt.layer(
            rule.mark_rule(style="mark-rule"),
            words,
            front.mark_line(color="@blue", strokeWidth=1.25),
            other.mark_point(size=80, color="@grey"),
            front.mark_point(size=80, color="@blue"),
            *texts,
        ),
        _TALL,
    )
