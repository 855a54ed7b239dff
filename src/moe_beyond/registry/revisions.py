"""A state of the pipeline: parameters, metrics and curves, from the files here or from a git revision.

States kept by MLflow are read in `tracking.states`, with the same outcome.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dvc.api
import git
import polars as pl
import yaml
from dvc.exceptions import DvcException

from moe_beyond.errors import InputError
from moe_beyond.settings import STAGES, flatten

TABLES = {
    "replay": "reports/simulate/replay.csv",
    "quality": "reports/export/quality.csv",
    "gate": "reports/publish/table.csv",
}
"""Tables that a comparison draws from, and where they lie."""


@dataclass(frozen=True)
class State:
    """One state.

    Attributes:
        name: As it was asked for.
        about: What it turned out to be.
        params: Every parameter, dotted keys, values as MLflow writes them.
        metrics: `<stage>/<metric>`; of a pipeline run the headline metrics alone.
        tables: Those of `TABLES` that could be had.
        missing: Why each of the others could not.
    """

    name: str
    about: str
    params: dict[str, str]
    metrics: dict[str, float]
    tables: dict[str, pl.DataFrame]
    missing: dict[str, str]


def workspace(root: Path, name: str = "workspace") -> State:
    """The files as they are now."""

    def read(path: str) -> bytes:
        return (root / path).read_bytes()

    return _state(name, "the files here", read, read)


def revision(root: Path, name: str) -> State:
    """A git revision: parameters and metrics from git, tables from DVC's cache or remote.

    Raises:
        InputError: No repository, no such revision, or one without params.yaml.
    """
    try:
        repository = git.Repo(root, search_parent_directories=True)
        commit = repository.commit(name)
    except git.InvalidGitRepositoryError as error:
        raise InputError(f"{name}: {root} is no git repository; name MLflow runs or aliases instead") from error
    except (git.BadName, ValueError, IndexError) as error:
        raise InputError(
            f"{name}: neither an MLflow run, nor an alias (NAME@champion), nor a git revision; see git log or make ui"
        ) from error

    def from_git(path: str) -> bytes:
        try:
            data: bytes = (commit.tree / path).data_stream.read()
        except KeyError as error:
            raise FileNotFoundError(path) from error
        return data

    def from_dvc(path: str) -> bytes:
        try:
            content: bytes = dvc.api.read(path, repo=str(root), rev=commit.hexsha, mode="rb")
        except DvcException as error:
            # DVC's own words repeat the path three times
            raise FileNotFoundError(
                f"{path}: neither in DVC's cache nor on its remote; dvc fetch may get it"
            ) from error
        return content

    subject = commit.message.splitlines()[0] if isinstance(commit.message, str) else ""
    return _state(name, f"commit {commit.hexsha[:7]}, {subject}", from_git, from_dvc)


def shortened(states: Sequence[State]) -> list[State]:
    """States of one registered model, `NAME@1` and `NAME@champion`, by what tells them apart; others as they are."""
    models = {state.name.rpartition("@")[0] for state in states}
    if len(models) > 1 or "" in models:
        return list(states)
    (model,) = models
    words = [state.name.removeprefix(f"{model}@") for state in states]
    short = [f"version {word}" if word.isdigit() else word for word in words]
    return [
        replace(state, name=name, about=f"{model}, {state.about}") for state, name in zip(states, short, strict=True)
    ]


def as_text(params: dict[str, Any]) -> dict[str, str]:
    """Parameters as MLflow keeps them: text as it is, anything else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in params.items()}


def _state(name: str, about: str, small: Callable[[str], bytes], large: Callable[[str], bytes]) -> State:
    try:
        params = yaml.safe_load(small("params.yaml"))
    except FileNotFoundError as error:
        raise InputError(f"{name}: no params.yaml there; name a state of this project") from error
    metrics: dict[str, float] = {}
    for stage in STAGES:
        try:
            found = json.loads(small(f"reports/{stage}/metrics.json"))
        except FileNotFoundError:
            continue  # a stage without metrics, or one that this state did not have
        metrics |= {f"{stage}/{key}": value for key, value in flatten(found, "/").items() if value is not None}
    tables, missing = {}, {}
    for table, path in TABLES.items():
        try:
            tables[table] = read_table(large(path))
        except FileNotFoundError as error:
            missing[table] = str(error)
    return State(name, about, as_text(flatten(params)), metrics, tables, missing)


def read_table(content: bytes) -> pl.DataFrame:
    """A CSV of a report; `layer` and `version` are names there, not numbers."""
    return pl.read_csv(io.BytesIO(content), schema_overrides={"layer": pl.String, "version": pl.String})
