"""Light and dark: charts are built once with colour tokens such as `@blue`.

`paint`, and its twin in report.js, puts a mode's colours in. Series colours are after Okabe and Ito (colour-blind
safe), lightened for the dark page.
"""

from __future__ import annotations

import json
import re
from functools import cache
from textwrap import wrap
from typing import Any

import altair as alt
import vl_convert

from moe_beyond.reporting.blocks import Chart, Figure
from moe_beyond.reporting.text import TEMPLATES

VEGA_LITE = "6.4"  # what Altair 6 writes


@cache
def theme() -> dict[str, Any]:
    """`colours` of both modes by token, and Vega's `config` with colour tokens."""
    found: dict[str, Any] = json.loads((TEMPLATES / "theme.json").read_text(encoding="utf-8"))
    return found


def paint(spec: dict[str, Any], mode: str = "light") -> dict[str, Any]:
    """Replace every string that is a colour token by that colour of a mode."""
    colours = theme()["colours"][mode]
    text = re.sub(r'"@([a-z]+)"', lambda match: json.dumps(colours[match[1]]), json.dumps(spec))
    painted: dict[str, Any] = json.loads(text)
    return painted


def chart_spec(chart: Chart) -> dict[str, Any]:
    """A chart as Vega-Lite with colour tokens and without configuration."""
    # a heat map of a large model has more rows than Altair allows unasked
    with alt.data_transformers.enable("default", max_rows=None):
        spec: dict[str, Any] = chart.to_dict()
    spec.pop("config", None)
    return spec


def figure_svg(figure: Figure, width: int) -> str:
    """The figure as SVG in light colours, its title above; `width` of the plot in CSS pixels."""
    # letters of these sizes are about so many pixels wide
    title: dict[str, Any] = {
        "text": wrap(figure.title, width // 8),
        "subtitle": wrap(figure.note, width // 6),
        "anchor": "start",
    }
    title |= {"color": "@ink", "fontSize": 15, "offset": 14, "subtitleColor": "@muted", "subtitleFontSize": 12}
    spec = chart_spec(figure.chart) | {"width": width, "padding": 16, "background": "@page", "title": title}
    svg: str = vl_convert.vegalite_to_svg(paint(spec | {"config": theme()["config"]}), vl_version=VEGA_LITE)
    # the library numbers ids through all that it has drawn, and the same figure should be the same file
    found: dict[str, str] = {}
    return re.sub(r'(?<=["#])(gradient_|clip)\d+', lambda at: found.setdefault(at[0], f"{at[1]}{len(found)}"), svg)


def svg_png(svg: str, scale: float) -> bytes:
    """A drawing as PNG, `scale` pixels per CSS pixel."""
    png: bytes = vl_convert.svg_to_png(svg, scale=scale)
    return png
