"""Curves: lines over an axis, with the table of their points and the words for those who cannot see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import altair as alt
import polars as pl

from moe_beyond.reporting.blocks import Chart, Figure, Table
from moe_beyond.reporting.names import Look
from moe_beyond.reporting.text import MISSING, number, percent

HEIGHT = 300
_POINTS, _ROWS = 160, 25  # a curve of thousands of points looks the same with these; a longer table is not read


@dataclass(frozen=True)
class Axis:
    """A column of a chart: its title, how its numbers are written, and whether its scale is logarithmic."""

    column: str
    title: str
    form: Literal["number", "percent", "count"] = "number"
    log: bool = False
    whole: bool = False

    @property
    def scale(self) -> alt.Scale:
        """From 0 to 1 where the axis is whole, from about the least value where it is logarithmic or counts."""
        if self.whole:
            return alt.Scale(domain=[0, 1])
        return alt.Scale(type="log", nice=False) if self.log else alt.Scale(zero=self.form != "count")

    @property
    def ticks(self) -> alt.Axis:
        """Its labels."""
        if self.form == "number":
            return alt.Axis(format="~g") if self.log else alt.Axis()
        return alt.Axis(format=",d", tickMinStep=1) if self.form == "count" else alt.Axis(format=".0%")

    @property
    def tooltip(self) -> alt.Tooltip:
        """Its number under the pointer."""
        form = {"number": ".3~f", "percent": ".1%", "count": ","}[self.form]
        return alt.Tooltip(f"{self.column}:Q", title=self.title, format=form)

    def write(self, value: float | None) -> str:
        """Its number in a table."""
        return percent(value) if self.form == "percent" else number(value)


def curves(
    name: str,
    title: str,
    frame: pl.DataFrame,
    looks: Mapping[str, Look],
    *,
    x: Axis,
    y: Axis,
    table: Table | None = None,
    mark: tuple[float, str] | None = None,
    note: str = "",
    wide: bool = False,
) -> Figure:
    """A line a series.

    Args:
        name: Of the figure.
        title: What is shown.
        frame: Columns `series` (a label), and those of the axes.
        looks: Of each series, in the order of the legend.
        x: Across.
        y: Up.
        table: The numbers; None: a row a value of `x`, a column a series.
        mark: A value of `x`, and what is written there.
        note: What to know beside the title.
        wide: Take the whole width of the page.
    """
    parts = {key: thin(frame.filter(series=key).sort(x.column), _POINTS) for key in looks}
    ends = [
        f"{key} from {y.write(part[y.column][0])} to {y.write(part[y.column][-1])}"
        for key, part in parts.items()
        if part.height
    ]
    alt_text = f"Line chart of {y.title} over {x.title}. From left to right: {'; '.join(ends)}."
    # later lines cover earlier ones: the first of the legend comes last
    drawn = pl.concat(list(reversed(parts.values()))).select("series", x.column, y.column)
    domain, legend = list(looks), alt.Undefined if len(looks) > 1 else None
    colours, dashes = [look.colour for look in looks.values()], [list(look.dash) for look in looks.values()]
    colour = alt.Color("series:N", scale=alt.Scale(domain=domain, range=colours), legend=legend)
    dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=domain, range=dashes), legend=legend)
    base = alt.Chart(drawn).encode(
        x=alt.X(f"{x.column}:Q", title=x.title, axis=x.ticks, scale=x.scale),
        y=alt.Y(f"{y.column}:Q", title=y.title, axis=y.ticks, scale=y.scale),
        color=colour,
        tooltip=[alt.Tooltip("series:N", title="line"), x.tooltip, y.tooltip],
    )
    # a pointer finds a large invisible point more easily than a small visible one
    layers = [base.mark_line().encode(strokeDash=dash), base.mark_point(size=260, opacity=0)]
    layers += [base.mark_point(size=30)] if max(part.height for part in parts.values()) <= _ROWS else []
    chart = alt.layer(*([_mark(*mark)] if mark else []), *layers)
    numbers = table or _pivot(title, frame, looks, x, y)
    return Figure(name, title, alt_text, finish(chart), numbers, looks if len(looks) > 1 else {}, note, wide)


def finish(chart: Chart, height: int = HEIGHT) -> Chart:
    """As wide as its container, so high."""
    return chart.properties(width="container", height=height)


def thin(frame: pl.DataFrame, points: int) -> pl.DataFrame:
    """At most so many rows, evenly spread, first and last kept."""
    if frame.height <= points:
        return frame
    return frame[sorted({round(i * (frame.height - 1) / (points - 1)) for i in range(points)})]


def _mark(value: float, text: str) -> Chart:
    mark = alt.Chart(pl.DataFrame({"x": [value], "text": [text]}))
    words = mark.mark_text(style="mark-text").encode(x="x:Q", y=alt.value(2), text="text:N")
    return alt.layer(mark.mark_rule(style="mark-rule").encode(x="x:Q"), words)


def _pivot(title: str, frame: pl.DataFrame, looks: Mapping[str, Look], x: Axis, y: Axis) -> Table:
    values = {(row["series"], row[x.column]): row[y.column] for row in frame.iter_rows(named=True)}
    places = thin(frame.select(pl.col(x.column).unique().sort()), _ROWS)[x.column].to_list()
    rows = tuple(
        (x.write(place), *(y.write(values[key, place]) if (key, place) in values else MISSING for key in looks))
        for place in places
    )
    return Table(title, (x.title, *looks), rows)
