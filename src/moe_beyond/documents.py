"""JSON and CSV read strictly: each key and column once, nothing deeper or larger than `limits` allows."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from moe_beyond.errors import InputError, reason_of
from moe_beyond.limits import limits

if TYPE_CHECKING:
    import polars as pl

_Item = TypeVar("_Item", bound=Hashable)
# one that does not end goes to the end of the text: else each of its quotes would be tried as a beginning
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))


def repeated(items: Iterable[_Item]) -> _Item | None:
    """The first item that stands a second time; None if there is none."""
    seen = set[_Item]()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None


def is_special(path: Path) -> bool:
    """Whether a pipe, a socket or a device stands there."""
    return path.exists() and not path.is_file() and not path.is_dir()


def require_plain(path: Path) -> Path:
    """The path. Raises InputError if it is a pipe, a socket or a device, which may never end."""
    if is_special(path):
        raise InputError(f"{path}: a pipe, socket or device; give a plain file")
    return path


def read_plain(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: It is no plain file, or larger than `Limits.file_bytes`.
        OSError: It cannot be read.
    """
    size = require_plain(path).stat().st_size
    if size > limits().file_bytes:
        raise InputError(f"{path}: {size:,} bytes, more than {limits().file_bytes >> 20} MiB; split it")
    return path.read_bytes()


def load_json(text: str, where: str) -> Any:
    """A JSON document.

    Raises:
        InputError: It is none, gives a key twice, or is deeper or has longer numbers than `Limits` allows.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            twice = repeated(key for key, _ in pairs)
            raise InputError(f"{where}: key {twice!r:.60} is given twice in one object; remove one of them")
        return fields

    _require_shallow(text, where)
    try:
        return json.loads(text, object_pairs_hook=once)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0].partition(";")[0]
        raise InputError(f"{where}: not valid JSON ({reason}); fetch it again") from error


def _require_shallow(text: str, where: str) -> None:
    most = limits()
    # a line of JSON Lines is mostly shorter than what could break a rule
    if len(text) <= most.digits and text.count("[") + text.count("{") <= most.depth:
        return
    outside = _STRING.sub('""', text)
    if re.search(rf"(?<![0-9])[0-9]{{{most.digits + 1}}}", outside):
        raise InputError(f"{where}: a number of more than {most.digits} digits; correct it")
    import numpy as np  # noqa: PLC0415 - settings are read without it

    brackets = np.frombuffer(outside.encode("utf-8", "replace").translate(None, _NO_BRACKETS), np.uint8)
    opens = (brackets == ord("[")) | (brackets == ord("{"))
    if np.cumsum(np.where(opens, 1, -1)).max(initial=0) > most.depth:
        raise InputError(f"{where}: more than {most.depth} lists or objects within one another; is it damaged?")


def require_unpacked(file: IO[bytes], where: str) -> list[list[int]]:
    """Check what a Parquet file's columns unpack to before one is read: a value that repeats takes no place in it.

    The footer is read here: pyarrow ends the process where it asks a damaged one for a column.

    Returns:
        Values of each column of each row group.

    Raises:
        InputError: More than `Limits` allows, or the footer is damaged.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(0, size - 8 - length))
    footer = file.read(length)
    try:
        if length > size - 8:
            raise ValueError("too long")
        # of the file its groups, of these their columns, of these what is known of them, and of that the values
        groups = _thrift(footer, [0], 12, 0).get(4, [])
        found = [[int(column[3][5]) for column in group[1]] for group in groups]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: not readable as Parquet (its footer is damaged); fetch it again") from error
    values = sum(map(sum, found))
    # an expert's id takes one byte and more
    if values > max(limits().small_bytes, limits().ratio * size) or min(map(min, filter(None, found)), default=0) < 0:
        raise InputError(f"{where}: {size:,} bytes hold {values:,} values; no trace does, is it damaged?")
    return found


def _thrift(data: bytes, at: list[int], kind: int, depth: int) -> Any:
    """A value of Thrift's compact protocol; a struct is a dictionary by field. `at` is where it begins, then ends."""
    if depth > 16:  # Parquet's are not deeper
        raise ValueError("too deep")
    if kind == 12:
        struct, field = {}, 0
        while head := _byte(data, at):
            field = field + (head >> 4) if head >> 4 else _integer(data, at)
            # the value of a truth is its type
            struct[field] = head & 15 if head & 15 in {1, 2} else _thrift(data, at, head & 15, depth + 1)
        return struct
    if kind in {9, 10}:
        head = _byte(data, at)
        count = _unsigned(data, at) if head >> 4 == 15 else head >> 4
        if count > len(data) - at[0]:  # none takes less than a byte
            raise ValueError("too long")
        return [_thrift(data, at, head & 15, depth + 1) for _ in range(count)]
    if kind in {4, 5, 6}:
        return _integer(data, at)
    if kind in {1, 2, 3}:
        return _byte(data, at)
    if kind not in {7, 8}:  # Parquet has no others
        raise ValueError("no such type")
    length = 8 if kind == 7 else _unsigned(data, at)
    at[0] += length
    return None


def _byte(data: bytes, at: list[int]) -> int:
    at[0] += 1
    return data[at[0] - 1]


def _unsigned(data: bytes, at: list[int]) -> int:
    value, shift = 0, 0
    while (byte := _byte(data, at)) & 128 and shift < 63:
        value, shift = value | (byte & 127) << shift, shift + 7
    return value | byte << shift


def _integer(data: bytes, at: list[int]) -> int:
    word = _unsigned(data, at)
    return (word >> 1) ^ -(word & 1)


def load_csv(path: Path, *, comment: str | None = "#", **how: Any) -> pl.DataFrame:
    """A CSV with a header.

    Args:
        path: The file, UTF-8.
        comment: Lines that begin with it are left out.
        how: Further options of `polars.read_csv`.

    Raises:
        InputError: It cannot be read, is no CSV, or has a column twice.
    """
    import polars as pl  # noqa: PLC0415

    try:
        text = read_plain(path).decode("utf-8-sig")
        lines = (line for line in text.splitlines() if line.strip() and not (comment and line.startswith(comment)))
        header = next(csv.reader([next(lines, "")]), [])
        twice = repeated(name.strip() for name in header)
        if twice is not None:
            raise InputError(f"{path}: column {twice!r:.60} is there twice; remove one of them")
        return pl.read_csv(text.encode(), comment_prefix=comment, **how)
    except InputError:
        raise
    except (OSError, UnicodeDecodeError, csv.Error, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path}: not a readable CSV ({reason_of(error)})") from error
