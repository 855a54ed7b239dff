"""Files: outputs that appear whole or not at all, digests, folders for interrupted work."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_beyond.errors import InputError

if TYPE_CHECKING:
    import polars as pl


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place, on an exception it is removed.

    The caller creates a file or a directory at the temporary path. What stood at `path` before stays until then.

    Raises:
        InputError: The folder that `path` lies in cannot be made, or not be written to.
    """
    make_folder(path.parent)
    _remove_orphans(path)
    own = f".{path.name}.{socket.gethostname()}.{os.getpid()}"
    temporary = path.with_name(f"{own}.tmp")
    _remove(temporary)
    try:
        yield temporary
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
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


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


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
