"""Numbers as a reader meets them, with units, and sentences made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

_NBSP = "\u00a0"
_MINUS = "\u2212"
MISSING = "\u2013"


def percent(share: float | None, digits: int = 1) -> str:
    """`0.612` as `61.2 %`."""
    return MISSING if share is None else f"{100 * share:.{digits}f}{_NBSP}%"


def change(share: float, digits: int = 1) -> str:
    """A relative change with its sign: `0.05` as `+5.0 %`."""
    return f"{100 * share:+.{digits}f}{_NBSP}%".replace("-", _MINUS)


def points(difference: float, digits: int = 1) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return f"{100 * difference:+.{digits}f}{_NBSP}points".replace("-", _MINUS)


def signed(difference: float, digits: int = 2) -> str:
    """A difference of two shares in percentage points, without the unit."""
    return f"{100 * difference:+.{digits}f}".replace("-", _MINUS)


def interval(low: float | None, high: float | None, digits: int = 1) -> str:
    """`[60.1, 62.3]` in per cent; empty where the table has none."""
    if low is None or high is None:
        return ""
    return f"[{100 * low:.{digits}f},{_NBSP}{100 * high:.{digits}f}]".replace("-", _MINUS)


def number(value: float | None, significant: int = 3) -> str:
    """A plain number: counts in full with separators, others to `significant` digits."""
    if value is None:
        return MISSING
    if float(value).is_integer():
        return f"{int(value):,}"
    if abs(value) < 1e-3:
        return f"{value:.{significant - 1}e}"
    return f"{value:,.{max(0, significant - 1 - math.floor(math.log10(abs(value))))}f}"


def mib(value: float | None) -> str:
    """MiB to three digits."""
    return MISSING if value is None else f"{number(value)}{_NBSP}MiB"


def size(num_bytes: float | None) -> str:
    """Bytes in the unit that fits."""
    if num_bytes is None:
        return MISSING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024 or unit == "GiB":
            return f"{num_bytes:.0f}{_NBSP}{unit}" if unit == "B" else f"{num_bytes:.2f}{_NBSP}{unit}"
        num_bytes /= 1024
    raise AssertionError("the last unit always returns")


def listed(items: Sequence[str], most: int = 6) -> str:
    """`a, b and c`; a long list ends in how many more there are."""
    shown = list(items[:most])
    if len(items) > most:
        return f"{', '.join(shown)} and {len(items) - most} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
