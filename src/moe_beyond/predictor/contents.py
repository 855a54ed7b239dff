"""What a predictor directory holds: its manifest, and files that are believed only if it names their digest.

`manifest.json` is written last by the export stage: sha256 and size of every other file. No file is parsed, and no
session opened, before its bytes are those.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moe_beyond.documents import load_json
from moe_beyond.errors import InputError, TamperedError
from moe_beyond.files import write_json

MANIFEST = "manifest.json"
MOST_BYTES = 2**31
"""Of one file: what ONNX itself can hold."""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0, le=MOST_BYTES)]


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest_version: Literal[1] = 1
    least_onnxruntime: str
    files: dict[str, _File]


def write_manifest(directory: Path, least_onnxruntime: str) -> None:
    """Write the manifest of a directory whose other files are written."""
    files = {path.name: _described(path.read_bytes()) for path in sorted(directory.iterdir()) if path.name != MANIFEST}
    manifest = _Manifest(least_onnxruntime=least_onnxruntime, files=files)
    write_json(directory / MANIFEST, manifest.model_dump())


class Contents:
    """The files of a predictor directory.

    Attributes:
        directory: Where they lie.
    """

    def __init__(self, directory: Path, *, finished: bool = True) -> None:
        """Read the manifest.

        Args:
            directory: As the export stage writes it.
            finished: False while it is being written: there is no manifest, and nothing is checked.

        Raises:
            InputError: There is no manifest, or it is none.
        """
        self.directory, self._files = directory, _read_manifest(directory / MANIFEST).files if finished else None

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            InputError: It is not there.
            TamperedError: It is not the file that was exported.
        """
        path = self.directory / name
        if not path.is_file():
            raise InputError(f"{path}: no such file; run the export stage first")
        if self._files is None:
            return path.read_bytes()
        expected, size = self._files.get(name), path.stat().st_size
        if expected is None:
            raise TamperedError(f"{path}: {MANIFEST} does not name this file; export the predictor again")
        data = path.read_bytes() if size == expected.bytes else b""
        if size != expected.bytes or _described(data) != expected:
            raise TamperedError(
                f"{path}: damaged or changed: its {size:,} bytes are not those that {MANIFEST} names; fetch it again, "
                "or export the predictor again"
            )
        return data


def _read_manifest(path: Path) -> _Manifest:
    if not path.is_file():
        raise InputError(f"{path}: no such file; run the export stage first (older releases wrote none)")
    try:
        return _Manifest.model_validate(load_json(path.read_bytes().decode("utf-8", "replace"), str(path)))
    except InputError as error:
        raise TamperedError(f"{error}; export the predictor again") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise TamperedError(f"{path}: {field}: {first['msg']}; export the predictor again") from error


def _described(data: bytes) -> _File:
    return _File(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
