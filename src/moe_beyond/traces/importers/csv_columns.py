"""Columns of a CSV file, read strictly: every complaint names the file and the row.

Row 1 is the header, as a spreadsheet shows it; a quoted token may contain line breaks, so a row is not a line.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError

_INT32_DIGITS = 9


def read_columns(data: bytes, wanted: Sequence[str], where: str) -> dict[str, tuple[str, ...]]:
    """Read the wanted columns of a CSV with a header; others are ignored.

    Python's csv module, not a faster one: token strings hold lone quotes, commas, carriage returns and line breaks.

    Raises:
        InputError: Not UTF-8, a broken quote, a missing column, a row of another length, or no rows.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    rows: list[list[str]] = []
    try:
        rows.extend(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise InputError(f"{where}: row {len(rows) + 1}: {error}; quote the field as RFC 4180 says") from error
    header = rows[0] if rows else []
    for name in wanted:
        if name not in header:
            raise InputError(f"{where}: row 1: column {name!r} is missing, found {header}; check the format")
    if len(rows) == 1:
        raise InputError(f"{where}: a header and no rows; remove the file")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise InputError(f"{where}: row {number}: {len(row)} fields, the header has {len(header)}; mend the row")
    columns = list(zip(*rows[1:], strict=True))
    return {name: columns[header.index(name)] for name in wanted}


def integers(cells: Sequence[str], name: str, where: str) -> npt.NDArray[np.int64]:
    """Non-negative integers of a column, int64."""
    # few distinct values in millions of rows: convert each once
    values: dict[str, int] = {}
    for cell in set(cells):
        if not re.fullmatch(rf"[0-9]{{1,{_INT32_DIGITS}}}", cell):
            row = cells.index(cell) + 2
            raise InputError(f"{where}: row {row}: {name} is {cell!r}, expected a whole number from 0")
        values[cell] = int(cell)
    return np.fromiter(map(values.__getitem__, cells), np.int64, len(cells))


def expert_lists(cells: Sequence[str], name: str, where: str, *, top_k: int, num_experts: int) -> npt.NDArray[np.int32]:
    """Lists such as `[8, 26, 56]` as int32 [rows, top_k].

    Raises:
        InputError: A cell is no list of exactly `top_k` distinct ids below `num_experts`.
    """
    joined = "\n".join(cells)
    cell_pattern = rf"\[[0-9]{{1,9}}(?:, ?[0-9]{{1,9}}){{{top_k - 1}}}\]"
    # possessive (*+): a group that may repeat a million times must keep no way back
    if joined.count("\n") >= len(cells) or not re.fullmatch(rf"{cell_pattern}(?:\n{cell_pattern})*+", joined):
        row = next(i for i, cell in enumerate(cells) if not re.fullmatch(cell_pattern, cell))
        raise InputError(f"{where}: row {row + 2}: {name} is {cells[row]!r}, expected a list of {top_k} expert ids")
    flat = np.fromstring(joined.replace("[", "").replace("]\n", ",").rstrip("]"), np.int32, sep=",")
    ids = flat.reshape(len(cells), top_k)
    if (ids >= num_experts).any():
        row, slot = (int(i[0]) for i in np.nonzero(ids >= num_experts))
        raise InputError(
            f"{where}: row {row + 2}: expert id {ids[row, slot]} in {name}, "
            f"the model has experts 0 to {num_experts - 1}; check the file and the format"
        )
    ordered = np.sort(ids, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if repeated.any():
        row = int(np.argmax(repeated))
        raise InputError(f"{where}: row {row + 2}: {name} is {cells[row]!r}, a router names an expert once")
    return ids
