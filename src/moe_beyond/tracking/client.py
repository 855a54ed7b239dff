"""Logging records to MLflow, wherever it is, and listing what it does not have yet.

Logging a record twice changes nothing: its run is found by a tag that holds the record's key, times are those of the
run, and parameters, tags, points and artifacts replace themselves. A record is kept until MLflow has all of it, so that
nothing is lost and nothing is logged twice, whenever the process was killed.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import mlflow
from filelock import FileLock
from google.protobuf.json_format import ParseError
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID, MLFLOW_USER
from sqlalchemy.exc import SQLAlchemyError

from moe_beyond.errors import InputError, reason_of
from moe_beyond.files import folder_digest
from moe_beyond.tracking.database import (
    artifacts_beside,
    bring_artifacts_home,
    local_database,
    require_writable,
    uri_of,
)
from moe_beyond.tracking.dvc import copy_from_cache
from moe_beyond.tracking.run_record import (
    DEFAULT_EXPERIMENT,
    FOLDER,
    KEY_TAG,
    Record,
    keep,
    read,
    waiting,
    without_secrets,
)
from moe_beyond.tracking.superseded import delete_logged, forget_waiting, place_tag

log = logging.getLogger(__name__)
Item = TypeVar("Item")
# migrations and guesses do not matter to a stage; what the store refuses becomes one line of ours
for name, level in (("mlflow", "WARNING"), ("alembic", "WARNING"), ("mlflow.store.db.utils", "CRITICAL")):
    logging.getLogger(name).setLevel(level)

LOGGED_TAG = "moe_beyond.logged"
MLFLOW_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError, ParseError)
"""What MLflow raises when it is away, refuses, has no disk left, lacks its database's driver, or is no MLflow."""
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_NOT_GENAI = "workflowType=machine_learning"
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}
_PROBE_S, _LOCK_S = 5.0, 600.0
_MOST_METRICS, _MOST_PARAMS = 1000, 100  # of one request of MLflow's API


class MlflowMissingError(InputError):
    """MLflow is away or refused; the message is one line."""


