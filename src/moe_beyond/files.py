"""Files: outputs that appear whole or not at all, a lock between processes, folders for interrupted work."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import polars as pl

_CHUNK_BYTES = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place, on an exception it is removed.

    The caller creates a file or a directory at the temporary path. What stood at `path` before stays until then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[TextIO | None]:
    """Hold a file that no other process holds meanwhile; a killed process loses it.

    Args:
        path: Created where it is missing; what it holds stays.
        wait: Until the other process lets it go.

    Yields:
        The file, open to read and to append; None where another process holds it and nobody waits.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file


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
    """Clear away what processes of this machine that were killed have left beside `path`."""
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
    """A folder that survives an interruption and goes when the work is done.

    Args:
        root: The project's root.
        stage: Whose work it is.
        key: Fingerprint; work of another fingerprint is stale and removed, so that it never mixes in.
    """
    home = root / ".scratch" / stage
    home.mkdir(parents=True, exist_ok=True)
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
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
