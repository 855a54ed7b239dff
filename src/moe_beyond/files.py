"""Files: outputs that appear whole or not at all, digests, folders for interrupted work."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_beyond.documents import is_special
from moe_beyond.errors import InputError

if TYPE_CHECKING:
    import polars as pl

_LISTING = ".written-by-moe-beyond"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place, on an exception it is removed.

    The caller creates a file or a directory at the temporary path. What stood at `path` before stays until then; a
    folder is replaced by a folder only. For a path that a person names, `check_output` first.

    Raises:
        InputError: The folder that `path` lies in cannot be made, or not be written to; a file where a folder stands,
            or a folder where a file does; a device or a pipe stands there.
    """
    _require_replaceable(path)
    make_folder(path.parent)
    _remove_orphans(path)
    own = f".{path.name}.{socket.gethostname()}.{os.getpid()}"
    temporary = path.with_name(f"{own}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if path.exists() and temporary.is_dir() != path.is_dir():
            raise InputError(f"{path}: is a {'folder' if path.is_dir() else 'file'} already; give another name")
        if path.is_dir() and not path.is_symlink():
            # a directory cannot be replaced in one step: move the old one aside first
            old = path.with_name(f"{own}.old")
            _remove(old)
            path.rename(old)
            temporary.rename(path)
            _remove(old)
        else:
            temporary.replace(path)
    finally:
        _remove(temporary)


def list_files(folder: Path) -> None:
    """Write the names of a folder's files beside them, so that `check_output` knows later that nothing was added."""
    (folder / _LISTING).write_text("".join(f"{name}\n" for name in sorted(_names(folder))), encoding="utf-8")


def check_output(path: Path, *, inputs: Iterable[Path] = (), ours: Callable[[Path], bool] | None = None) -> None:
    """Refuse, before any work, an output path at which something would be lost.

    Args:
        path: Where a command is to write.
        inputs: What the command reads.
        ours: Whether a file that stands there is one that the command itself wrote; None: a folder is to be written,
            which replaces an empty one, or one with just the files that `list_files` listed.

    Raises:
        InputError: The path is an input or lies inside one, or holds what the command did not write; names both.
    """
    target = path.resolve()
    for source in inputs:
        if target == source.resolve() or source.resolve() in target.parents or target in source.resolve().parents:
            raise InputError(f"{path}: is, holds or lies in the input {source}; give another place to write to")
    _require_replaceable(path)
    if not path.exists():
        return
    if ours is None:
        if not path.is_dir():
            raise InputError(f"{path}: is a file, and a folder is to be written; give another name")
        listing = path / _LISTING
        listed = set(listing.read_text(encoding="utf-8").splitlines()) if listing.is_file() else set()
        foreign = sorted(_names(path) - listed)
        if foreign:
            raise InputError(
                f"{path}: holds {foreign[0]}, which this command did not write; give a new or empty folder"
            )
    elif path.is_dir():
        raise InputError(f"{path}: is a folder, and a file is to be written; name a file")
    elif path.stat().st_size and not ours(path):
        raise InputError(f"{path}: was not written by this command; give another name, or delete it")


def _require_replaceable(path: Path) -> None:
    """`/dev/null` would become a file, for every program of the machine."""
    if is_special(path):
        raise InputError(f"{path}: is a device, a pipe or a socket; name a file")


def begins_with(*words: bytes) -> Callable[[Path], bool]:
    """Whether all of these words stand in a file's first 4,096 bytes."""

    def check(path: Path) -> bool:
        with path.open("rb") as file:
            head = file.read(4096)
        return all(word in head for word in words)

    return check


def never(_path: Path) -> bool:
    """For `check_output`, where a file does not tell who wrote it: none that stands there is replaced."""
    return False


def _names(folder: Path) -> set[str]:
    """Paths in a folder, without the listing and without folders that hold something."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir() or not any(path.iterdir())]
    return {path.relative_to(folder).as_posix() for path in paths} - {_LISTING}


def make_folder(path: Path) -> None:
    """Make a folder to write into, and those above it.

    Raises:
        InputError: It cannot be made, or it is there and another user's.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: this folder cannot be made ({error.strerror}); choose another place") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{path}: no permission to write into this folder; choose another place, or change its owner")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in the given order, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def json_text(value: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_tables(folder: Path, tables: Mapping[str, pl.DataFrame]) -> None:
    """Write tables by name as `<name>.parquet` into a folder, atomically; what stood in it before goes."""
    with replacing(folder) as temporary:
        temporary.mkdir()
        for name, table in tables.items():
            table.write_parquet(temporary / f"{name}.parquet")


def _remove_orphans(path: Path) -> None:
    """Remove what killed processes of this machine left beside `path`."""
    prefix = f".{path.name}.{socket.gethostname()}."
    for orphan in path.parent.iterdir():
        pid, _, ending = orphan.name.removeprefix(prefix).partition(".")
        if orphan.name.startswith(prefix) and pid.isdecimal() and ending in ("tmp", "old"):
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                if ending == "old" and not path.exists():
                    orphan.rename(path)  # killed between two renames: nothing has replaced it
                else:
                    _remove(orphan)
            except PermissionError:
                continue  # alive, and another user's


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fingerprint(*parts: Any) -> str:
    """Short digest of JSON-able parts: parameters, digests of data, seeds."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def scratch_path(root: Path, stage: str, key: str) -> Path:
    """Where that folder is, for a further process of the same work."""
    return root / ".scratch" / stage / key


@contextmanager
def scratch_folder(root: Path, stage: str, key: str) -> Iterator[Path]:
    """A folder that survives an interruption and is removed when the work is done.

    Args:
        root: The project's root.
        stage: The stage that works there.
        key: Fingerprint of the inputs; work of another fingerprint is stale and removed, so that it never mixes in.
    """
    home = root / ".scratch" / stage
    make_folder(home)
    for stale in home.iterdir():
        if stale.name != key:
            shutil.rmtree(stale)
    folder = home / key
    folder.mkdir(exist_ok=True)
    yield folder
    shutil.rmtree(home)


def folder_digest(path: Path) -> str:
    """The digest that DVC gives a file or a directory (`<md5>.dir`), so that runs and dvc.lock name data alike."""
    if path.is_file():
        return _file_digest(path)
    entries = [
        {"md5": _file_digest(file), "relpath": file.relative_to(path).as_posix()}
        for file in path.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    entries.sort(key=lambda entry: entry["relpath"])
    listing = json.dumps(entries, sort_keys=True).encode()
    return hashlib.md5(listing, usedforsecurity=False).hexdigest() + ".dir"


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of every file in a folder, by its path there."""
    digests = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