@dataclass(frozen=True)
class Mlflow:
    """A connection.

    Attributes:
        client: MLflow's own.
        experiment_id: Of the experiment that this project logs to.
    """

    client: MlflowClient
    experiment_id: str

    @property
    def runs_page(self) -> str:
        """Address of the list of runs, of a local database where `make ui` shows it.

        MLflow 3.17 opens an experiment on its overview for GenAI, whatever kind the experiment is of: hence the
        query of the address.
        """
        uri = without_secrets(self.client.tracking_uri)
        server = uri if uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{server}/#/experiments/{self.experiment_id}/runs?{_NOT_GENAI}"

    def find(self, key: str) -> list[Run]:
        """The runs of a record: one, none, or several for a moment, after a request that was carried out and failed."""
        return list(self.client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'"))

    def has(self, key: str) -> str | None:
        """Id of the run of a record that was logged to its end."""
        return next((str(run.info.run_id) for run in self.find(key) if LOGGED_TAG in run.data.tags), None)


def main_root(root: Path) -> Path:
    """The checkout that keeps the default database and the records.

    `dvc exp run --temp` and `--queue` run stages in a temporary copy, where both would be lost; DVC names the checkout
    in DVC_ROOT.
    """
    return Path(os.environ.get("DVC_ROOT") or root).resolve()


def tracking_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI`, or the database of the checkout.

    Raises:
        InputError: There is no checkout: a database would come up wherever the command is given.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and not _is_project(root):
        raise InputError(
            f"{main_root(root)}: no project here (no dvc.yaml); change to the project's root, or set "
            "MLFLOW_TRACKING_URI"
        )
    return uri or _database_here(root)


def destination(root: Path) -> dict[str, str]:
    """Address, without passwords, and experiment as a record holds them."""
    uri = tracking_uri(root)
    address = "" if uri == _database_here(root) else without_secrets(uri)
    return {"address": address, "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT}


def _is_project(root: Path) -> bool:
    return any((main_root(root) / name).is_file() for name in ("dvc.yaml", "mlflow.db"))


def _database_here(root: Path) -> str:
    return uri_of(main_root(root) / "mlflow.db")


@contextmanager
def connected(root: Path) -> Iterator[Mlflow]:
    """A connection for requests that cannot wait.

    Args:
        root: The project's root.

    Raises:
        MlflowMissingError: MLflow is away, at once or within half a minute, or refuses.
    """
    uri = tracking_uri(root)
    try:
        with _alone(uri, root):
            connection = _connect(uri, destination(root)["experiment"])
        yield connection
    except MLFLOW_ERRORS as error:
        fix = "start it (make ui on this machine), or correct or unset the variable"
        shown = f"MLFLOW_TRACKING_URI: {without_secrets(uri)} failed ({_reason(error, uri)}); {fix}"
        if local_database(uri) is not None:
            fix = "mend that, or set MLFLOW_TRACKING_URI to another one"
            shown = f"{without_secrets(uri)}: MLflow cannot use this database: {_reason(error, uri)}; {fix}"
        raise MlflowMissingError(shown) from error


def _connect(uri: str, name: str) -> Mlflow:
    _probe(uri)
    try:
        return _experiment(uri, name)
    except MLFLOW_ERRORS:
        raise
    except Exception as error:
        raise MlflowException("no MLflow") from error  # whatever the client made of a response


def _experiment(uri: str, name: str) -> Mlflow:
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    database, experiment = local_database(uri), client.get_experiment_by_name(name)
    if database is not None:
        bring_artifacts_home(database)
    if experiment is None:
        # a server decides itself where artifacts go
        place = None if database is None else artifacts_beside(database).as_uri()
        return Mlflow(client, str(client.create_experiment(name, place, tags=_KIND)))
    if not experiment.experiment_id:
        raise MlflowException("not a response of MLflow: an experiment without an id")
    for key, value in _KIND.items():
        if key not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return Mlflow(client, str(experiment.experiment_id))


def _probe(uri: str) -> None:
    """Fail at once where nothing can be logged: mlflow itself would try for minutes."""
    database, parts = local_database(uri), urlsplit(uri)
    port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
    if database is not None:
        require_writable(database)
    elif parts.hostname is not None and port is not None:
        socket.create_connection((parts.hostname, port), _PROBE_S).close()


def _alone(uri: str, root: Path) -> AbstractContextManager[object]:
    """Exclude other processes: two at once would both create what is missing, the tables or the run."""
    database = local_database(uri)
    if database is None and not _is_project(root):
        return nullcontext()  # nothing is made there; a server refuses the second of two experiments of one name
    path = main_root(root) / FOLDER / "lock" if database is None else database.with_name(f"{database.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=_LOCK_S)


@dataclass
class Sent:
    """The outcome of logging the records that waited.

    Attributes:
        logged: Names of the runs that MLflow has now.
        missing: Name of each run that it lacks, with the reason, by the record's file.
        lost: Artifacts that are neither in the workspace nor in DVC's cache any more, by run.
        elsewhere: Names of the runs that wait for another address or experiment, by that address.
    """

    logged: list[str] = field(default_factory=list)
    missing: dict[Path, tuple[str, str]] = field(default_factory=dict)
    lost: dict[str, list[str]] = field(default_factory=dict)
    elsewhere: dict[str, list[str]] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """What is missing, a line each; empty where nothing is."""
        lines = [
            f"run {run} in MLflow lacks {', '.join(paths)}: changed since, and not in DVC's cache"
            for run, paths in self.lost.items()
        ]
        lines += [
            f"waiting for {place}: {_counted(runs)}; set MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME so, then: "
            "moe-beyond resend"
            for place, runs in self.elsewhere.items()
        ]
        if self.missing:
            runs, reasons = zip(*self.missing.values(), strict=True)
            why = ", ".join(dict.fromkeys(reasons))
            lines.append(f"MLflow lacks {_counted(runs)} ({why}); to log it again: moe-beyond resend")
        return lines


def _counted(runs: Sequence[str]) -> str:
    """How many runs, and which."""
    named = (name if count == 1 else f"{name} ({count} times)" for name, count in Counter(runs).items())
    return f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}: {', '.join(named)}"


def log_run(root: Path, record: Record) -> Sent:
    """Keep a record, and log all that wait; what MLflow refuses is kept, with a warning.

    Args:
        root: The project's root.
        record: Of a run that has ended.
    """
    home = main_root(root)
    keep(home, record.model_copy(update=destination(root) | {"tags": record.tags | place_tag(home)}))
    forget_waiting(home, root, record)
    sent = send(root)
    for sentence in sent.sentences():
        log.warning("%s", sentence)
    return sent


def send(root: Path) -> Sent:
    """Log every record that waits for the MLflow of now, oldest first, and delete those of which it has all.

    Args:
        root: The project's root, or a copy of it, where artifacts may lie.
    """
    sent, uri, here = Sent(), tracking_uri(root), destination(root)
    records: dict[Path, Record] = {}
    for path in waiting(main_root(root)):
        try:
            record = read(path)
        except InputError as error:
            sent.missing[path] = (path.name, str(error))
            continue
        if {"address": record.address, "experiment": record.experiment} == here:
            records[path] = record
        else:
            where = f"{record.address or 'the database here'}, experiment {record.experiment}"
            sent.elsewhere.setdefault(where, []).append(record.name)
    database = local_database(uri)
    if records or (database is not None and database.exists()):  # whose artifacts may have to come home
        try:
            with _alone(uri, root):
                _send(_connect(uri, here["experiment"]), root, uri, records, sent)
        except Exception as error:  # noqa: BLE001 - outs and records are there, whatever a library makes of a response
            reason = f"{without_secrets(uri)}: {_reason(error, uri)}"
            left = {path: (record.name, reason) for path, record in records.items() if path.exists()}
            sent.missing = left | sent.missing
            if not records:
                log.warning("%s", reason)
    return sent


def _send(to: Mlflow, root: Path, uri: str, records: dict[Path, Record], sent: Sent) -> None:
    for path, record in sorted(records.items(), key=lambda item: item[1].end_ms):
        try:
            lost = log_record(to, root, record)
            if to.has(record.key) is None:
                raise MlflowException("took every request, and does not hold the run")
            delete_logged(to.client, to.experiment_id, root, record)
        except Exception as error:  # noqa: BLE001 - as in `send`
            sent.missing[path] = (record.name, _reason(error, uri))
            # a server that cannot even be read from is away: trying each of the others would take minutes
            to.client.get_experiment(to.experiment_id)
            continue
        sent.logged.append(record.name)
        if lost:
            sent.lost[record.name] = lost
        path.unlink(missing_ok=True)


def log_record(to: Mlflow, root: Path, record: Record, parent: str | None = None) -> list[str]:
    """Log a record, or what MLflow lacks of it; returns the artifacts that are lost.

    Args:
        to: The connection.
        root: Where artifacts may lie.
        record: Of a run that has ended.
        parent: Id of the run that this one belongs below.
    """
    runs = to.find(record.key)
    if any(LOGGED_TAG in run.data.tags for run in runs):
        return []
    if not runs:
        user = {MLFLOW_USER: os.environ.get("USER", "unknown"), KEY_TAG: record.key}
        to.client.create_run(to.experiment_id, record.start_ms, user | record.tags, record.name)
        runs = to.find(record.key)
    run, *doubles = runs
    for double in doubles:
        to.client.delete_run(double.info.run_id)
    run_id, tags = str(run.info.run_id), dict(record.tags)
    # first: whatever happens now, it does not look as if it were running
    to.client.set_terminated(run_id, record.status, record.end_ms)
    if parent is not None:
        tags[MLFLOW_PARENT_RUN_ID] = parent
    for params in _batches([Param(*item) for item in record.params.items()], _MOST_PARAMS):
        to.client.log_batch(run_id, params=params)
    # the time is the run's: a point that is logged again is the same point
    points = [Metric(key, value, run.info.start_time, step) for key, value, step in record.metrics]
    for metrics in _batches(points, _MOST_METRICS):
        to.client.log_batch(run_id, metrics)
    if record.inputs:
        to.client.log_inputs(run_id, [_data_set(root, *data) for data in record.inputs])
    lost = [path for path, digest in record.artifacts if not _log_artifact(to.client, run_id, root, path, digest)]
    if lost:
        tags["moe_beyond.lost_artifacts"] = ", ".join(lost)
    for child in record.children:
        log_record(to, root, child, parent=run_id)
    tags |= _link(to, run_id, record.links)
    # last: a run with this tag is whole
    to.client.log_batch(run_id, tags=[RunTag(*tag) for tag in (*tags.items(), (LOGGED_TAG, "complete"))])
    return lost


def _batches(items: list[Item], most: int) -> Iterable[list[Item]]:
    return (items[start : start + most] for start in range(0, len(items), most))


def data_name(path: str) -> str:
    """The name of a data set in MLflow."""
    return path.replace("/", ".")


def _data_set(root: Path, path: str, digest: str) -> DatasetInput:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow knows local paths twice and says so
        source = resolve_dataset_source(str(root / path))
    data = MetaDataset(source, name=data_name(path), digest=digest)  # type: ignore[abstract]  # mlflow does not define `profile` itself
    return DatasetInput(data._to_mlflow_entity(), [InputTag(MLFLOW_DATASET_CONTEXT, "input")])


def _log_artifact(client: MlflowClient, run_id: str, root: Path, path: str, digest: str) -> bool:
    """Log a file or a folder under the path that it has in the project; False where it is lost."""
    if (root / path).exists() and folder_digest(root / path) == digest:
        log_path(client, run_id, root, path)
        return True
    with tempfile.TemporaryDirectory() as folder:
        found = copy_from_cache(root, digest, Path(folder) / path)
        if found:
            log_path(client, run_id, Path(folder), path)
    return found


def log_path(client: MlflowClient, run_id: str, root: Path, path: str) -> None:
    """Log a file or a folder under the path, relative to a root, that it has in the project."""
    if (root / path).is_dir():
        client.log_artifacts(run_id, str(root / path), artifact_path=path)
    else:
        parent = Path(path).parent.as_posix()
        client.log_artifact(run_id, str(root / path), artifact_path=None if parent == "." else parent)


def _link(to: Mlflow, run_id: str, links: dict[str, str]) -> dict[str, str]:
    """Tags that name the runs that belong to a run, by stage; a run without a parent gets this one."""
    lines, tags = ["Runs of the stages, each with its parameters, metrics and outs:", ""], {}
    for stage, key in links.items():
        found = to.find(key)
        if not found:
            lines.append(f"- {stage}: not in this MLflow")
            continue
        run = found[0]
        tags[f"run.{stage}"] = run.info.run_id
        lines.append(f"- [{stage}](#/experiments/{to.experiment_id}/runs/{run.info.run_id}?{_NOT_GENAI})")
        if MLFLOW_PARENT_RUN_ID not in run.data.tags:
            to.client.set_tag(run.info.run_id, MLFLOW_PARENT_RUN_ID, run_id)
    return tags | {"mlflow.note.content": "\n".join(lines)} if links else {}


def _reason(error: BaseException, uri: str) -> str:
    # the reason is what mlflow wraps in pages of its own
    while (deeper := error.__cause__ or error.__context__) and not isinstance(deeper, LookupError):
        error = deeper
    if schemas := re.search(r"found version (\w+), but expected (\w+)", str(error)):
        return (
            f"its schema {schemas[1]} is of another MLflow release, mlflow {mlflow.__version__} has {schemas[2]}; "
            f"copy the database, then: mlflow db upgrade {without_secrets(uri)} (where that does not know the schema, "
            "a newer mlflow wrote it: install that one)"
        )
    if not isinstance(error, MLFLOW_ERRORS):
        return reason_of(f"not a response of MLflow: {type(error).__name__}: {error}")
    return reason_of(without_secrets(str(error)))
