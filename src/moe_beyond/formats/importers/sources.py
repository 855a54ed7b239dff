"""The files of a published trace set, whether it lies in a folder, an archive or a single file."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from moe_beyond.documents import load_json, require_plain
from moe_beyond.errors import DAMAGE_ERRORS, InputError, first_line_of
from moe_beyond.limits import limits

Item = TypeVar("Item")
_MOST_HEADER = 1 << 20
_Stream = IO[bytes] | gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File
_PACKED: dict[str, Callable[[IO[bytes]], _Stream]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".xz": lzma.LZMAFile,
}
_ARCHIVE_SUFFIXES = (".tar", ".tar.xz", ".txz", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2")
_DAMAGED = (*DAMAGE_ERRORS, lzma.LZMAError)
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
    while (
        shorter := re.sub(
            r"\.(tar|xz|txz|gz|tgz|bz2|tbz2|zip|csv|jsonl?|npz|route|bin|txt|mblt|mstr|rtrace|pt)$", "", name
        )
    ) != name:
        name = shorter
    return name


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts `prompt_2` before `prompt_10`."""
    # by their length, not as numbers: a name may have thousands of digits
    parts = ((part, part.lstrip("0")) for part in re.split(r"([0-9]+)", name))
    return tuple((1, len(bare), bare) if part.isdecimal() and part.isascii() else (0, 0, part) for part, bare in parts)


def locate(source: Path, name: str) -> str:
    """Name a member of a source in a message."""
    if source.is_dir():
        return str(source / name)
    return str(source) if name == source.name else f"{source}: {name}"


def is_single_file(source: Path) -> bool:
    """True for a file that is no archive."""
    return source.is_file() and not source.name.endswith((*_ARCHIVE_SUFFIXES, ".zip"))


def read_each(
    source: Path, suffix: str | tuple[str, ...], read: Callable[[IO[bytes], str, str], Item]
) -> Iterator[Item]:
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
    """A JSON document. Raises InputError if it is none, gives a key twice, or goes beyond `Limits`."""
    return load_json(decode_utf8(data, where), where)


def members(source: Path, suffix: str | tuple[str, ...], *, required: bool = True) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the name and an open stream of every file with such an ending; a `.gz` or `.xz` behind it is unpacked.

    Names are relative to the folder or archive, with forward slashes. The order is natural, but of a tar file its own:
    sort by `natural_order` what you make of them. Each stream is closed when the next one is requested.

    Raises:
        InputError: Nothing there, no such file inside where one is `required`, an empty file, a damaged archive, a link
            or a name that leaves it, what is no plain file, two names that differ in packing or leading zeros alone, or
            more than `Limits` allows.
    """
    endings = (suffix,) if isinstance(suffix, str) else suffix
    if not require_plain(source).exists():
        raise InputError(f"{source}: no such file or folder; give the published folder, archive or file")
    found: dict[tuple[str, ...], str] = {}
    unpacked = _Unpacked(source)
    try:
        for count, (name, opening) in enumerate(_walk(source, unpacked)):
            if count >= limits().members:
                raise InputError(f"{source}: more than {limits().members} files; divide it")
            # hidden folders hold editors' copies, `.ipynb_checkpoints` in the paper's repository for one
            hidden = any(part.startswith(".") for part in PurePosixPath(name).parts if part != ".")
            if name.endswith(tuple(end + packed for end in endings for packed in ("", *_PACKED))) and not hidden:
                where = locate(source, name)
                other = found.get(_bare(name))
                if other == name:
                    raise InputError(f"{where}: the archive holds this file twice; pack it again")
                if other is not None:
                    raise InputError(f"{where}: {other} has the same name but for zeros or packing; remove one of them")
                found[_bare(name)] = name
                with _readable(opening(), name, where, unpacked) as readable:
                    if not readable.peek(1):
                        raise InputError(f"{where}: the file is empty (0 bytes); fetch it again or remove it")
                    yield name, readable
    except InputError:
        raise
    except _DAMAGED as error:
        raise _damaged(str(source), error) from error
    if not found and required:
        raise InputError(f"{source}: holds no file named *{' or *'.join(endings)}; check the path and the format")


def _bare(name: str) -> tuple[str, ...]:
    """A name without packing, and with its numbers as numbers: `p_01.csv.gz` is `p_1.csv`."""
    path = PurePosixPath(name)
    plain = path.with_suffix("") if path.suffix in _PACKED else path
    return tuple(re.sub(r"(?<![0-9])0+(?=[0-9])", "", part) for part in plain.parts)


def _readable(stream: IO[bytes], name: str, where: str, unpacked: _Unpacked) -> io.BufferedReader:
    """The stream, unpacked if the name says so and guarded; closing it closes them all."""
    opened = _PACKED.get(PurePosixPath(name).suffix)
    return io.BufferedReader(_Guarded(stream if opened is None else opened(stream), where, unpacked, stream))


def _walk(source: Path, unpacked: _Unpacked) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Name of each file, and what opens it."""
    if source.is_dir():
        paths = {path.relative_to(source).as_posix(): path for path in source.rglob("*") if not path.is_dir()}
        for name in sorted(paths, key=natural_order):
            yield name, partial(_open_inside, paths[name], source, unpacked)
    elif source.name.endswith(_ARCHIVE_SUFFIXES):
        unpacked.packed = source.stat().st_size
        with (
            source.open("rb") as packed,
            io.BufferedReader(_Guarded(_unpacking(packed), str(source), unpacked, packed, one_file=False)) as plain,
            tarfile.open(fileobj=plain, mode="r|", tarinfo=_PlainHeader) as archive,
        ):
            for member in archive:
                _refuse_escape(source, member.name)
                if not (member.isfile() or member.isdir()):
                    raise InputError(f"{source}: {member.name!r} is a link or device; pack plain files only")
                if member.isfile():
                    yield member.name, partial(_extracted, archive, member)
                # the archive would keep all of them
                archive.members = []  # type: ignore[attr-defined, unused-ignore]
    elif source.suffix == ".zip":
        unpacked.packed = source.stat().st_size
        with zipfile.ZipFile(source) as archive_zip:
            for entry in sorted(archive_zip.infolist(), key=lambda one: natural_order(one.filename)):
                _refuse_escape(source, entry.filename)
                if not entry.is_dir():
                    yield entry.filename, partial(archive_zip.open, entry)
    else:
        yield source.name, partial(_open_inside, source, source, unpacked)


