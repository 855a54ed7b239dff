"""The record of a run: everything that MLflow must hold of it, in one small file, made from the files of a stage.

A record is written before MLflow is called, and deleted once MLflow has all of it. It holds artifacts by path and
digest; their content stays where it is.
"""

from __future__ import annotations

import json
import os
import resource
import time
import uuid
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import git
import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from moe_beyond.errors import InputError
from moe_beyond.files import fingerprint, folder_digest, replacing
from moe_beyond.masking import masked
from moe_beyond.settings import Settings, flatten
from moe_beyond.tracking.dvc import RECEIPT, DvcStage

FOLDER = ".mlflow-records"
KEY_TAG, WORK_TAG = "moe_beyond.key", "moe_beyond.work"
STAGE_TAG, ERROR_TAG = "moe_beyond.stage", "moe_beyond.error"
DEFAULT_EXPERIMENT = "moe-beyond"
CHOSEN = "chosen."
"""How parameters are named that a stage reads from another stage's outs, such as the size that the search chose."""
_LIBRARIES = ("torch", "lightning", "transformers", "optuna", "mlflow", "dvc", "onnx", "onnxruntime", "numpy", "numba")

# tables below a stage's folder of reports that hold curves and child runs
_CURVES = "history.csv"  # the first column is the step, every other one a metric
_CHILDREN, _CHILD_CURVES = "trials.csv", "epochs.csv"  # trial and state, parameters, metrics; trial, step, metrics
_FIRST_MEASURED = "recall_at_k"  # the first column of `_CHILDREN` that is no parameter
_CHILD_STATUS = {"complete": "FINISHED", "pruned": "KILLED"}

Point = tuple[str, float, int]
"""Name, value and step of a metric."""
Digests = tuple[tuple[str, str], ...]
"""Paths relative to the project's root, with DVC's digests."""


class Record(BaseModel):
    """One run as MLflow must hold it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants")

    key: str
    """By which MLflow's run is found again: the same inputs and outs have the same key."""
    name: str
    address: str = ""
    """Of the MLflow that it is meant for, without any password; empty: the database of this checkout."""
    experiment: str = DEFAULT_EXPERIMENT
    status: str = "FINISHED"
    start_ms: int
    """Since 1970, as is `end_ms`."""
    end_ms: int
    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    metrics: tuple[Point, ...] = ()
    inputs: Digests = ()
    """The data that it read."""
    artifacts: Digests = ()
    """Its outs."""
    children: tuple[Record, ...] = ()
    links: dict[str, str] = {}
    """Keys of the runs that belong to it, by stage."""


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def of_stage(root: Path, declared: DvcStage, params: Settings, start_ms: int) -> Record:
    """The record of a stage that has just written its outs.

    Args:
        root: The project's root.
        declared: The stage in dvc.yaml.
        params: What the stage was given.
        start_ms: When it started.
    """
    # the receipt is made from the key
    receipt = f"reports/{declared.name}/{RECEIPT}"
    given, deps = stage_params(root, declared, params), digests(root, declared.deps)
    outs = digests(root, [out for out in declared.outs if out != receipt])
    # the same inputs and outs are the same run, wherever and however often they were computed
    key, reports = fingerprint(declared.name, given, deps, outs), root / "reports" / declared.name
    return Record(
        key=key,
        name=declared.name,
        start_ms=start_ms,
        end_ms=now_ms(),
        tags=context_tags(root, declared.name) | {WORK_TAG: fingerprint(declared.name, given, deps)},
        params=given,
        metrics=(*_machine(), *points(_read_json(reports / "metrics.json")), *curves(reports / _CURVES)),
        inputs=_data(deps),
        artifacts=outs,
        children=tuple(_children(reports, key, declared.name, start_ms)),
    )


def of_failure(root: Path, declared: DvcStage, params: Settings, start_ms: int, error: BaseException) -> Record:
    """The record of a stage that has just failed; arguments as those of `of_stage`."""
    reason = without_secrets(str(error)) or type(error).__name__
    return Record(
        key=uuid.uuid4().hex,
        name=declared.name,
        status="FAILED",
        start_ms=start_ms,
        end_ms=now_ms(),
        tags=context_tags(root, declared.name) | {ERROR_TAG: reason},
        params=stage_params(root, declared, params),
        metrics=_machine(),
        inputs=_data(digests(root, declared.deps)),
    )


def _data(deps: Digests) -> Digests:
    return tuple((path, digest) for path, digest in deps if path.startswith(("data/", "models/")))


def _machine() -> tuple[Point, ...]:
    """Processor time and memory of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return ("system/cpu_s", used.ru_utime + used.ru_stime, 0), ("system/peak_memory_mib", used.ru_maxrss / 1024, 0)


def digests(root: Path, paths: Iterable[str]) -> Digests:
    """DVC's digest of each path that exists, but for empty folders."""
    found = [path for path in map(Path, paths) if (root / path).is_file() or any((root / path).glob("*"))]
    return tuple((path.as_posix(), folder_digest(root / path)) for path in found)


