"""What dvc.yaml says of a stage, and digests that equal DVC's own."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dvc.repo import Repo

from moe_beyond.errors import InputError
from moe_beyond.files import replacing

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class DvcStage:
    """A stage of dvc.yaml, paths relative to the project's root."""

    name: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    """Outs, metrics and plots together."""
    params: tuple[str, ...]


def read_stage(dvc_yaml: Path, name: str) -> DvcStage:
    """Read one stage of dvc.yaml.

    Raises:
        InputError: dvc.yaml is missing or has no such stage.
    """
    try:
        stages = yaml.safe_load(dvc_yaml.read_text(encoding="utf-8"))["stages"]
    except FileNotFoundError as error:
        raise InputError(f"{dvc_yaml}: not found; run from the project's root") from error
    if name not in stages:
        raise InputError(f"{dvc_yaml}: no stage {name!r}; it has {', '.join(stages)}")
    entry = stages[name]
    outs = [*_paths(entry.get("outs")), *_paths(entry.get("metrics")), *_paths(entry.get("plots"))]
    return DvcStage(name, tuple(_paths(entry.get("deps"))), tuple(outs), tuple(_paths(entry.get("params"))))


def _paths(items: list[str | dict[str, Any]] | None) -> list[str]:
    return [item if isinstance(item, str) else next(iter(item)) for item in items or []]


def restore_outs(root: Path, stage: str) -> None:
    """Put a stage's former outs back from DVC's cache, those that are missing.

    DVC removes a stage's outs before it starts the stage. A stage that then fails would leave nothing behind; keeping
    outs by `persist: true` instead would switch off DVC's run cache.

    Args:
        root: The project's root.
        stage: Name in dvc.lock; nothing happens where it is not there, or its files are not in the cache.
    """
    lock = root / "dvc.lock"
    if not lock.exists() or not (root / ".dvc").is_dir():
        return
    locked = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"].get(stage, {})
    with Repo(str(root)) as repo:
        cache = Path(repo.cache.local.path)
    for out in locked.get("outs", []):
        source, target = cache / out["md5"][:2] / out["md5"][2:], root / out["path"]
        if target.exists() or not source.exists():
            continue
        with replacing(target) as temporary:
            if out["md5"].endswith(".dir"):
                for entry in json.loads(source.read_text(encoding="utf-8")):
                    _copy(cache / entry["md5"][:2] / entry["md5"][2:], temporary / entry["relpath"])
            else:
                _copy(source, temporary)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # the contents alone: files in the cache are read-only
    shutil.copyfile(source, target)


def content_md5(path: Path) -> str:
    """The digest that DVC gives a file or a directory (`<md5>.dir`), so that runs and dvc.lock name data alike."""
    if path.is_file():
        return _file_md5(path)
    entries = [
        {"md5": _file_md5(file), "relpath": file.relative_to(path).as_posix()}
        for file in path.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    entries.sort(key=lambda entry: entry["relpath"])
    listing = json.dumps(entries, sort_keys=True).encode()
    return hashlib.md5(listing, usedforsecurity=False).hexdigest() + ".dir"


def _file_md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
