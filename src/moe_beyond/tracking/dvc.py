"""What dvc.yaml says of a stage, and its former outs from DVC's cache."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dvc.repo import Repo

from moe_beyond.errors import InputError
from moe_beyond.files import replacing


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
