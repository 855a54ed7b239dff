"""What could not be sent to MLflow, kept in files in the order it was said.

A record is a JSON file, named by the time it was made; files that belong to it lie beside it under the same name. A
record is removed after it was sent: one that was sent but not yet removed when the process was killed is sent again,
which changes nothing (`client.py` says why).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_beyond.files import locked, replacing, write_json

FOLDER = ".mlflow-unsent"
_RECORD = "*.json"


@dataclass(frozen=True)
class Record:
    """Something that waits to be sent.

    Attributes:
        path: Its JSON file.
        operation: Name of the client's method.
        arguments: Of that method, JSON-able.
    """

    path: Path
    operation: str
    arguments: dict[str, Any]

    @property
    def files(self) -> Path:
        """A copy of the file or folder that the record sends, where it sends one."""
        return self.path.with_suffix(".files")

    def remove(self) -> None:
        """Forget it: it was sent."""
        self.path.unlink()
        shutil.rmtree(self.files, ignore_errors=True)


class Spool:
    """The records for one MLflow address; several processes may add to it, one at a time takes from it."""

    def __init__(self, root: Path, uri: str) -> None:
        """Open the records for `uri`; nothing is written before there is a record.

        Args:
            root: The checkout that keeps MLflow's things.
            uri: The tracking URI that they are meant for.
        """
        self.uri = uri
        self.folder = root / FOLDER / hashlib.sha256(uri.encode()).hexdigest()[:12]
        self._ids, self._count = self.folder / "ids" / "runs.json", 0

    @classmethod
    def all_of(cls, root: Path) -> list[Spool]:
        """A spool for each address that something was ever kept for."""
        return [cls(root, file.read_text(encoding="utf-8")) for file in sorted((root / FOLDER).glob("*/uri.txt"))]

    def waiting(self) -> list[Path]:
        """The records' files, first to be sent first."""
        return sorted(self.folder.glob(_RECORD))

    def add(self, operation: str, arguments: dict[str, Any], source: Path | None = None) -> None:
        """Keep a record; `source`, a file or a folder, is copied, as its owner may change it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "uri.txt").write_text(self.uri, encoding="utf-8")
        self._count += 1
        path = self.folder / f"{time.time_ns():020d}-{os.getpid()}-{self._count}.json"
        record = Record(path, operation, arguments)
        if source is not None:
            _copy(source, record.files / source.name)
        # last: a record that can be seen is whole
        write_json_line(path, {"operation": operation, "arguments": arguments})

    def read(self, path: Path) -> Record:
        """A record from its file."""
        value = json.loads(path.read_text(encoding="utf-8"))
        return Record(path, value["operation"], value["arguments"])

    def reject(self, record: Record) -> Path:
        """Set aside what MLflow will never take, so that the rest can go on; returns where it lies."""
        aside = self.folder / "rejected"
        aside.mkdir(exist_ok=True)
        if record.files.exists():
            record.files.rename(aside / record.files.name)
        return record.path.rename(aside / record.path.name)

    @contextmanager
    def taking(self) -> Iterator[bool]:
        """Hold the right to send; yields False where another process holds it. A killed process loses it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock", wait=False) as file:
            yield file is not None

    def resolve(self, run_id: str) -> str | None:
        """MLflow's id of a run that was opened while MLflow was away; None while it has none."""
        if not self._ids.exists():
            return None
        return dict[str, str](json.loads(self._ids.read_text(encoding="utf-8"))).get(run_id)

    def name(self, local_id: str, run_id: str) -> None:
        """Remember MLflow's id of such a run."""
        known = json.loads(self._ids.read_text(encoding="utf-8")) if self._ids.exists() else {}
        write_json(self._ids, known | {local_id: run_id})


def write_json_line(path: Path, value: Any) -> None:
    """Write JSON in one line, atomically; unlike files that people read, it may hold NaN."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
