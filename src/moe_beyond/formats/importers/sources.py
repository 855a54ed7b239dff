"""The files of a published trace set, whether it lies in a folder, an archive or a single file."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from moe_beyond.errors import InputError

Item = TypeVar("Item")
_ARCHIVE_SUFFIXES = (".tar", ".tar.xz", ".txz", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2")
# what decompressors raise for bytes that are cut short or damaged
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError)
# tarfile and zipfile also stumble over damaged headers: an ord() of nothing, an empty name, a place before the start
_DAMAGED_HEADER = (*_DAMAGED, RuntimeError, ValueError, IndexError, TypeError)
# what columns and arrays are called that hold how often each expert was chosen
COUNTS = ("count", "counts", "logical_count", "expert_counts", "num_tokens", "frequency", "hits")


def counts_are_no_trace(where: str, name: str) -> str:
    """The message for a file of counts."""
    return (
        f"{where}: {name!r} holds counts, how often each expert was chosen: no trace, the order of the tokens is lost; "
        "record which experts each token was routed to"
    )


def name_of(source: Path) -> str:
    """The source's name without the endings of archives and data files: `puffin` for `a/puffin.tar.xz`."""
    name = source.resolve().name
    while (shorter := re.sub(r"\.(tar|xz|txz|gz|tgz|bz2|tbz2|zip|csv|json|npz|route)$", "", name)) != name:
        name = shorter
    return name


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts `prompt_2` before `prompt_10`."""
    parts = re.split(r"(\d+)", name)
    return tuple((1, int(part), part) if part.isdecimal() and part.isascii() else (0, 0, part) for part in parts)


def locate(source: Path, name: str) -> str:
    """Name a member of a source in a message."""
    if source.is_dir():
        return str(source / name)
    return str(source) if name == source.name else f"{source}: {name}"


def is_single_file(source: Path) -> bool:
    """True for a file that is no archive."""
    return source.is_file() and not source.name.endswith((*_ARCHIVE_SUFFIXES, ".zip"))


def read_each(source: Path, suffix: str, read: Callable[[IO[bytes], str, str], Item]) -> Iterator[Item]:
    """What `read` makes of each file, in natural order of names; it gets stream, name and the place for messages.

    Of a folder or zip file one item at a time is in memory; of a tar file, whose order is its own, all of them.

    Raises:
        InputError: As `members`, and as `read`.
    """
    found = members(source, suffix)
    items = ((natural_order(name), read(stream, name, locate(source, name))) for name, stream in found)
    ordered = sorted(items, key=lambda pair: pair[0]) if source.name.endswith(_ARCHIVE_SUFFIXES) else items
    return (item for _, item in ordered)


def decode_utf8(data: bytes, where: str) -> str:
    """Text of a file, without a byte order mark. Raises InputError if it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def read_json(data: bytes, where: str) -> Any:
    """A JSON document. Raises InputError if it is none, or gives a key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{where}: key {twice!r:.60} is given twice in one object; remove one of them")
        return fields

    try:
        return json.loads(decode_utf8(data, where), object_pairs_hook=once)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        reason = str(error).splitlines()[0].partition(";")[0]
        raise InputError(f"{where}: not valid JSON ({reason}); fetch it again") from error


def members(source: Path, suffix: str, fix: str = "check the path and the format") -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the name and an open stream of every file that ends with `suffix`; a `.gz` behind it is unpacked.

    Names are relative to the folder or archive, with forward slashes. The order is natural, but of a tar file its own:
    sort by `natural_order` what you make of them. Each stream is closed when the next one is requested.

    Raises:
        InputError: Nothing there, no such file inside, an empty file, a damaged archive, or a name that leaves it.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give the published folder, archive or file")
    found = set[str]()
    try:
        for name, stream in _walk(source):
            # hidden folders hold editors' copies, `.ipynb_checkpoints` in the paper's repository for one
            hidden = any(part.startswith(".") for part in PurePosixPath(name).parts if part != ".")
            if name.endswith((suffix, suffix + ".gz")) and not hidden:
                where = locate(source, name)
                if name in found:
                    raise InputError(f"{where}: the archive holds this file twice; pack it again")
                found.add(name)
                plain = gzip.GzipFile(fileobj=stream) if name.endswith(".gz") else stream
                with stream, io.BufferedReader(_Guarded(plain, where)) as readable:
                    if not readable.peek(1):
                        raise InputError(f"{where}: the file is empty (0 bytes); fetch it again or remove it")
                    yield name, readable
    except InputError:
        raise
    except _DAMAGED_HEADER as error:
        raise _damaged(str(source), error) from error
    if not found:
        raise InputError(f"{source}: holds no file named *{suffix}; {fix}")


def _walk(source: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if source.is_dir():
        paths = {path.relative_to(source).as_posix(): path for path in source.rglob("*") if path.is_file()}
        for name in sorted(paths, key=natural_order):
            yield name, paths[name].open("rb")
    elif source.name.endswith(_ARCHIVE_SUFFIXES):
        with tarfile.open(source, "r|*") as archive:
            for member in archive:
                _refuse_escape(source, member.name)
                if member.issym() or member.islnk() or member.isdev():
                    raise InputError(f"{source}: {member.name!r} is a link or device; pack plain files only")
                stream = archive.extractfile(member)
                if stream is not None:
                    yield member.name, stream
    elif source.suffix == ".zip":
        with zipfile.ZipFile(source) as archive_zip:
            for entry in sorted(archive_zip.infolist(), key=lambda one: natural_order(one.filename)):
                _refuse_escape(source, entry.filename)
                if not entry.is_dir():
                    yield entry.filename, archive_zip.open(entry)
    else:
        yield source.name, source.open("rb")


def _refuse_escape(source: Path, name: str) -> None:
    # nothing is unpacked to disk, but names become prompt ids and such an archive is not to be trusted
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{source}: {name!r} leads out of the archive; refuse it and fetch the original again")


class _Guarded(io.RawIOBase):
    """A stream whose damage is an InputError for every reader."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, where: str) -> None:
        self._stream = stream
        self._where = where

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed wants a wider buffer
        try:
            data = self._stream.read(len(buffer))
        except _DAMAGED as error:
            raise _damaged(self._where, error) from error
        buffer[: len(data)] = data
        return len(data)


def _damaged(where: str, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{where}: damaged or cut short ({reason}); fetch it again")
