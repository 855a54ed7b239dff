"""Outputs appear whole or not at all: write under a temporary name, then rename. And a lock between processes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


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
