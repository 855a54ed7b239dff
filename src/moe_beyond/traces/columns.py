"""Columns of any length: in memory while they are short, beyond that mapped from a file without a name.

So what a trace takes of the memory is bounded by `MOE_BEYOND_MEMORY_MIB`, not by its length. The file lies in the
folder for temporary files (`TMPDIR`), which needs the room, and is gone with the process.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError

VARIABLE = "MOE_BEYOND_MEMORY_MIB"
_DEFAULT_MIB, _COLUMNS = 512, 8
_BYTES_OF_A_CHOICE = 32
"""What working on an expert choice takes: its event's members, their offsets, comparisons."""


def memory_bytes() -> int:
    """About how many bytes the columns and the pieces of a trace may take together.

    Raises:
        InputError: The environment's `MOE_BEYOND_MEMORY_MIB` is no whole number from 1 on.
    """
    given = os.environ.get(VARIABLE, str(_DEFAULT_MIB))
    if not (given.isascii() and given.isdecimal() and len(given) <= 9 and int(given)):
        raise InputError(f"{VARIABLE}: {given!r:.40}; give whole MiB, at least 1")
    return int(given) * 2**20


class Column:
    """A column on its way: parts are appended, one after another."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._parts: list[npt.NDArray[Any]] = []
        self._file: IO[bytes] | None = None
        self._shape: tuple[int, ...] = ()
        self._limit = memory_bytes() // _COLUMNS

    def append(self, values: npt.NDArray[Any]) -> None:
        """Add values at the end, cast to the column's dtype without a check.

        Raises:
            ValueError: Their shape is another but for the first axis.
        """
        part: npt.NDArray[Any] = np.asarray(values).astype(self._dtype, copy=False)
        if self._shape and part.shape[1:] != self._shape[1:]:
            raise ValueError(f"a part of shape {part.shape} in a column of {self._shape}")
        self._shape = (self._shape[0] + len(part) if self._shape else len(part), *part.shape[1:])
        self._parts.append(part)
        if self._file is None and math.prod(self._shape) * self._dtype.itemsize > self._limit:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - the mapping needs it until the column is gone
        if self._file is not None:
            for one in self._parts:
                one.tofile(self._file)
            self._parts = []

    def array(self) -> npt.NDArray[Any]:
        """All of it. Raises ValueError if nothing was appended."""
        if self._file is None:
            return self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts)
        self._file.flush()
        return np.memmap(self._file, self._dtype, "r", shape=self._shape)


def most_choices() -> int:
    """Expert choices that may be worked on at once."""
    return memory_bytes() // _BYTES_OF_A_CHOICE


def slices(num_tokens: int, choices: int) -> Iterator[slice]:
    """Consecutive slices that cover the tokens, each of so many as may be worked on at once, at least one.

    Args:
        num_tokens: Tokens to cover.
        choices: Expert choices of a token, layers x top-k.
    """
    step = max(1, most_choices() // choices)
    for start in range(0, num_tokens, step):
        yield slice(start, min(start + step, num_tokens))


def forget(*columns: npt.NDArray[Any] | None) -> None:
    """Give back the pages of mapped columns that were read; reading them again maps them again."""
    for column in columns:
        mapped = getattr(column, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
