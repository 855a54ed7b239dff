"""The run of one stage: parameters, metrics, data sets in, artifacts out, and its receipt."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import git

from moe_beyond.config import Params, flatten, load_params
from moe_beyond.dvcfile import DvcStage, content_md5, read_stage, restore_outs
from moe_beyond.errors import InputError
from moe_beyond.files import write_json
from moe_beyond.tracking.connection import connect

import mlflow  # isort: skip  # after `connection`, which sets what mlflow reads at import
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param, RunStatus
from mlflow.tracking import MlflowClient

LIBRARIES = ("torch", "lightning", "transformers", "optuna", "mlflow", "dvc", "onnx", "onnxruntime", "numpy", "numba")
_BATCH_METRICS, _BATCH_PARAMS = 1000, 100  # the most that one request of MLflow's API takes


@dataclass(frozen=True)
class StageRun:
    """An open run of a stage."""

    stage: str
    params: Params
    root: Path
    run_id: str
    declared: DvcStage
    client: MlflowClient

    @property
    def reports(self) -> Path:
        """The stage's folder of small tables and metrics."""
        return self.root / "reports" / self.stage

    @property
    def tracking_uri(self) -> str:
        """For libraries that open a logger of their own on this run."""
        return str(mlflow.get_tracking_uri())

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write a nested dict of numbers to `reports/<stage>/metrics.json`; the same numbers go to MLflow."""
        write_json(self.reports / "metrics.json", metrics)
        self.log_step_metrics(flatten(metrics, "/"), step=0)

    def log_step_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Log numbers at a step to MLflow alone, for curves and for timings that no file should hold."""
        log_metrics(self.client, self.run_id, metrics, step)

    @contextmanager
    def child(self, name: str, params: dict[str, Any]) -> Iterator[Callable[[dict[str, float], int], None]]:
        """A run below this one, for a trial of a search; yields what logs its metrics at a step."""
        tags = {"mlflow.parentRunId": self.run_id, "moe_beyond.stage": f"{self.stage}-trial"}
        experiment = self.client.get_run(self.run_id).info.experiment_id
        run_id = self.client.create_run(experiment, run_name=name, tags=tags).info.run_id
        log_params(self.client, run_id, params)
        status = RunStatus.FAILED
        try:
            yield partial(log_metrics, self.client, run_id)
            status = RunStatus.FINISHED
        finally:
            self.client.set_terminated(run_id, RunStatus.to_string(status))


def log_metrics(client: MlflowClient, run_id: str, metrics: dict[str, Any], step: int = 0) -> None:
    """Log numbers in as few requests as the API allows; booleans count as 0 and 1, None and text are left out."""
    now = int(time.time() * 1000)
    numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
    entities = [Metric(key, value, now, step) for key, value in numbers.items()]
    for start in range(0, len(entities), _BATCH_METRICS):
        client.log_batch(run_id, metrics=entities[start : start + _BATCH_METRICS])


def log_params(client: MlflowClient, run_id: str, params: dict[str, Any]) -> None:
    """Log parameters, lists as JSON, in as few requests as the API allows."""
    entities = [
        Param(key, value if isinstance(value, str) else json.dumps(value, default=str)) for key, value in params.items()
    ]
    for start in range(0, len(entities), _BATCH_PARAMS):
        client.log_batch(run_id, params=entities[start : start + _BATCH_PARAMS])


