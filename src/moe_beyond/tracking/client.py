"""An MLflow client that outlives the server: what cannot be sent waits in the spool, and goes out once it answers.

Sending something twice changes nothing, so at least once is exactly once: MLflow's key of a metric's point is the run,
the name, the step, the time and the value, and all are fixed when it is logged; parameters, tags and artifacts replace
themselves; a run carries a key of ours, by which it is found again when nobody knows whether it was created.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunData, RunInfo, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID
from requests.exceptions import RequestException
from typing_extensions import override

from moe_beyond.tracking.spool import Spool

log = logging.getLogger(__name__)

LOCAL = "local-"
"""How the id of a run starts that was opened while MLflow was away."""
KEY_TAG = "moe_beyond.key"
PROBE_S, PAUSE_S = 5.0, 5.0
_SQLITE_FILE = "sqlite:///"
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}
# the server is not there, or its database is not there; anything else is an answer
_AWAY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "SERVICE_UNDER_MAINTENANCE", "DEADLINE_EXCEEDED")


def local_database(uri: str) -> Path | None:
    """The file of a local database; None where the URI names something else."""
    return Path(uri.removeprefix(_SQLITE_FILE)) if uri.startswith(_SQLITE_FILE) else None


def answers(uri: str) -> bool:
    """Whether something listens at a tracking URI; True for one that names no host, such as a local database."""
    parts = urlsplit(uri)
    port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
    if parts.hostname is None or port is None:
        return True
    try:
        socket.create_connection((parts.hostname, port), PROBE_S).close()
    except OSError:
        return False
    return True


def is_away(error: Exception) -> bool:
    """Whether an error says that MLflow could not be asked, rather than that it refused."""
    return isinstance(error, RequestException) or (isinstance(error, MlflowException) and error.error_code in _AWAY)


class PatientClient(MlflowClient):
    """Writes go out at once, or wait in the spool behind what waits there already. Reads fail as they always do."""

    def __init__(self, uri: str, spool: Spool, experiment: str) -> None:
        """Make a client; nothing is asked yet.

        Args:
            uri: Of MLflow.
            spool: Where records wait.
            experiment: Name of the experiment that runs are created in.
        """
        super().__init__(uri)
        self.uri, self._spool, self.experiment = uri, spool, experiment
        self._turn, self._not_before = threading.RLock(), 0.0
        self._experiment_id: str | None = None

    def num_waiting(self) -> int:
        """Records that are kept here."""
        return len(self._spool.waiting())

    def resolve(self, run_id: str) -> str:
        """MLflow's own id of a run, where it has one by now."""
        return (self._spool.resolve(run_id) or run_id) if run_id.startswith(LOCAL) else run_id

    def give_up_for_now(self, reason: str) -> None:
        """Do not ask for some seconds; say so once."""
        if self._not_before == 0.0:
            log.warning(
                "MLFLOW_TRACKING_URI: %s does not answer (%s); work goes on, what would be logged waits in %s and is "
                "sent when it answers, by the next stage or by `moe-beyond resend`",
                self.uri,
                " ".join(reason.split())[:120],
                self._spool.folder.parent,
            )
        self._not_before = time.monotonic() + PAUSE_S

    def flush(self, *, patient: bool = False) -> bool:
        """Send what waits, in order; True when nothing is left.

        Args:
            patient: Ask now, even if MLflow was away a moment ago.
        """
        with self._turn:
            if not self._spool.waiting():
                return True
            if not patient and time.monotonic() < self._not_before:
                return False
            if not answers(self.uri):
                self.give_up_for_now("nothing listens there")
                return False
            with self._spool.taking() as mine:
                return mine and self._send_waiting()

    def _send_waiting(self) -> bool:
        for path in self._spool.waiting():
            record = self._spool.read(path)
            operation = "recreate_run" if record.operation == "create_run" else record.operation
            try:
                self._send(operation, record.arguments, next(iter(record.files.glob("*")), None))
            except (MlflowException, RequestException) as error:
                # a database that answers refuses; a store of artifacts can be away by itself
                if is_away(error) and ("artifact" in operation or not self._answers_reads()):
                    self.give_up_for_now(str(error))
                    return False
                aside = self._spool.reject(record)
                log.error("%s: MLflow refuses this record (%s); it stays there", aside, " ".join(str(error).split()))
            else:
                record.remove()
        if self._not_before:
            log.warning("MLflow answers again: what waited was sent")
            self._not_before = 0.0
        return True

    def _answers_reads(self) -> bool:
        try:
            self.get_experiment_by_name(self.experiment)
        except (MlflowException, RequestException):
            return False
        return True

    def _send_or_keep(self, operation: str, arguments: dict[str, Any], source: Path | None = None) -> Any:
        with self._turn:
            if self.flush():
                try:
                    return self._send(operation, arguments, source)
                except (MlflowException, RequestException) as error:
                    if not is_away(error):
                        raise
                    self.give_up_for_now(str(error))
            return self._spool.add(operation, arguments, source)

    def _send(self, operation: str, arguments: dict[str, Any], source: Path | None) -> Any:
        if "run_id" in arguments:
            arguments = arguments | {"run_id": self._known(arguments["run_id"])}
        if source is not None:
            arguments = arguments | {"source": source}
        return getattr(self, f"_send_{operation}")(**arguments)

    def _known(self, run_id: str) -> str:
        """MLflow's id of a run; asks MLflow where this machine has no note of it."""
        found = self.resolve(run_id)
        if found.startswith(LOCAL):
            run = self._find(run_id)
            if run is None:
                raise MlflowException.invalid_parameter_value(f"run {run_id} was never created")
            found = str(run.info.run_id)
        return found

    def _find(self, key: str) -> Run | None:
        experiment = self.get_experiment_by_name(self.experiment)
        if experiment is None:
            return None
        found = self.search_runs([experiment.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return found[0] if found else None

    @property
    def known_experiment(self) -> str | None:
        """Id of the experiment, if MLflow has answered so far."""
        return self._experiment_id

    def experiment_id(self) -> str:
        """Id of the experiment, which is created where it is new.

        Raises:
            MlflowException: MLflow does not answer.
        """
        if self._experiment_id is None:
            experiment = self.get_experiment_by_name(self.experiment)
            self._experiment_id = self._create_experiment() if experiment is None else str(experiment.experiment_id)
        return self._experiment_id

    def _create_experiment(self) -> str:
        # a server decides itself where artifacts go; beside a local database they lie in the project's root
        database = local_database(self.uri)
        place = None if database is None else (database.parent / "mlartifacts").as_uri()
        # the kind decides which pages MLflow shows first: runs and models, not chats
        return str(
            self.create_experiment(self.experiment, place, tags={"mlflow.experimentKind": "custom_model_development"})
        )

    @override
    def create_run(
        self,
        experiment_id: str | None = None,
        start_time: int | None = None,
        tags: dict[str, Any] | None = None,
        run_name: str | None = None,
    ) -> Run:
        """Create a run in this client's experiment; while MLflow is away, one with an id of this machine's."""
        local_id, started = f"{LOCAL}{uuid.uuid4().hex}", start_time or _now_ms()
        user = {"mlflow.user": os.environ.get("USER", "unknown"), KEY_TAG: local_id}
        arguments = {"key": local_id, "start_time": started, "tags": user | (tags or {}), "run_name": run_name}
        created = self._send_or_keep("create_run", arguments)
        if isinstance(created, Run):
            return created
        info = RunInfo(local_id, experiment_id or "", user["mlflow.user"], "RUNNING", started, None, "active")
        return Run(info, RunData())

    def _send_create_run(self, key: str, start_time: int, tags: dict[str, str], run_name: str | None) -> Run:
        return super().create_run(self.experiment_id(), start_time, self._known_parent(tags), run_name)

    def _send_recreate_run(self, key: str, **others: Any) -> None:
        run = self._find(key) or self._send_create_run(key, **others)
        self._spool.name(key, run.info.run_id)

    def _known_parent(self, tags: dict[str, str]) -> dict[str, str]:
        parent = tags.get(MLFLOW_PARENT_RUN_ID)
        return tags if parent is None else tags | {MLFLOW_PARENT_RUN_ID: self._known(parent)}

    @override
    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        synchronous: bool | None = None,
    ) -> None:
        """Log metrics, parameters and tags."""
        arguments = {
            "run_id": run_id,
            "metrics": [[m.key, m.value, m.timestamp, m.step] for m in metrics],
            "params": [[p.key, p.value] for p in params],
            "tags": [[t.key, t.value] for t in tags],
        }
        self._send_or_keep("log_batch", arguments)

    def _send_log_batch(
        self, run_id: str, metrics: list[list[Any]], params: list[list[Any]], tags: list[list[Any]]
    ) -> None:
        super().log_batch(
            run_id,
            [Metric(*metric) for metric in metrics],
            [Param(*param) for param in params],
            [RunTag(*tag) for tag in tags],
        )

    @override
    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> None:
        """Set a tag."""
        self.log_batch(run_id, tags=[RunTag(key, str(value))])

    def set_tag_once(self, run_id: str, key: str, value: str) -> None:
        """Set a tag that the run does not have yet; decided when it is sent."""
        self._send_or_keep("set_tag_once", {"run_id": run_id, "key": key, "value": value})

    def _send_set_tag_once(self, run_id: str, key: str, value: str) -> None:
        if key not in self.get_run(run_id).data.tags:
            super().log_batch(run_id, tags=[RunTag(key, self._known(value) if value.startswith(LOCAL) else value)])

    @override
    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        """Mark a run as ended; the time is that of the call, whenever it is sent."""
        ended = status or RunStatus.to_string(RunStatus.FINISHED), end_time or _now_ms()
        self._send_or_keep("set_terminated", {"run_id": run_id, "status": ended[0], "end_time": ended[1]})

    def reopen(self, run_id: str) -> None:
        """Mark a run as running again."""
        self._send_or_keep("reopen", {"run_id": run_id})

    def _send_reopen(self, run_id: str) -> None:
        super().update_run(run_id, RunStatus.to_string(RunStatus.RUNNING))

    def _send_set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        super().set_terminated(run_id, status, end_time)

    @override
    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        """Log a file."""
        self._send_or_keep("log_artifact", {"run_id": run_id, "artifact_path": artifact_path}, Path(local_path))

    def _send_log_artifact(self, run_id: str, artifact_path: str | None, source: Path) -> None:
        super().log_artifact(run_id, str(source), artifact_path)

    @override
    def log_artifacts(self, run_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        """Log a folder's content."""
        self._send_or_keep("log_artifacts", {"run_id": run_id, "artifact_path": artifact_path}, Path(local_dir))

    def _send_log_artifacts(self, run_id: str, artifact_path: str | None, source: Path) -> None:
        super().log_artifacts(run_id, str(source), artifact_path)

    def log_data(self, run_id: str, path: Path, name: str, digest: str) -> None:
        """Name data that a run reads, without copying it."""
        self._send_or_keep("log_data", {"run_id": run_id, "path": str(path), "name": name, "digest": digest})

    def _send_log_data(self, run_id: str, path: str, name: str, digest: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mlflow knows local paths twice and says so
            source = resolve_dataset_source(path)
        dataset = MetaDataset(source, name=name, digest=digest)  # type: ignore[abstract]  # mlflow leaves out `profile` itself
        entity = DatasetInput(dataset._to_mlflow_entity(), [InputTag(MLFLOW_DATASET_CONTEXT, "input")])
        super().log_inputs(run_id, [entity])

    @override
    def get_run(self, run_id: str) -> Run:
        """A run, also by an id of this machine's."""
        return super().get_run(self.resolve(run_id))


def _now_ms() -> int:
    return int(time.time() * 1000)
