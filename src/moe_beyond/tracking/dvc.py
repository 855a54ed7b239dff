"""From DVC: a stage of dvc.yaml, its former outs in the cache, and the receipts that lie among the outs."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moe_beyond.errors import InputError
from moe_beyond.files import json_text, replacing, write_json
from moe_beyond.settings import STAGES

RECEIPT = "run.json"
"""Name of the file in a stage's folder of reports that holds the key of the MLflow run behind the outs."""


@dataclass(frozen=True)
class DvcStage:
    """A stage of dvc.yaml, paths relative to the project's root.

    Attributes:
        name: In dvc.yaml.
        deps: Files and folders that it reads.
        outs: Outs, metrics and plots together.
        params: Keys of params.yaml, and names of further parameter files.
        always_changed: DVC runs it every time, and keeps no outs of it.
    """

    name: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    params: tuple[str, ...]
    always_changed: bool


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
    deps, params = _paths(entry.get("deps")), _paths(entry.get("params"))
    outs = tuple(path for kind in ("outs", "metrics", "plots") for path in _paths(entry.get(kind)))
    return DvcStage(name, deps, outs, params, bool(entry.get("always_changed", False)))


def _paths(items: list[str | dict[str, Any]] | None) -> tuple[str, ...]:
    return tuple(item if isinstance(item, str) else next(iter(item)) for item in items or [])


def write_receipt(root: Path, stage: str, key: str) -> None:
    """Write the receipt beside a stage's outs, so that DVC restores it with them."""
    write_json(root / "reports" / stage / RECEIPT, _receipt(stage, key))


def _receipt(stage: str, key: str) -> dict[str, str]:
    return {"stage": stage, "key": key}


def is_committed(root: Path, stage: str, key: str) -> bool:
    """Whether DVC has taken the outs of a run: its cache holds the receipt then. True where there is no DVC."""
    cache = _cache(root)
    if cache is None:
        return True
    content = json_text(_receipt(stage, key)).encode()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return (cache / digest[:2] / digest[2:]).exists()


def receipts(root: Path) -> dict[str, str]:
    """The key in every stage's receipt, in the stages' order."""
    paths = {stage: root / "reports" / stage / RECEIPT for stage in STAGES}
    return {
        stage: json.loads(path.read_text(encoding="utf-8"))["key"] for stage, path in paths.items() if path.exists()
    }


def restore_outs(root: Path, stage: str) -> None:
    """Put a stage's former outs back from DVC's cache, those that are missing.

    DVC removes a stage's outs before it starts the stage. If the stage then fails they would be gone; keeping them by
    `persist: true` would switch off DVC's run cache.

    Args:
        root: The project's root.
        stage: Name in dvc.lock; nothing happens where it is not there, or its files are not in the cache.
    """
    lock = root / "dvc.lock"
    if not lock.exists():
        return
    locked = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"].get(stage, {})
    for out in locked.get("outs", []):
        if not (root / out["path"]).exists():
            copy_from_cache(root, out["md5"], root / out["path"])


def _cache(root: Path) -> Path | None:
    """The folder of DVC's cache by MD5; None where there is no DVC."""
    if not (root / ".dvc").is_dir():
        return None
    from dvc.repo import Repo  # noqa: PLC0415 - takes a second to import, and is seldom needed

    with Repo(str(root)) as repo:
        return Path(repo.cache.local.path)


def copy_from_cache(root: Path, digest: str, target: Path) -> bool:
    """Copy a file or a folder from DVC's cache; False where the cache does not hold all of it.

    Args:
        root: The project's root.
        digest: As in dvc.lock: an MD5, of a folder with `.dir` behind it.
        target: Path of the copy.
    """
    cache = _cache(root)
    if cache is None:
        return False
    listing = cache / digest[:2] / digest[2:]
    if not listing.exists():
        return False
    files = {"": digest}
    if digest.endswith(".dir"):
        files = {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_text(encoding="utf-8"))}
    sources = {name: cache / md5[:2] / md5[2:] for name, md5 in files.items()}
    if not all(source.exists() for source in sources.values()):
        return False
    with replacing(target) as temporary:
        if digest.endswith(".dir"):
            temporary.mkdir()
        for name, source in sources.items():
            copy = temporary / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            # the contents alone: files in the cache are read-only
            shutil.copyfile(source, copy)
    return True
