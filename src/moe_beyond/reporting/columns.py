"""Columns of the page's tables: texts.yaml has their headings, and how the cells of each are written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from moe_beyond.reporting.names import kind, label
from moe_beyond.reporting.text import (
    Cell,
    Row,
    bounds,
    charged,
    number,
    of,
    percent,
    points,
    signed,
    spread,
    texts,
    token,
    words,
)


def capacity(row: Row) -> str:
    """The capacity of a row: `32 experts (10 %)`."""
    return f"{number(row['capacity_experts'])} experts ({percent(row['capacity_fraction'], 0)})"


_FORMS: dict[str, Callable[[str], Cell]] = {
    "text": words,
    "label": lambda column: lambda row: label(row[column]),
    "token": lambda column: lambda row: token(row[column]),
    "number": of,
    "number_unless_0": lambda column: lambda row: number(row[column] or None),
    "percent": partial(of, form=percent),
    "percent_unless_0": lambda column: lambda row: percent(row[column] or None, 2),
    "interval": spread,
    "percent_interval": partial(spread, form=percent),
    "difference": lambda column: lambda row: f"{signed(row[column])} {bounds(row, column)}",
    "points": lambda column: lambda row: f"{points(row[column])} {bounds(row, column, percent)}",
    "capacity": lambda _: capacity,
    "charged": lambda _: charged,
    "kind": lambda _: kind,
}
"""By name, the cell of a column; some need several columns of a row and no name of one."""


def cells(table: str, **values: object) -> dict[str, Cell]:
    """The cells of a table by heading.

    Args:
        table: Its key under `tables` in texts.yaml.
        values: What the braces of its headings hold.
    """
    found: dict[str, Cell] = {}
    for heading, written in texts()["tables"][table].items():
        form, _, column = written.partition(" ")
        found[heading.format(**values)] = _FORMS[form](column)
    return found
