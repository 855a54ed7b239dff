"""Runs below a stage's run, one a trial of a search, opened by whichever process works on the trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow.entities import RunStatus

from moe_beyond.tracking.client import PatientClient
from moe_beyond.tracking.connection import connect
from moe_beyond.tracking.entries import log_metrics, log_params


@dataclass(frozen=True)
class ChildRun:
    """An open run of a trial; called with metrics and a step, it logs them."""

    client: PatientClient
    run_id: str

    def __call__(self, metrics: dict[str, float], step: int, at_ms: int | None = None) -> None:
        """Log metrics at a step, measured at a time or now; the same again changes nothing."""
        log_metrics(self.client, self.run_id, metrics, step, at_ms)


@dataclass(frozen=True)
class ChildRuns:
    """Opens child runs; can be sent to another process.

    Attributes:
        root: The project's root.
        stage: Whose trials they are.
        parent: Run of the stage.
    """

    root: Path
    stage: str
    parent: str

    @cached_property
    def client(self) -> PatientClient:
        """This process's own connection."""
        return connect(self.root)

    def __getstate__(self) -> dict[str, Any]:
        """Without the connection."""
        return {"root": self.root, "stage": self.stage, "parent": self.parent}

    @contextmanager
    def __call__(self, name: str, params: dict[str, Any], run_id: str | None = None) -> Iterator[ChildRun]:
        """Open the run of a trial; it ends as finished, or as failed by an exception.

        Args:
            name: Of a new run.
            params: Of the trial.
            run_id: A run that a killed process had opened for it, to go on with.
        """
        if run_id is None:
            tags = {"mlflow.parentRunId": self.parent, "moe_beyond.stage": f"{self.stage}-trial"}
            run_id = self.client.create_run(run_name=name, tags=tags).info.run_id
        else:
            self.client.reopen(run_id)
        log_params(self.client, run_id, params)
        status = RunStatus.FAILED
        try:
            yield ChildRun(self.client, run_id)
            status = RunStatus.FINISHED
        finally:
            self.client.set_terminated(run_id, RunStatus.to_string(status))

    def adopt(self, run_id: str) -> None:
        """Put the run of a finished trial below this stage's run, where an interrupted one had opened it."""
        self.client.set_tag(run_id, "mlflow.parentRunId", self.parent)
