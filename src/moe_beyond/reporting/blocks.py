"""What the page is built of: sections that hold figures, tables, and reasons why something is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import polars as pl

from moe_beyond.reporting.figures.plots import Chart
from moe_beyond.reporting.names import Look
from moe_beyond.reporting.text import number, percent


@dataclass(frozen=True)
class DataTable:
    """A table as text.

    Attributes:
        caption: What the rows are.
        columns: Headings; the first column names its row.
        rows: Cells, as many as there are headings.
        source: Path of the file that the numbers come from; empty for none.
        emphasis: Index of a row to stress, or None.
        wide: Takes the whole width of the page rather than half of it.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    source: str = ""
    emphasis: int | None = None
    wide: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Figure:
    """A chart with its words and its numbers.

    Attributes:
        name: File name of the PNG without its ending, and the figure's anchor.
        title: What is shown, over what.
        alt: What a reader who cannot see it needs to know: the shape and the end points.
        chart: The chart, colours as tokens.
        table: The same numbers.
        wide: Takes the whole width of the page rather than half of it.
        legend: Looks of the lines, for a legend that wraps like text; the page then hides the chart's own.
    """

    name: str
    title: str
    alt: str
    chart: Chart
    table: DataTable
    wide: bool = False
    legend: tuple[Look, ...] = ()
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Absent:
    """Something that the page would show and cannot."""

    title: str
    reason: str
    kind: ClassVar[str] = "absent"


@dataclass(frozen=True)
class Passage:
    """A paragraph, or a list of points under a heading."""

    text: str = ""
    points: tuple[str, ...] = ()
    title: str = ""
    kind: ClassVar[str] = "passage"


@dataclass(frozen=True)
class Explorer:
    """The replayed numbers by split and capacity, under controls.

    Attributes:
        data: What report.js reads; cells are texts that Python formatted, so that they equal the tables.
        first: The table for the state that the page opens with, for readers without scripts.
        sources: Paths of the files that the numbers come from.
    """

    data: dict[str, Any]
    first: DataTable
    sources: tuple[str, ...]
    kind: ClassVar[str] = "explorer"


@dataclass(frozen=True)
class Steps:
    """A table for each step of something, one at a time, under a slider.

    Attributes:
        name: What a step is.
        labels: One a step.
        tables: Cells of each step's table.
        first: The table of the step that is shown at the start, for readers without scripts.
        start: Its place.
    """

    name: str
    labels: tuple[str, ...]
    tables: tuple[tuple[tuple[str, ...], ...], ...]
    first: DataTable
    start: int
    kind: ClassVar[str] = "steps"


@dataclass(frozen=True)
class Folded:
    """Blocks that stand behind a line which the reader opens.

    Attributes:
        title: The line.
        blocks: What it hides.
        wide: Takes the whole width of the page rather than half of it.
    """

    title: str
    blocks: tuple[Block, ...]
    wide: bool = True
    kind: ClassVar[str] = "folded"


Block = DataTable | Figure | Absent | Passage | Explorer | Folded | Steps


@dataclass(frozen=True)
class Section:
    """A part of the page with an anchor; `lead` says what to conclude before anything is shown.

    Attributes:
        anchor: Fragment of its address.
        title: Heading.
        short: The heading in the contents.
        lead: A paragraph under the heading.
        blocks: What it shows, in order.
    """

    anchor: str
    short: str
    title: str
    lead: str = ""
    blocks: tuple[Block, ...] = field(default=())

    @property
    def figures(self) -> list[Figure]:
        """The figures in order, folded ones too."""
        return [figure for block in self.blocks for figure in _figures(block)]


def _figures(block: Block) -> list[Figure]:
    if isinstance(block, Folded):
        return [figure for inner in block.blocks for figure in _figures(inner)]
    return [block] if isinstance(block, Figure) else []


def wide_table(
    frame: pl.DataFrame,
    *,
    index: str,
    on: str,
    value: str,
    order: Sequence[str],
    headings: Sequence[str],
    caption: str,
    source: str,
    shares: bool,
    first: str,
) -> DataTable:
    """Rows by `index`, a column for each of `order` in the column `on`, cells from `value`.

    Args:
        frame: Long rows, at most one a pair of `index` and `on`.
        index: Column whose values name the rows.
        on: Column whose values become columns.
        value: Column of the cells.
        order: Values of `on`, in the order of the columns.
        headings: What to print above them.
        caption: The table's caption.
        source: The file that the numbers come from.
        shares: Print cells as per cent rather than as numbers.
        first: Heading of the index column.
    """
    cells = {(row[index], row[on]): row[value] for row in frame.iter_rows(named=True)}
    rows = []
    for key in frame[index].unique(maintain_order=True).to_list():
        values = (cells.get((key, name)) for name in order)
        rows.append((_key(key), *(percent(value) if shares else number(value) for value in values)))
    return DataTable(caption, (first, *headings), tuple(rows), source)


def _key(value: Any) -> str:
    if isinstance(value, float) and not value.is_integer():
        return percent(value)
    return f"{int(value):,}" if isinstance(value, int | float) else str(value)