@contextmanager
def stage_run(stage: str, root: Path | None = None) -> Iterator[StageRun]:
    """Open the run of a stage; on success log its outs and write its receipt.

    An InputError ends the process with status 1 and one line on standard error; any other exception passes. In both
    cases the run is marked as failed and no receipt is written.

    Args:
        stage: Name in dvc.yaml.
        root: Project's root; default the working directory, where DVC starts stages.
    """
    root = (root or Path.cwd()).resolve()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("moe_beyond").setLevel(logging.INFO)
    try:
        params = load_params(root / "params.yaml")
        declared = read_stage(root / "dvc.yaml", stage)
        client = connect(root)
        with mlflow.start_run(run_name=stage, tags=context_tags(stage, root), log_system_metrics=True) as active:
            run = StageRun(stage, params, root, active.info.run_id, declared, client)
            log_params(client, run.run_id, stage_params(params, declared))
            _log_datasets(run)
            try:
                yield run
            except BaseException:
                # Lightning's logger closes the run as finished; say again that it was not
                client.set_terminated(run.run_id, RunStatus.to_string(RunStatus.FAILED))
                raise
            _require_outs(run)
            _write_receipt(run)
            log_outs(client, run.run_id, root, declared)
    except BaseException as error:
        restore_outs(root, stage)
        if not isinstance(error, InputError):
            raise
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the one line that a person reads
        raise SystemExit(1) from error


def stage_params(params: Params, declared: DvcStage) -> dict[str, Any]:
    """The parameters that dvc.yaml says the stage reads, flat, `train.learning_rate` and the like."""
    flat = flatten(params.model_dump(by_alias=True, mode="json"))
    wanted = declared.params
    return {key: value for key, value in flat.items() if any(key == w or key.startswith(f"{w}.") for w in wanted)}


def context_tags(stage: str, root: Path) -> dict[str, str]:
    """Commit, DVC stage and experiment, and library versions, as tags."""
    tags = {"moe_beyond.stage": stage} | {f"version.{name}": version(name) for name in LIBRARIES}
    for variable in ("DVC_STAGE", "DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        if os.environ.get(variable):
            tags[variable.lower()] = os.environ[variable]
    return tags | git_tags(root)


def git_tags(root: Path) -> dict[str, str]:
    """`git.commit` and `git.dirty`; empty outside a repository or before its first commit."""
    try:
        repository = git.Repo(root, search_parent_directories=True)
        # untracked files are outs and scratch; tracked ones decide whether the commit tells the truth
        return {
            "git.commit": repository.head.commit.hexsha,
            "mlflow.source.git.commit": repository.head.commit.hexsha,
            "git.dirty": str(repository.is_dirty(untracked_files=False)).lower(),
        }
    except (git.InvalidGitRepositoryError, ValueError):
        return {}


def _log_datasets(run: StageRun) -> None:
    """Name the data that the stage reads, with DVC's digest, without copying it."""
    for path in run.declared.deps:
        if not path.startswith(("data/", "models/")) or not (run.root / path).exists():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mlflow knows local paths twice and says so
            source = resolve_dataset_source(str(run.root / path))
        dataset = MetaDataset(  # type: ignore[abstract]  # mlflow leaves out `profile` itself
            source, name=path.replace("/", "."), digest=content_md5(run.root / path)
        )
        mlflow.log_input(dataset, context="input")


def _require_outs(run: StageRun) -> None:
    """A receipt vouches for every out: all of them must be there first."""
    for out in run.declared.outs:
        if not (run.root / out).exists() and run.root / out != run.reports / "run.json":
            raise InputError(f"{out}: the stage did not write this out of dvc.yaml")


def _write_receipt(run: StageRun) -> None:
    experiment_id = run.client.get_run(run.run_id).info.experiment_id
    receipt = {"stage": run.stage, "run_id": run.run_id, "experiment_id": experiment_id}
    write_json(run.reports / "run.json", receipt)


def log_outs(client: MlflowClient, run_id: str, root: Path, declared: DvcStage) -> None:
    """Log every out of the stage as an artifact, under the path it has in the project."""
    for out in declared.outs:
        log_artifact(client, run_id, root, out)


def log_artifact(client: MlflowClient, run_id: str, root: Path, path: str) -> None:
    """Log a file or a folder under the path, relative to the root, that it has in the project."""
    source = root / path
    if source.is_dir():
        client.log_artifacts(run_id, str(source), artifact_path=path)
    else:
        parent = Path(path).parent.as_posix()
        client.log_artifact(run_id, str(source), artifact_path=None if parent == "." else parent)
