"""The comparison as one self-contained HTML page, and as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
import polars as pl
from markupsafe import Markup
from rich.console import Console
from rich.table import Column, Table

from moe_beyond.comparison.charts import overlay, shown_policies, svg
from moe_beyond.comparison.states import State
from moe_beyond.comparison.tables import curves, differing_params, headline
from moe_beyond.files import replacing
from moe_beyond.reporting import theme
from moe_beyond.reporting.names import label
from moe_beyond.reporting.text import MISSING, percent

_TEMPLATES = Path(__file__).with_name("templates")


def write_page(path: Path, states: Sequence[State]) -> None:
    """Write the page: no script, no network, light and dark.

    Args:
        path: The HTML file.
        states: Two or more.
    """
    drawn = curves(states)
    splits = [] if drawn.height == 0 else drawn["split"].unique(maintain_order=True).to_list()
    names = [state.name for state in states]
    charts = []
    for split in splits:
        chart = overlay(drawn, split, names)
        pictures = {mode: Markup(svg(chart, mode)) for mode in ("light", "dark")}  # noqa: S704 - drawn here, not input
        charts.append({"title": label(split), "pictures": pictures, "rows": _capacities(drawn, split, names)})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    html = environment.get_template("comparison.html.j2").render(
        states=states,
        params=differing_params(states),
        headline=headline(states),
        charts=charts,
        policy=label(shown_policies(drawn)[0]) if drawn.height else "",
        colours=theme.COLOURS,
        font=theme.FONT,
        missing=MISSING,
    )
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def print_tables(states: Sequence[State], page: Path) -> None:
    """The same on the terminal."""
    console = Console()
    names = [state.name for state in states]
    for state in states:
        console.print(f"{state.name}: {state.about}")
        for reason in state.missing.values():
            console.print(f"  not there: {reason}")
    differing = Table(
        Column("parameter", overflow="fold"), *names, title="Parameters that differ", title_justify="left"
    )
    for key, values in differing_params(states):
        differing.add_row(key, *(MISSING if value is None else value for value in values))
    # what a row is of must be readable in a narrow terminal too
    numbers = Table(
        Column("number", overflow="fold", min_width=24),
        *names,
        title="Headline, with 95 % intervals by prompt",
        title_justify="left",
    )
    for row in headline(states):
        numbers.add_row(row.title, *(MISSING if cell is None else cell.text for cell in row.cells))
    console.print(differing if differing.row_count else "No parameter differs.")
    console.print(numbers)
    console.print(f"The curves: {page}")


def _capacities(drawn: pl.DataFrame, split: str, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The predictor's line as text: capacity, then each state's hit rate."""
    policy = shown_policies(drawn)[0]
    part = drawn.filter((pl.col("split") == split) & (pl.col("policy") == policy))
    cells = {(row["capacity_fraction"], row["state"]): row["hit_rate"] for row in part.iter_rows(named=True)}
    shares = sorted({share for share, _ in cells})
    return [(percent(share), *(percent(cells.get((share, name))) for name in names)) for share in shares]
