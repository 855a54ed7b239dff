"""Light and dark: colours by token, and Vega's configuration for each.

Charts are built once with colour tokens such as `@blue`; `paint` (and its twin in report.js) puts a theme's colours in.
Series colours after Okabe and Ito (colour-blind safe), lightened for the dark page.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

Mode = Literal["light", "dark"]

COLOURS: dict[Mode, dict[str, Any]] = {
    "light": {
        "page": "#ffffff",
        "ink": "#1c2430",
        "muted": "#5a6472",
        "line": "#e3e7ec",
        "blue": "#0068ac",
        "vermilion": "#d1550a",
        "green": "#00875f",
        "orange": "#b97a00",
        "purple": "#b1578d",
        "sky": "#3d9bd4",
        "wine": "#7d2248",
        "teal": "#2d8f8b",
        "grey": "#a3abb5",
        "ramp": ["#f4f7fa", "#d3e3f0", "#9cc3de", "#5a9bc8", "#21699f", "#0b3f6b"],
    },
    "dark": {
        "page": "#14181d",
        "ink": "#e8ecf1",
        "muted": "#a2acb8",
        "line": "#2c343d",
        "blue": "#5cb3f2",
        "vermilion": "#ff8b4d",
        "green": "#3cc79a",
        "orange": "#f0b73e",
        "purple": "#e59ac6",
        "sky": "#9bd4fb",
        "wine": "#e0698f",
        "teal": "#72d3ce",
        "grey": "#6f7a86",
        "ramp": ["#1a2027", "#1d3a52", "#23608c", "#3a8bc2", "#79bbe6", "#cfe8fb"],
    },
}

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'

# colours here are tokens as in the charts
_CONFIG: dict[str, Any] = {
    "background": None,
    "font": FONT,
    "aria": False,  # the page gives each chart one text; hundreds of unnamed marks help nobody
    "view": {"stroke": None},
    "range": {"heatmap": "@ramp"},
    "axis": {
        "labelColor": "@muted",
        "titleColor": "@muted",
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titlePadding": 8,
        "labelPadding": 6,
        "gridColor": "@line",
        "domain": False,
        "ticks": False,
        "tickCount": 5,
        "labelFlush": False,
    },
    "axisX": {
        "grid": False,
        "domain": True,
        "domainColor": "@grey",
        "ticks": True,
        "tickColor": "@grey",
        "tickSize": 4,
    },
    "legend": {
        "orient": "bottom",
        "title": None,
        "labelColor": "@ink",
        "titleColor": "@muted",
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "labelLimit": 260,
        "symbolType": "stroke",
        "symbolSize": 500,
        "symbolStrokeWidth": 2.5,
        "columns": 4,
        "columnPadding": 12,
        "offset": 10,
    },
    "line": {"strokeWidth": 2.25, "strokeCap": "round", "strokeJoin": "round"},
    "point": {"filled": True, "size": 36},
    "style": {
        "mark-rule": {"color": "@muted", "strokeWidth": 1, "strokeDash": [3, 3]},
        "mark-text": {"color": "@muted", "fontSize": 11.5, "align": "left", "baseline": "top", "dx": 5},
        "ring": {"filled": False, "color": "@ink", "strokeWidth": 2, "size": 260, "opacity": 1},
    },
}


def config() -> dict[str, Any]:
    """Vega configuration with colour tokens, the same for both modes."""
    return _CONFIG


def paint(spec: dict[str, Any], mode: Mode) -> dict[str, Any]:
    """Replace every string that is a colour token by that colour of `mode`."""
    colours = COLOURS[mode]

    def colour(match: re.Match[str]) -> str:
        return json.dumps(colours[match[1]])

    painted: dict[str, Any] = json.loads(re.sub(r'"@([a-z]+)"', colour, json.dumps(spec)))
    return painted