def stage_params(root: Path, declared: DvcStage, params: Settings) -> dict[str, str]:
    """The parameters that the stage reads by dvc.yaml, flat: `train.learning_rate`, `chosen.width` and the like."""
    flat = flatten(params.model_dump(by_alias=True, mode="json"))
    read = {key: value for key, value in flat.items() if any(f"{key}.".startswith(f"{p}.") for p in declared.params)}
    for path in declared.params:
        if (root / path).is_file():
            read |= chosen_params(root / path)
    return as_text(read)


def chosen_params(path: Path) -> dict[str, Any]:
    """What the search chose, each name with `chosen.` before it."""
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {f"{CHOSEN}{key}": value for key, value in flatten(values).items()}


def as_text(params: dict[str, Any]) -> dict[str, str]:
    """Parameters as MLflow keeps them: text as it is, but for passwords, and anything else as JSON."""
    return {
        key: without_secrets(value) if isinstance(value, str) else json.dumps(value) for key, value in params.items()
    }


def points(metrics: dict[str, Any], step: int = 0) -> list[Point]:
    """The numbers of a nested dict, names joined by `/`; booleans are 0 and 1, text and None are no metrics.

    The `value` of an interval has the interval's own name.
    """
    numbers = {key: value for key, value in flatten(metrics, "/").items() if isinstance(value, int | float)}
    return [(key.removesuffix("/value"), float(value), step) for key, value in numbers.items()]


def curves(path: Path) -> list[Point]:
    """The points of a CSV whose first column is the step; none where there is no such file."""
    if not path.exists():
        return []
    table = pl.read_csv(path, glob=False)
    step = table.columns[0]
    return [point for row in table.iter_rows(named=True) for point in points(row, int(row[step])) if point[0] != step]


def context_tags(root: Path, stage: str) -> dict[str, str]:
    """Stage, commit, DVC's experiment, and library versions."""
    tags = {STAGE_TAG: stage} | {f"version.{name}": version(name) for name in _LIBRARIES}
    for variable in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        if os.environ.get(variable):
            tags[variable.lower()] = os.environ[variable]
    return tags | git_tags(root)


def git_tags(root: Path) -> dict[str, str]:
    """`git.commit` and `git.dirty`; empty outside a repository or before its first commit."""
    try:
        repository = git.Repo(root, search_parent_directories=True)
        commit = repository.head.commit.hexsha
        # untracked files are outs and scratch; only changes of tracked ones differ from the commit
        dirty = str(repository.is_dirty(untracked_files=False)).lower()
    except (git.InvalidGitRepositoryError, ValueError):
        return {}
    return {"git.commit": commit, "mlflow.source.git.commit": commit, "git.dirty": dirty}


def _children(reports: Path, key: str, stage: str, start_ms: int) -> Iterable[Record]:
    """A record a row of the table of trials: its parameters, its final metrics, and its curves by epoch."""
    if not (reports / _CHILDREN).exists():
        return
    table = pl.read_csv(reports / _CHILDREN, glob=False)
    first = table.columns.index(_FIRST_MEASURED)
    epochs = pl.read_csv(reports / _CHILD_CURVES, glob=False) if (reports / _CHILD_CURVES).exists() else None
    for row in table.iter_rows(named=True):
        measured = {name: row[name] for name in table.columns[first:]}
        shown = points(measured)
        if epochs is not None:
            trial, step, *names = epochs.columns
            for epoch in epochs.filter(pl.col(trial) == row["trial"]).iter_rows(named=True):
                shown += points({name: epoch[name] for name in names}, int(epoch[step]))
        words = {f"{stage}.{name}": value for name, value in measured.items() if isinstance(value, str)}
        yield Record(
            key=f"{key}-{row['trial']}",
            name=f"trial-{row['trial']}",
            status=_CHILD_STATUS.get(row["state"], "FAILED"),
            start_ms=start_ms,
            end_ms=now_ms(),
            tags={STAGE_TAG: f"{stage}-trial", **words},
            params=as_text({name: row[name] for name in table.columns[2:first]}),
            metrics=tuple(shown),
        )


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def keep(home: Path, record: Record) -> None:
    """Write a record among those that wait; one of the same run stays as it is, and so do its times.

    Args:
        home: The checkout that keeps MLflow's things.
        record: Of a run.
    """
    path = home / FOLDER / f"{record.key}.{fingerprint(record.address, record.experiment)[:8]}.json"
    if not _is_readable(path):
        with replacing(path) as temporary:
            temporary.write_text(record.model_dump_json(), encoding="utf-8")


def _is_readable(path: Path) -> bool:
    try:
        return bool(read(path))
    except InputError:
        return False


def waiting(home: Path) -> list[Path]:
    """The records that MLflow does not have yet."""
    return sorted((home / FOLDER).glob("*.json"))


def read(path: Path) -> Record:
    """A record from its file.

    Raises:
        InputError: The file is damaged, or not there.
    """
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path}: not a record of a run ({error.errors()[0]['msg']}); remove it") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def without_secrets(text: str) -> str:
    """Text in one line without user names and passwords of addresses in it."""
    return masked(" ".join(text.split()))
