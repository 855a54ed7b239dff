"""Cells and sentences: how numbers are written, and the page's fixed words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TEMPLATES = Path(__file__).with_name("templates")
MISSING = "\u2013"
_SHARES = ("chance", "fraction", "locality", "overlap", "rate", "ratio", "share", "skew")
Row = Mapping[str, Any]
Format = Callable[[float | None], str]
Cell = Callable[[Row], str]
"""A cell of a table, written from a row."""


@cache
def texts() -> dict[str, Any]:
    """The page's fixed words, from texts.yaml."""
    found: dict[str, Any] = yaml.safe_load((TEMPLATES / "texts.yaml").read_text(encoding="utf-8"))
    return found


def number(value: float | None, significant: int = 3) -> str:
    """A plain number: counts in full with separators, others to `significant` digits."""
    if value is None:
        return MISSING
    if float(value).is_integer():
        return f"{int(value):,}".replace("-", "\u2212")
    if abs(value) < 1e-3:
        return f"{value:.{significant - 1}e}".replace("-", "\u2212")  # a hyphen would let the line break
    return f"{value:,.{max(0, significant - 1 - math.floor(math.log10(abs(value))))}f}".replace("-", "\u2212")


def percent(share: float | None, digits: int = 1) -> str:
    """`0.612` as `61.2 %`."""
    return MISSING if share is None else f"{100 * share:.{digits}f}\u00a0%".replace("-", "\u2212")


def signed(value: float | None) -> str:
    """A difference with its sign."""
    return MISSING if value is None else ("+" if value > 0 else "") + number(value)


def points(value: float | None) -> str:
    """A difference of two shares with its sign, in percentage points."""
    return MISSING if value is None else f"{100 * value:+.1f}\u00a0points".replace("-", "\u2212")


def bounds(row: Row, column: str, form: Format = number) -> str:
    """The 95 % interval that stands beside a column: `[41.7, 42.8]`; empty where there is none."""
    ends = [row.get(f"{column}_{end}") for end in ("low", "high")]
    return "" if None in ends else f"[{', '.join(map(form, ends))}]".replace(" ", "\u00a0")


def of(column: str, form: Format = number) -> Cell:
    """The cell of a column."""
    return lambda row: form(row[column])


def spread(column: str, form: Format = number) -> Cell:
    """The cell of a column with its interval."""
    return lambda row: f"{form(row[column])} {bounds(row, column, form)}".strip()


def words(column: str) -> Cell:
    """The cell of a column of text."""
    return lambda row: MISSING if row[column] is None else str(row[column])


def charged(row: Row) -> str:
    """The latency charged to a policy's predictor in milliseconds, and the break-even latency where it is known."""
    parts = {
        "token_step_ms": "{} a token",
        "layer_step_ms": "{} a layer",
        "break_even_token_step_ms": "break\u2011even {} a token",
    }
    charges = [text.format(number(row[name])).replace(" ", "\u00a0") for name, text in parts.items() if row.get(name)]
    return ", ".join(charges) or MISSING


def plain(name: str, value: object) -> str:
    """A fact: a share where its name says so, else a number or text."""
    if isinstance(value, float) and name.rsplit(".", 1)[-1].rsplit("_", 1)[-1] in _SHARES:
        return percent(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    return MISSING if value is None else str(value)


def listed(items: Sequence[str], most: int = 6) -> str:
    """`a, b and c`; a long list ends in how many more there are."""
    shown = list(items[:most])
    if len(items) > most:
        return f"{', '.join(shown)} and {len(items) - most} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def token(text: str | None) -> str:
    """A token as a reader can see it: blanks and line ends shown."""
    if not text:
        return MISSING
    return text.replace("\u0120", "\u2423").replace("\u010a", "\u23ce").replace(" ", "\u2423").replace("\n", "\u23ce")
