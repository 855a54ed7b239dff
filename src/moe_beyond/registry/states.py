"""States of the pipeline that MLflow keeps: by run id, or by the alias of a registered model."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from moe_beyond.errors import InputError
from moe_beyond.registry.registry import Registry
from moe_beyond.registry.revisions import TABLES, State, read_table, revision, workspace
from moe_beyond.tracking.asking import asking

_MADE_BY = {"replay": "simulate", "quality": "export", "gate": "publish"}


def find_states(root: Path, names: Sequence[str]) -> list[State]:
    """Find what a person names; MLflow is asked only where a name needs it.

    Args:
        root: The project's root.
        names: `workspace`, an MLflow run id, `champion`, `challenger`, `NAME@champion`, `NAME@VERSION`, or a git
            revision each.

    Raises:
        InputError: Nothing goes by a name, or MLflow does not answer.
    """
    if not any(map(_is_mlflows, names)):
        return [_find(None, root, name) for name in names]
    with asking(root) as client:
        return [_find(client, root, name) for name in names]


def _is_mlflows(name: str) -> bool:
    # HEAD@{1} and the like are git's
    return bool(re.fullmatch("[0-9a-f]{32}|champion|challenger|.+@[^{].*", name))


def _find(client: MlflowClient | None, root: Path, name: str) -> State:
    if client is None or not _is_mlflows(name):
        return workspace(root) if name == "workspace" else revision(root, name)
    if re.fullmatch("[0-9a-f]{32}", name):
        return run_state(client, name, name)
    model, _, alias = name.rpartition("@")
    return run_state(client, _run_of(client, model or only_model(client), alias), name)


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


def run_state(client: MlflowClient, run_id: str, name: str) -> State:
    """The state of a pipeline run; for a stage's run, of the pipeline that it first belonged to.

    Raises:
        InputError: No such run, or one that belongs to no pipeline.
    """
    try:
        run = client.get_run(run_id)
        if run.data.tags.get("moe_beyond.stage") != "pipeline" and "mlflow.parentRunId" in run.data.tags:
            run = client.get_run(run.data.tags["mlflow.parentRunId"])
    except MlflowException as error:
        raise InputError(f"{name}: no run {run_id} in this MLflow; see `make ui`") from error
    tags = run.data.tags
    if tags.get("moe_beyond.stage") != "pipeline":
        raise InputError(f"{name}: run {run_id} ({run.info.run_name}) belongs to no pipeline run; give one of those")
    tables, missing = {}, {}
    for table, stage in _MADE_BY.items():
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = client.download_artifacts(tags.get(f"run.{stage}", run.info.run_id), TABLES[table], folder)
                tables[table] = read_table(Path(path).read_bytes())
        except (MlflowException, OSError) as error:
            missing[table] = f"{TABLES[table]} is not among the run's artifacts ({' '.join(str(error).split())[:120]})"
    about = f"MLflow run {run.info.run_id[:8]}, {run.info.run_name}"
    return State(name, about, dict(run.data.params), dict(run.data.metrics), tables, missing)


def _run_of(client: MlflowClient, model: str, alias: str) -> str:
    """The pipeline run behind an alias or a version of a registered model."""
    return str(Registry(client, model).version(alias).tags["run.pipeline"])
