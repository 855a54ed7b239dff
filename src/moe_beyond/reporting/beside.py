"""A model among others: a table for the terminal, and LRU's hit rates as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moe_beyond.assess.known import SHOWN_SHARES, KnownCurve
from moe_beyond.files import replacing
from moe_beyond.reporting.figures.lines import Axis, curves
from moe_beyond.reporting.figures.theme import figure_svg, svg_png
from moe_beyond.reporting.names import looks

_WIDTH, _SCALE = 720, 2.0


def draw(known: Sequence[KnownCurve], path: Path) -> None:
    """Write the hit rates of LRU over the share of the experts that its cache holds, a line a model, as SVG or PNG."""
    frame = pl.concat(
        pl.DataFrame(
            {
                "series": [curve.model] * len(curve.shares_C),
                "capacity_fraction": curve.shares_C,
                "hit_rate": curve.hit_rates_C,
            }
        )
        for curve in known
    )
    figure = curves(
        "beside",
        "Hit rate of LRU over all layers, every token replayed as a decoded one",
        frame,
        looks([curve.model for curve in known]),
        x=Axis("capacity_fraction", "share of the experts in fast memory", "percent", whole=True),
        y=Axis("hit_rate", "hit rate", "percent", whole=True),
    )
    svg = figure_svg(figure, _WIDTH)
    with replacing(path) as temporary:
        temporary.write_bytes(svg.encode() if path.suffix == ".svg" else svg_png(svg, _SCALE))


def print_beside(rows: Sequence[dict[str, Any]]) -> None:
    """Print what `beside_table` made."""
    table = Table(box=None, pad_edge=False, title="LRU's hit rate by share of the experts in fast memory")
    for heading in ("model", "verdict", "experts"):
        table.add_column(heading, overflow="fold")
    for heading in ("tokens", *(f"{share:.0%}" for share in SHOWN_SHARES)):
        table.add_column(heading, justify="right")
    for row in rows:
        shape = f"{row['num_layers']} x {row['num_experts']}, top-{row['top_k']}"
        rates = [f"{value:.0%}" for name, value in row.items() if name.startswith("lru")]
        table.add_row(escape(row["model"]), row["verdict"] or "", shape, f"{row['tokens']:,}", *rates)
    Console().print(table)
