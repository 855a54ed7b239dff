"""A state of the pipeline: parameters and the numbers that decide, from the files here, a git revision, or MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import git
import yaml
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from moe_beyond.errors import InputError, reason_of
from moe_beyond.registry.registry import Registry
from moe_beyond.settings import flatten
from moe_beyond.tracking.client import connected
from moe_beyond.tracking.pipeline import CHOICE, HEADLINE
from moe_beyond.tracking.run_record import STAGE_TAG, as_text, chosen_params

_RUN_ID = "[0-9a-f]{32}"


@dataclass(frozen=True)
class State:
    """One state.

    Attributes:
        name: As it was given.
        about: What it refers to.
        params: Every parameter, dotted keys, values as MLflow writes them; what the search chose, as `chosen.width`,
            where that is known: git does not hold it.
        numbers: Those that decide, each with `value` and, where it has an interval, `low` and `high`.
    """

    name: str
    about: str
    params: dict[str, str]
    numbers: dict[str, dict[str, float]]


def find_states(root: Path, names: Sequence[str], defaults: dict[str, Any]) -> list[State]:
    """Find the states that a user names; MLflow is called only where a name needs it.

    Args:
        root: The project's root.
        names: `workspace`, an MLflow run id, `champion`, `challenger`, `NAME@champion`, `NAME@VERSION`, a git revision
            or the name of an experiment of DVC each.
        defaults: Parameters that a params.yaml does not set, flat.

    Raises:
        InputError: A name is unknown, or MLflow does not respond.
    """
    found = {
        name: workspace(root, defaults) if name == "workspace" else revision(root, name, defaults)
        for name in names
        if not _is_mlflows(name)
    }
    if len(found) < len(set(names)):
        with connected(root) as connection:
            found |= {name: _from_mlflow(connection.client, name) for name in names if _is_mlflows(name)}
    return [found[name] for name in names]


def workspace(root: Path, defaults: dict[str, Any], name: str = "workspace") -> State:
    """The files as they are now."""
    state = _read(name, "the files here", lambda path: (root / path).read_bytes(), defaults)
    chosen = as_text(chosen_params(root / CHOICE)) if (root / CHOICE).exists() else {}
    return replace(state, params=state.params | chosen)


def revision(root: Path, name: str, defaults: dict[str, Any]) -> State:
    """A git revision or an experiment of DVC: parameters and numbers are in git.

    Raises:
        InputError: No repository, no such revision, one without params.yaml, or several experiments of this name.
    """
    try:
        repository = git.Repo(root, search_parent_directories=True)
        experiments = _experiments(repository, name)
    except git.InvalidGitRepositoryError as error:
        raise InputError(f"{name}: {root} is no git repository; name MLflow runs or aliases instead") from error
    except git.GitCommandError as error:  # such as a repository of another user
        raise InputError(f"{root}: git does not read it ({reason_of(error.stderr)})") from error
    if len(experiments) > 1:
        commits = ", ".join(repository.commit(ref).hexsha[:7] for ref in experiments)
        raise InputError(f"{name}: {len(experiments)} experiments have this name; give the commit of one: {commits}")
    try:
        commit = repository.commit(*experiments or [name])
    except (git.BadName, ValueError, IndexError) as error:
        raise InputError(
            f"{name}: neither an MLflow run, nor an alias (NAME@champion), nor a git revision, nor an experiment of "
            "DVC; see git log, dvc exp list -A or make ui"
        ) from error

    def from_git(path: str) -> bytes:
        try:
            return bytes((commit.tree / path).data_stream.read())
        except KeyError as error:
            raise FileNotFoundError(path) from error

    subject = commit.message.splitlines()[0] if isinstance(commit.message, str) else ""
    return _read(name, f"commit {commit.hexsha[:7]}, {subject}", from_git, defaults)


def _experiments(repository: git.Repo, name: str) -> list[str]:
    """DVC keeps an experiment as a commit, by a ref of its baseline's digits, in two parts, and its name."""
    refs = repository.git.for_each_ref("refs/exps", format="%(refname)").split()
    return [ref for ref in refs if re.fullmatch(rf"refs/exps/[0-9a-f]{{2}}/[0-9a-f]{{38}}/{re.escape(name)}", ref)]


def only_model(client: MlflowClient) -> str:
    """The one registered model of this project.

    Raises:
        InputError: There is none, or more than one.
    """
    names = sorted(m.name for m in client.search_registered_models() if m.name.startswith("moe-beyond."))
    if len(names) != 1:
        known = ", ".join(names) if names else "none: the publish stage registers one"
        raise InputError(f"name the registered model, as NAME@champion or by --name; this MLflow has {known}")
    return str(names[0])


def _is_mlflows(name: str) -> bool:
    # HEAD@{1} and the like are git's
    return bool(re.fullmatch(f"{_RUN_ID}|champion|challenger|.+@[^{{].*", name))


def _read(name: str, about: str, read: Callable[[str], bytes], defaults: dict[str, Any]) -> State:
    try:
        params = defaults | flatten(yaml.safe_load(read("params.yaml")))
    except FileNotFoundError as error:
        raise InputError(f"{name}: no params.yaml there; name a state of this project") from error
    try:
        found = json.loads(read(HEADLINE.as_posix()))
    except FileNotFoundError:
        found = {}  # a state before its first run
    # files of an earlier layout hold other numbers
    numbers = {key: number for key, number in found.items() if isinstance(number, dict) and "value" in number}
    return State(name, about, as_text(params), numbers)


def _from_mlflow(client: MlflowClient, name: str) -> State:
    """The state of a pipeline run; for a stage's run, of the pipeline that it first belonged to."""
    run_id = name
    if not re.fullmatch(_RUN_ID, name):
        model, _, alias = name.rpartition("@")
        run_id = Registry(client, model or only_model(client)).version(alias).tags["run.pipeline"]
    try:
        run = client.get_run(run_id)
        if run.data.tags.get(STAGE_TAG) != "pipeline" and "mlflow.parentRunId" in run.data.tags:
            run = client.get_run(run.data.tags["mlflow.parentRunId"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError(f"{name}: no run {run_id} in this MLflow; see `make ui`") from error
    if run.data.tags.get(STAGE_TAG) != "pipeline":
        raise InputError(f"{name}: run {run_id} ({run.info.run_name}) belongs to no pipeline run; give one of those")
    numbers: dict[str, dict[str, float]] = {}
    for key, value in run.data.metrics.items():
        number, _, part = key.partition("/")
        if part in ("", "low", "high"):
            numbers.setdefault(number, {})[part or "value"] = value
    about = f"MLflow run {run.info.run_id[:8]}, {run.info.run_name}"
    return State(name, about, dict(run.data.params), numbers)
