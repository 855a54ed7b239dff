"""Columns of an Arrow table as checked NumPy arrays: types, missing values and ranges, before anything is cast."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moe_beyond.errors import InputError
from moe_beyond.traces.schema import TokenTexts

Kind = Literal["text", "boolean", "integer", "number"]
_IS_KIND = {
    "text": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind),
    "boolean": pa.types.is_boolean,
    "integer": pa.types.is_integer,
    "number": lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind),
}


Lists = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]
"""A column of lists: all values one after another, and the length of each list."""


class ArrowColumns:
    """A table's columns.

    Every method raises InputError if the column is missing, has values of another kind, or misses some.
    """

    def __init__(self, table: pa.Table, where: str) -> None:
        self._table = table
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._table.column_names

    def strings(self, name: str) -> tuple[str, ...]:
        """A column of text."""
        return tuple(self._checked(name, self._column(name), "text").to_pylist())

    def booleans(self, name: str) -> npt.NDArray[np.bool_]:
        """A column of true and false."""
        column = self._checked(name, self._column(name), "boolean")
        return np.asarray(column.to_numpy(zero_copy_only=False), np.bool_)

    def integers(self, name: str, dtype: type[np.integer[Any]]) -> npt.NDArray[Any]:
        """A column of whole numbers that fit `dtype`."""
        return self._cast(name, self._checked(name, self._column(name), "integer").to_numpy(), dtype)

    def integer_lists(self, name: str, dtype: type[np.integer[Any]]) -> Lists:
        """A column of lists of whole numbers that fit `dtype`."""
        values, lengths = self._lists(name, "integer")
        return self._cast(name, values.to_numpy(), dtype), lengths

    def half_lists(self, name: str) -> Lists:
        """A column of lists of numbers, rounded to float16."""
        values, lengths = self._lists(name, "number")
        with np.errstate(over="ignore"):  # too large becomes infinite, which validation names
            return values.to_numpy().astype(np.float16, copy=False), lengths

    def text_lists(self, name: str) -> tuple[TokenTexts, npt.NDArray[np.int64]]:
        """A column of lists of text, and the length of each list."""
        values, lengths = self._lists(name, "text")
        encoded = values.dictionary_encode()
        codes = np.asarray(encoded.indices.to_numpy(), np.int32)
        return TokenTexts(codes, tuple(encoded.dictionary.to_pylist())), lengths

    def _column(self, name: str) -> pa.Array:
        if name not in self:
            raise InputError(f"{self._where}: column {name!r} is missing; write the file with `moe-beyond import`")
        column = self._table.column(name).combine_chunks()
        return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column

    def _checked(self, name: str, values: pa.Array, kind: Kind) -> pa.Array:
        if not _IS_KIND[kind](values.type):
            raise InputError(f"{self._where}: column {name!r} holds {values.type}, expected {kind} values")
        if values.null_count:
            raise InputError(f"{self._where}: column {name!r} misses {values.null_count} values; fill them in")
        return values

    def _lists(self, name: str, kind: Kind) -> tuple[pa.Array, npt.NDArray[np.int64]]:
        column = self._column(name)
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise InputError(f"{self._where}: column {name!r} holds {column.type}, expected a list a prompt")
        if column.null_count:
            raise InputError(f"{self._where}: column {name!r} misses {column.null_count} lists; fill them in")
        lengths = np.diff(column.offsets.to_numpy().astype(np.int64))
        return self._checked(name, column.flatten(), kind), lengths

    def _cast(self, name: str, values: npt.NDArray[Any], dtype: type[np.integer[Any]]) -> npt.NDArray[Any]:
        limits = np.iinfo(dtype)
        if values.dtype != dtype and len(values) and not limits.min <= values.min() <= values.max() <= limits.max:
            odd = values.min() if values.min() < limits.min else values.max()
            raise InputError(f"{self._where}: {odd} in column {name!r}, expected {limits.min} to {limits.max}")
        return values.astype(dtype, copy=False)
