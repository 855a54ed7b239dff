"""A CSV file read strictly: every message names the file and the row.

Row 1 is the first line, as a spreadsheet shows it; a quoted token may contain line breaks, so a row is not a line.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.sources import decode_utf8

_INT32_DIGITS = 9


@dataclass(frozen=True)
class CsvTable:
    """Columns of a file, as text.

    Attributes:
        columns: The needed columns by name, all of one length.
        where: Names the file in messages.
        first_row: Number of the first data row.
    """

    columns: dict[str, tuple[str, ...]]
    where: str
    first_row: int

    @classmethod
    def read(
        cls, data: bytes, needed: Sequence[str], where: str, *, comment: str | None = None, header: Sequence[str] = ()
    ) -> Self:
        """Read the needed columns of a CSV with a header; others are ignored.

        Python's csv module, not a faster one: token strings hold lone quotes, commas, carriage returns and line breaks.

        Args:
            data: The file, UTF-8 with or without a byte order mark.
            needed: Names that the header must hold.
            where: Names the file in messages.
            comment: Lines that begin with it, before the header, are skipped.
            header: Names of the columns of a file without a header line.

        Raises:
            InputError: Not UTF-8, a broken quote, a missing column, a row of another length, or no rows.
        """
        text = decode_utf8(data, where)
        stream = io.StringIO(text, newline="")
        first_row = 1
        while comment is not None and text.startswith(comment, stream.tell()):
            stream.readline()
            first_row += 1
        reader = csv.reader(stream, strict=True)
        row = first_row
        try:
            if not header:
                header = next(reader, [])
                first_row += 1
            _require_columns(header, needed, f"{where}: row {first_row - 1}")
            places = [header.index(name) for name in needed]
            columns: list[list[str]] = [[] for _ in needed]
            cells_once: dict[str, str] = {}  # a cell that stands a million times is kept once
            for row, cells in enumerate(reader, start=first_row):
                if len(cells) != len(header):
                    raise InputError(
                        f"{where}: row {row}: {len(cells)} fields, expected {len(header)}; correct the row"
                    )
                for column, place in zip(columns, places, strict=True):
                    column.append(cells_once.setdefault(cells[place], cells[place]))
        except csv.Error as error:
            raise InputError(f"{where}: row {row + 1}: {error}; quote the field as RFC 4180 says") from error
        if not columns[0]:
            raise InputError(f"{where}: no rows of data; remove the file")
        return cls(dict(zip(needed, map(tuple, columns), strict=True)), where, first_row)

    def at(self, index: int) -> str:
        """Name a row in a message."""
        return f"{self.where}: row {self.first_row + index}"

    def refuse(self, wrong: npt.NDArray[np.bool_], name: str, expected: str) -> None:
        """Raise InputError for the first row whose cell of a column is wrong, if there is one."""
        if wrong.any():
            index = int(np.argmax(wrong))
            cell = self.columns[name][index]
            shown = cell if cell.isalnum() else repr(cell)
            raise InputError(f"{self.at(index)}: {name} is {shown:.60}, expected {expected}")

    def integers(self, name: str) -> npt.NDArray[np.int64]:
        """Non-negative integers of a column, int64."""
        cells = self.columns[name]
        # few distinct values in millions of rows: convert each once
        values: dict[str, int] = {}
        for cell in set(cells):
            if not re.fullmatch(rf"[0-9]{{1,{_INT32_DIGITS}}}", cell):
                raise InputError(f"{self.at(cells.index(cell))}: {name} is {cell!r}, expected a whole number from 0")
            values[cell] = int(cell)
        return np.fromiter(map(values.__getitem__, cells), np.int64, len(cells))

    def weights(self, name: str) -> npt.NDArray[np.float64]:
        """Finite numbers from 0 of a column, float64."""
        numbers = np.empty(len(self.columns[name]))
        for index, cell in enumerate(self.columns[name]):
            try:
                numbers[index] = float(cell)
            except ValueError:
                numbers[index] = math.nan
            if not 0 <= numbers[index] < math.inf:
                raise InputError(f"{self.at(index)}: {name} is {cell!r}, expected a finite number from 0")
        return numbers

    def expert_lists(self, name: str, top_k: int, num_experts: int) -> npt.NDArray[np.int32]:
        """Lists such as `[8, 26, 56]` as int32 [rows, top_k].

        Raises:
            InputError: A cell is no list of exactly `top_k` distinct ids below `num_experts`.
        """
        cells = self.columns[name]
        joined = "\n".join(cells)
        cell_pattern = rf"\[[0-9]{{1,{_INT32_DIGITS}}}(?:, ?[0-9]{{1,{_INT32_DIGITS}}}){{{top_k - 1}}}\]"
        # possessive (*+): a group that may repeat a million times must keep no way back
        if joined.count("\n") >= len(cells) or not re.fullmatch(rf"{cell_pattern}(?:\n{cell_pattern})*+", joined):
            index = next(i for i, cell in enumerate(cells) if not re.fullmatch(cell_pattern, cell))
            raise InputError(f"{self.at(index)}: {name} is {cells[index]!r}, expected a list of {top_k} expert ids")
        flat = np.fromstring(joined.replace("[", "").replace("]\n", ",").rstrip("]"), np.int32, sep=",")
        ids = flat.reshape(len(cells), top_k)
        if (ids >= num_experts).any():
            index, slot = (int(i[0]) for i in np.nonzero(ids >= num_experts))
            raise InputError(
                f"{self.at(index)}: expert id {ids[index, slot]} in {name}, "
                f"the model has experts 0 to {num_experts - 1}; check the file and the format"
            )
        ordered = np.sort(ids, axis=1)
        repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if repeated.any():
            index = int(np.argmax(repeated))
            raise InputError(f"{self.at(index)}: {name} is {cells[index]!r}, a router names an expert once")
        return ids


def _require_columns(header: Sequence[str], needed: Sequence[str], where: str) -> None:
    for name in needed:
        if name not in header:
            raise InputError(f"{where}: column {name!r} is missing, found {header!s:.200}; check the format")
        if header.count(name) > 1:
            raise InputError(f"{where}: column {name!r} is there twice; remove one of them")
