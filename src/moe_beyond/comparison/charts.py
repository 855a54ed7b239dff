"""Hit rates over capacity of several states, drawn over each other."""

from __future__ import annotations

import re
from collections.abc import Sequence

import altair as alt
import polars as pl
import vl_convert

from moe_beyond.comparison.tables import BOUND, LRU
from moe_beyond.reporting import theme
from moe_beyond.reporting.names import label
from moe_beyond.reporting.plots import Chart

_COLOURS = ("@blue", "@vermilion", "@green", "@purple", "@orange", "@teal", "@wine")
_WIDTH, _HEIGHT = 640, 320
_VEGA_LITE = "6.4"  # what Altair 6 writes
_STATES = alt.Legend(orient="top", symbolOpacity=1, symbolType="square", symbolSize=90)
_DASHES = ([1, 0], [6, 3], [2, 3])


def shown_policies(curves: pl.DataFrame) -> list[str]:
    """The predictor's policy of the highest mean hit rate in any state, then LRU and Belady's bound, where replayed."""
    learned = curves.filter(~pl.col("policy").is_in([LRU, BOUND]))
    best = (
        learned.group_by("policy").agg(pl.col("hit_rate").mean()).sort("hit_rate", "policy", descending=[True, False])
    )
    present = set(curves["policy"].to_list())
    return [*best["policy"].to_list()[:1], *(policy for policy in (LRU, BOUND) if policy in present)]


def overlay(curves: pl.DataFrame, split: str, states: Sequence[str]) -> Chart:
    """One split: a colour a state, a dash a policy, and a band of the 95 % interval around the predictor's line.

    Args:
        curves: From `tables.curves`.
        split: Whose rows to draw.
        states: In the order of the legend.
    """
    policies = shown_policies(curves)
    names = [label(policy) for policy in policies]
    frame = curves.filter((pl.col("split") == split) & pl.col("policy").is_in(policies)).with_columns(
        pl.col("policy").replace_strict(dict(zip(policies, names, strict=True))).alias("kind")
    )
    colour = alt.Color(
        "state:N",
        legend=_STATES,
        scale=alt.Scale(domain=list(states), range=[_COLOURS[i % len(_COLOURS)] for i in range(len(states))]),
    )
    x = alt.X("capacity_fraction:Q", title="capacity, share of the model's experts", axis=alt.Axis(format=".0%"))
    y = alt.Y("hit_rate:Q", title="hit rate", axis=alt.Axis(format=".0%"), scale=alt.Scale(domain=[0, 1]))
    dash = alt.StrokeDash(
        "kind:N",
        scale=alt.Scale(domain=names, range=list(_DASHES[: len(names)])),
        legend=alt.Legend(symbolType="stroke"),
    )
    band = (
        alt.Chart(frame.filter(pl.col("policy") == policies[0]))
        .mark_area(opacity=0.18)
        .encode(x=x, y=alt.Y("hit_rate_low:Q", title="hit rate"), y2="hit_rate_high:Q", color=colour)
    )
    lines = (
        alt.Chart(frame).mark_line(point=alt.OverlayMarkDef(size=26)).encode(x=x, y=y, color=colour, strokeDash=dash)
    )
    return alt.layer(band, lines).properties(width=_WIDTH, height=_HEIGHT)


def svg(chart: Chart, mode: theme.Mode) -> str:
    """A chart as SVG text in the colours of a mode, the same text for the same chart."""
    spec = chart.to_dict()
    spec["config"] = theme.config()
    drawn: str = vl_convert.vegalite_to_svg(theme.paint(spec, mode), vl_version=_VEGA_LITE)
    # the library numbers ids through all that it has drawn
    found: dict[str, str] = {}
    return re.sub(
        r'(?<=["#])(gradient_|clip)\d+', lambda at: found.setdefault(at[0], f"{at[1]}{mode}{len(found)}"), drawn
    )
