"""Figures of one prompt's time: what each token waited for, and what each layer of each token waited for."""

from __future__ import annotations

import altair as alt
import polars as pl

from moe_beyond.reporting.figures.plots import Chart, finish
from moe_beyond.reporting.names import Look

SPENT = {"compute_ms": "computing or predicting", "stall_ms": "waiting for experts"}
SPENT_LOOKS = (Look("computing or predicting", "@sky", [1, 0]), Look("waiting for experts", "@vermilion", [1, 0]))
_ROW = 16  # CSS pixels a layer


def tokens(per_token: pl.DataFrame) -> Chart:
    """Milliseconds of each token as a stacked bar, computing and waiting.

    Args:
        per_token: Columns position, token_text, compute_ms, stall_ms, demand_loads, prefetches_in_time,
            prefetches_late, prefetches_useless, evictions.
    """
    long = per_token.unpivot(
        on=list(SPENT), index=[name for name in per_token.columns if name not in SPENT], variable_name="spent"
    ).with_columns(pl.col("spent").replace_strict(SPENT), order=pl.col("spent") == "stall_ms")
    tooltip = [
        alt.Tooltip("position:O", title="token"),
        alt.Tooltip("token_text:N", title="text"),
        alt.Tooltip("spent:N", title="spent"),
        alt.Tooltip("value:Q", title="ms", format=".2f"),
        alt.Tooltip("demand_loads:Q", title="loads on demand"),
        alt.Tooltip("prefetches_in_time:Q", title="prefetches in time"),
        alt.Tooltip("prefetches_late:Q", title="prefetches late"),
        alt.Tooltip("prefetches_useless:Q", title="prefetches useless"),
    ]
    chart = (
        alt.Chart(long)
        .mark_bar()
        .encode(
            x=alt.X(
                "position:O",
                title="token of the prompt",
                axis=alt.Axis(labelOverlap=True, labelAngle=0, ticks=False),
                scale=alt.Scale(paddingInner=0.15),
            ),
            y=alt.Y("sum(value):Q", title="ms", stack="zero"),
            color=alt.Color(
                "spent:N",
                scale=alt.Scale(domain=list(SPENT.values()), range=[look.colour for look in SPENT_LOOKS]),
            ),
            order=alt.Order("order:Q"),
            tooltip=tooltip,
        )
    )
    return finish(chart, 240)


def layers(events: pl.DataFrame) -> Chart:
    """Tokens by layers: how long each event waited.

    Args:
        events: Rows of timeline.csv of one prompt, policy and device.
    """
    kept = ["position", "layer", "token_text", "stall_ms", "demand_loads", "prefetches_in_time", "prefetches_late"]
    kept += ["prefetches_useless", "evictions"]
    frame = events.select(kept).with_columns(pl.col("stall_ms").round(3))
    axis = alt.Axis(labelOverlap=True, labelAngle=0, ticks=False)
    base = alt.Chart(frame).encode(
        x=alt.X("position:O", title="token of the prompt", axis=axis),
        y=alt.Y("layer:O", title="layer", axis=alt.Axis(labelOverlap=True)),
        tooltip=[
            alt.Tooltip("position:O", title="token"),
            alt.Tooltip("token_text:N", title="text"),
            alt.Tooltip("layer:O"),
            alt.Tooltip("stall_ms:Q", title="waited, ms", format=".2f"),
            alt.Tooltip("demand_loads:Q", title="loads on demand"),
            alt.Tooltip("prefetches_in_time:Q", title="prefetches in time"),
            alt.Tooltip("prefetches_late:Q", title="prefetches late"),
            alt.Tooltip("prefetches_useless:Q", title="prefetches useless"),
            alt.Tooltip("evictions:Q", title="evicted"),
        ],
    )
    waited = base.mark_rect().encode(
        color=alt.Color(
            "stall_ms:Q",
            title="waited, ms",
            scale=alt.Scale(range="heatmap", interpolate="lab", domainMin=0),
            legend=alt.Legend(type="gradient", gradientLength=220, titleLimit=240),
        )
    )
    height = max(120, min(520, _ROW * frame["layer"].n_unique()))
    return finish(waited, height)
