"""Cells of CSV files with what others wrote, such as tokens and prompt ids: a spreadsheet must not compute them.

Quotes do not keep a spreadsheet from reading `=HYPERLINK(...)` as a formula; a character before it does. The one here
is invisible and in no token, so that reading can tell it from the text: apostrophes before `=` and `-` are in many.
"""

from __future__ import annotations

GUARD = "\u2060"
"""WORD JOINER."""
_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def guarded(text: str) -> str:
    """The text as a cell that no spreadsheet computes; most texts are that already."""
    return GUARD + text if text.startswith((*_BEGINS_FORMULA, GUARD)) else text


def plain(cell: str) -> str:
    """The text of a cell that `guarded` wrote, or of one that it did not need to change."""
    return cell[1:] if cell[:1] == GUARD and cell[1:].startswith((*_BEGINS_FORMULA, GUARD)) else cell
