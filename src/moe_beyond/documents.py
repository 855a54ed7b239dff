"""JSON and CSV read strictly: each key and column once, nothing deeper or larger than `limits` allows."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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


def require_unpacked(metadata: Any, size: int, where: str) -> None:
    """Check what a Parquet file's columns unpack to before one is read: a value that repeats takes no place in it.

    Args:
        metadata: As pyarrow reads it.
        size: Bytes of the file.
        where: Names it in messages.

    Raises:
        InputError: More than `Limits` allows.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    values = sum(group.column(n).num_values for group in groups for n in range(group.num_columns))
    # an expert's id takes one byte and more
    if values > max(limits().small_bytes, limits().ratio * size):
        raise InputError(f"{where}: {size:,} bytes hold {values:,} values; no trace does, is it damaged?")


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
