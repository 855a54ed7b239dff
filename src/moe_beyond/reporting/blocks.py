"""What the page is built of: sections of tables, figures and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import altair as alt
import polars as pl

from moe_beyond.reporting.names import Look
from moe_beyond.reporting.text import Cell, plain, texts
from moe_beyond.settings import flatten

Chart = alt.Chart | alt.LayerChart | alt.FacetChart


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names its row.

    Attributes:
        caption: What the rows are.
        columns: Headings.
        rows: As many cells as headings.
        chosen: Places of rows to stress.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    chosen: frozenset[int] = frozenset()
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Figure:
    """A chart with its words and its numbers.

    Attributes:
        name: Its anchor, and the name of its PNG and SVG.
        title: What is shown, over what.
        alt: The same for readers who cannot see it.
        chart: Colours as tokens, see `figures.theme`.
        table: The same numbers.
        looks: Lines of the legend that the page writes; empty: the chart has its own legend or needs none.
        note: What to know beside the title, such as the latency charged.
        wide: Takes the whole width of the page rather than half of it.
    """

    name: str
    title: str
    alt: str
    chart: Chart
    table: Table
    looks: Mapping[str, Look]
    note: str = ""
    wide: bool = False
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Text:
    """A paragraph, or a list of points under a heading; `tone` is `good`, `bad` or empty."""

    text: str = ""
    points: tuple[str, ...] = ()
    title: str = ""
    tone: str = ""
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Explorer:
    """A table for each split, device and capacity, under controls; `data` is what report.js reads."""

    data: dict[str, Any]
    first: Table
    kind: ClassVar[str] = "explorer"


@dataclass(frozen=True)
class Folded:
    """Blocks behind a line which the reader opens."""

    title: str
    blocks: tuple[Block, ...]
    kind: ClassVar[str] = "folded"


Block = Table | Figure | Text | Explorer | Folded


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: Fragment of its address.
        short: Its name in the contents.
        title: Its heading.
        lead: What to know before anything is shown.
        blocks: What it shows, in order.
        sources: Files below `reports/` that its numbers come from.
    """

    anchor: str
    short: str
    title: str
    lead: str
    blocks: tuple[Block, ...]
    sources: tuple[str, ...]

    @property
    def figures(self) -> list[Figure]:
        """The figures in order, folded ones too."""
        return _figures(self.blocks)


def _figures(blocks: Sequence[Block]) -> list[Figure]:
    found: list[Figure] = []
    for block in blocks:
        found += [block] if isinstance(block, Figure) else _figures(block.blocks) if isinstance(block, Folded) else []
    return found


def table(caption: str, frame: pl.DataFrame, cells: Mapping[str, Cell], chosen: str = "") -> Table:
    """A table of a frame.

    Args:
        caption: What the rows are.
        frame: Its rows.
        cells: By heading.
        chosen: Column that is true in rows to stress; empty: none.
    """
    rows = list(frame.iter_rows(named=True))
    stressed = frozenset(place for place, row in enumerate(rows) if chosen and row[chosen])
    return Table(caption, tuple(cells), tuple(tuple(cell(row) for cell in cells.values()) for row in rows), stressed)


def section(anchor: str, blocks: Sequence[Block], title: str = "", **values: Any) -> Section:
    """A section with its fixed words.

    Args:
        anchor: Its key in texts.yaml.
        blocks: What it shows; none: the reason stands there.
        title: Its heading, where it is not a fixed one.
        values: What the braces of its lead, or of the reason, hold.
    """
    words = texts()[anchor]
    lead = words["lead"].format(**values) if blocks and "lead" in words else ""
    shown = tuple(blocks) or (Text(words["absent"].format(**values)),)
    sources = tuple(words["sources"]) if blocks else ()
    return Section(anchor, words["short"], title or words["title"], lead, shown, sources)


def facts(caption: str, found: dict[str, Any]) -> Table:
    """Names and values, nested ones by names with dots."""
    rows = tuple((name, plain(name, value)) for name, value in flatten(found).items())
    return Table(caption, ("Name", "Value"), rows)


def folded(title: str, blocks: Sequence[Block]) -> list[Block]:
    """The blocks behind a line; nothing where there are none."""
    return [Folded(title, tuple(blocks))] if blocks else []
