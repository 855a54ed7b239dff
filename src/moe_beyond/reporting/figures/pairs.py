"""Figures of experts that are used together. Shape suffix: E experts."""

from __future__ import annotations

import altair as alt
import numpy as np
import polars as pl

from moe_beyond.reporting.figures.plots import Chart, finish
from moe_beyond.reporting.names import Look

_MOST_LIFT = 8.0  # beyond this every cell has the strongest colour: a few extreme pairs would pale all others
_HEAT_HEIGHT = 420


def together(pairs: pl.DataFrame, layer: int) -> Chart:
    """Experts by experts of one layer: how many times as often as by chance a token uses both.

    Args:
        pairs: Every pair of the layer once, columns expert, other, tokens, lift.
        layer: The layer's number.
    """
    turned = pairs.select(expert="other", other="expert", tokens="tokens", lift="lift")
    both = pl.concat([pairs.select("expert", "other", "tokens", "lift"), turned])
    order = _alike_side_by_side(both, "expert", "other")
    named = {"expert": f"expert of layer {layer}", "other": "another expert of the same layer"}
    return _heat(both, order, order, named)


def onward(pairs: pl.DataFrame, layer: int, next_layer: int) -> Chart:
    """Experts of one layer by those of the next: how many times as often as by chance a token uses both.

    Args:
        pairs: Columns expert, next_expert, tokens, probability, lift.
        layer: Number of the layer of the rows.
        next_layer: Number of the layer of the columns.
    """
    rows = _alike_side_by_side(pairs, "expert", "next_expert")
    columns = _alike_side_by_side(pairs, "next_expert", "expert")
    named = {"expert": f"expert of layer {layer}", "next_expert": f"expert of layer {next_layer}"}
    return _heat(pairs, rows, columns, named)


def _heat(pairs: pl.DataFrame, rows: list[int], columns: list[int], named: dict[str, str]) -> Chart:
    down, across = named
    kept = [name for name in (down, across, "tokens", "probability", "lift") if name in pairs.columns]
    # thousands of cells travel in the page: no more digits than a colour or a tooltip can show
    frame = pairs.select(kept).with_columns(pl.col("lift").round(2))
    if "probability" in kept:
        frame = frame.with_columns(pl.col("probability").round(4))
    axis = alt.Axis(labelOverlap=True, ticks=False, labelAngle=0)
    tooltip = [alt.Tooltip(f"{down}:O", title=named[down]), alt.Tooltip(f"{across}:O", title=named[across])]
    tooltip.append(alt.Tooltip("tokens:Q", title="tokens that use both", format=","))
    if "probability" in kept:
        tooltip.append(alt.Tooltip("probability:Q", title="chance of the next, given the first", format=".1%"))
    tooltip.append(alt.Tooltip("lift:Q", title="times as often as by chance", format=".2f"))
    return finish(
        alt.Chart(frame)
        .mark_rect()
        .encode(
            x=alt.X(f"{across}:O", title=named[across], sort=columns, axis=axis),
            y=alt.Y(f"{down}:O", title=named[down], sort=rows, axis=axis),
            color=alt.Color(
                "lift:Q",
                title="times as often as by chance",
                scale=alt.Scale(range="heatmap", interpolate="lab", domain=[0, _MOST_LIFT], clamp=True),
                legend=alt.Legend(type="gradient", gradientLength=220, titleLimit=240),
            ),
            tooltip=tooltip,
        ),
        _HEAT_HEIGHT,
    )


def _alike_side_by_side(pairs: pl.DataFrame, of: str, by: str) -> list[int]:
    """Values of column `of`, ordered so that those with alike rows of lift are neighbours and groups can be seen.

    The order is that of the leading singular vector of the centred logarithms of lift.
    """
    wide = pairs.pivot(by, index=of, values="lift", aggregate_function="first").sort(of).fill_null(1.0)
    names: list[int] = wide[of].to_list()
    logs = np.log1p(wide.drop(of).to_numpy().astype(np.float64))
    vectors, _, _ = np.linalg.svd(logs - logs.mean(axis=0), full_matrices=False)
    leading = vectors[:, 0] * (1 if vectors[np.abs(vectors[:, 0]).argmax(), 0] >= 0 else -1)
    return [names[place] for place in np.argsort(leading.round(9), kind="stable")]


def bits_looks(measures: dict[str, str]) -> tuple[Look, ...]:
    """Looks of the lines of `bits_by_layer`."""
    looks = (("@blue", [1, 0]), ("@vermilion", [6, 3]), ("@grey", [2, 2]))
    return tuple(Look(words, colour, dash) for words, (colour, dash) in zip(measures.values(), looks, strict=False))


def bits_by_layer(layers: pl.DataFrame, measures: dict[str, str]) -> Chart:
    """Bits that an expert tells about another, over layers.

    Args:
        layers: Rows of layers.csv.
        measures: Columns to draw, three at most, with what a reader sees.
    """
    looks = bits_looks(measures)
    long = layers.unpivot(on=list(measures), index="layer", variable_name="measure", value_name="bits")
    long = long.drop_nulls("bits").with_columns(pl.col("measure").replace_strict(measures))
    domain = list(measures.values())
    base = alt.Chart(long).encode(
        x=alt.X(
            "layer:Q", title="layer", axis=alt.Axis(format="d", tickMinStep=1), scale=alt.Scale(zero=False, nice=False)
        ),
        y=alt.Y("bits:Q", title="bits", scale=alt.Scale(zero=True)),
        color=alt.Color("measure:N", scale=alt.Scale(domain=domain, range=[look.colour for look in looks])),
        tooltip=["layer:O", "measure:N", alt.Tooltip("bits:Q", format=".3f")],
    )
    dash = alt.StrokeDash("measure:N", scale=alt.Scale(domain=domain, range=[look.dash for look in looks]))
    return finish(alt.layer(base.mark_line().encode(strokeDash=dash), base.mark_point(size=30)))