def require_inside(path: Path, folder: Path) -> Path:
    """The path. Raises InputError unless it is a plain file in the folder, links followed."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path}: a link that leads out of the folder; copy the file there")
    if not path.is_file():
        raise InputError(f"{path}: a broken link, pipe, socket or device; remove it")
    return path


def _open_inside(path: Path, root: Path, unpacked: _Unpacked) -> IO[bytes]:
    require_inside(path, root)
    unpacked.packed += path.stat().st_size
    return path.open("rb")


def _extracted(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(member)
    assert stream is not None  # noqa: S101 - it is a plain file
    return stream


def _unpacking(packed: IO[bytes]) -> _Stream:
    """The tar in a file. These unpack in small pieces; tarfile's own would copy what a piece unpacks to each time."""
    begins = packed.read(6)
    packed.seek(0)
    for magic, opened in ((b"\xfd7zXZ", lzma.LZMAFile), (b"BZh", bz2.BZ2File), (b"\x1f\x8b", _PACKED[".gz"])):
        if begins.startswith(magic):
            return opened(packed)
    return packed


class _PlainHeader(tarfile.TarInfo):
    """Refuses long texts in headers, which tarfile would read whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in tarfile.REGULAR_TYPES and self.size > _MOST_HEADER and not self.isdir():
            raise tarfile.HeaderError(f"a header of {self.size} bytes")  # type: ignore[attr-defined, unused-ignore]
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return, unused-ignore]


def _refuse_escape(source: Path, name: str) -> None:
    # nothing is unpacked to disk, but names become prompt ids and such an archive is not to be trusted
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{source}: {name!r} leads out of the archive; refuse it and fetch the original again")


class _Unpacked:
    """How much a source was unpacked to.

    Attributes:
        packed: Bytes that it has packed.
    """

    def __init__(self, source: Path) -> None:
        self._source, self._bytes, self.packed = source, 0, 0

    def take(self, count: int) -> None:
        """Count bytes. Raises InputError from more than `Limits` allows on."""
        most = limits()
        self._bytes += count
        if self._bytes > most.total_bytes:
            raise InputError(f"{self._source}: unpacks to more than {most.total_bytes >> 20} MiB; divide it")
        if self._bytes > max(most.small_bytes, most.ratio * self.packed):
            raise InputError(
                f"{self._source}: {self.packed:,} bytes unpack to more than {self._bytes - count:,}; no trace does, "
                "unpack it yourself if you trust it"
            )


class _Guarded(io.RawIOBase):
    """A stream whose damage and size are an InputError for every reader."""

    def __init__(
        self, stream: _Stream, where: str, unpacked: _Unpacked, below: IO[bytes], *, one_file: bool = True
    ) -> None:
        self._stream, self._below, self._where, self._unpacked = stream, below, where, unpacked
        self._left = limits().file_bytes if one_file else None

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._below.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed wants a wider buffer
        try:
            data = self._stream.read(len(buffer))
        except _DAMAGED as error:
            raise _damaged(self._where, error) from error
        # a few bytes can unpack to any number
        self._unpacked.take(len(data))
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise InputError(f"{self._where}: more than {limits().file_bytes >> 20} MiB in one file; split it")
        buffer[: len(data)] = data
        return len(data)


def _damaged(where: str, error: Exception) -> InputError:
    return InputError(f"{where}: damaged or cut short ({first_line_of(error)}); fetch it again")
