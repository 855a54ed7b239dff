"""Where interrupted work waits: a folder per stage and fingerprint of everything the work depends on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
