"""The run of one stage: parameters, metrics, data sets in, artifacts out, and its receipt."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import git
from mlflow.entities import RunStatus
from mlflow.tracking import MlflowClient

from moe_beyond.errors import InputError
from moe_beyond.files import folder_digest, write_json
from moe_beyond.settings import Settings, flatten
from moe_beyond.tracking.children import ChildRuns
from moe_beyond.tracking.client import PatientClient
from moe_beyond.tracking.connection import connect
from moe_beyond.tracking.dvc import DvcStage, read_stage, restore_outs
from moe_beyond.tracking.entries import log_metrics, log_params
from moe_beyond.tracking.system import system_metrics
from moe_beyond.tracking.unended import ending_what_was_killed

LIBRARIES = ("torch", "lightning", "transformers", "optuna", "mlflow", "dvc", "onnx", "onnxruntime", "numpy", "numba")


Parameters = TypeVar("Parameters", bound=Settings)


@dataclass(frozen=True)
class StageRun(Generic[Parameters]):
    """An open run of a stage."""

    stage: str
    params: Parameters
    root: Path
    run_id: str
    declared: DvcStage
    client: PatientClient

    @property
    def reports(self) -> Path:
        """The stage's folder of small tables and metrics."""
        return self.root / "reports" / self.stage

    @property
    def tracking_uri(self) -> str:
        """For libraries that open a logger of their own on this run."""
        return self.client.uri

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write a nested dict of numbers to `reports/<stage>/metrics.json`; the same numbers go to MLflow."""
        write_json(self.reports / "metrics.json", metrics)
        self.log_step_metrics(flatten(metrics, "/"), step=0)

    def log_step_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Log numbers at a step to MLflow alone, for curves and for timings that no file should hold."""
        log_metrics(self.client, self.run_id, metrics, step)

    @property
    def children(self) -> ChildRuns:
        """Opens runs below this one, for the trials of a search, from any process of this machine."""
        return ChildRuns(self.root, self.stage, self.run_id)


@contextmanager
def stage_run(
    stage: str, load: Callable[[Path], Parameters], root: Path | None = None
) -> Iterator[StageRun[Parameters]]:
    """Open the run of a stage; on success log its outs and write its receipt.

    An InputError ends the process with status 1 and one line on standard error; any other exception passes. In both
    cases the run is marked as failed and no receipt is written; the run of a killed process is ended by the next one.
    MLflow may go away meanwhile: see `client.py`. The run is not mlflow's active one; what needs that
    (`mlflow.<flavour>.log_model`) opens `mlflow.start_run(run_id=...)`.

    Args:
        stage: Name in dvc.yaml.
        load: Reads and checks params.yaml.
        root: Project's root; default the working directory, where DVC starts stages.
    """
    root = (root or Path.cwd()).resolve()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("moe_beyond").setLevel(logging.INFO)
    try:
        params = load(root / "params.yaml")
        declared = read_stage(root / "dvc.yaml", stage)
        client = connect(root)
        with ending_what_was_killed(client, root, stage) as note:
            run_id = client.create_run(run_name=stage, tags=context_tags(stage, root)).info.run_id
            note(run_id)
            with _ended(StageRun(stage, params, root, run_id, declared, client)) as run:
                yield run
    except BaseException as error:
        restore_outs(root, stage)
        if not isinstance(error, InputError):
            raise
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the one line that a person reads
        raise SystemExit(1) from error


@contextmanager
def _ended(run: StageRun[Parameters]) -> Iterator[StageRun[Parameters]]:
    """Log what goes in and, on success, what comes out; end the run either way."""
    client, run_id, status = run.client, run.run_id, RunStatus.FAILED
    try:
        with system_metrics(client, run_id):
            log_params(client, run_id, stage_params(run.params, run.declared))
            _log_datasets(run)
            yield run
            _require_outs(run)
            _write_receipt(run)
            log_outs(client, run_id, run.root, run.declared)
        status = RunStatus.FINISHED
    finally:
        client.set_terminated(run_id, RunStatus.to_string(status))
        client.flush(patient=True)


def stage_params(params: Settings, declared: DvcStage) -> dict[str, Any]:
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


def _log_datasets(run: StageRun[Any]) -> None:
    """Name the data that the stage reads, with DVC's digest, without copying it."""
    for path in run.declared.deps:
        if not path.startswith(("data/", "models/")) or not (run.root / path).exists():
            continue
        run.client.log_data(run.run_id, run.root / path, path.replace("/", "."), folder_digest(run.root / path))


def _require_outs(run: StageRun[Any]) -> None:
    """A receipt vouches for every out: all of them must be there first."""
    for out in run.declared.outs:
        if not (run.root / out).exists() and run.root / out != run.reports / "run.json":
            raise InputError(f"{out}: the stage did not write this out of dvc.yaml")


def _write_receipt(run: StageRun[Any]) -> None:
    write_json(run.reports / "run.json", {"stage": run.stage, "run_id": run.run_id})


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
