"""Runs that nobody ended: a killed process cannot say so, and MLflow would show its run as running for ever."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException

from moe_beyond.files import locked
from moe_beyond.tracking.client import PatientClient

log = logging.getLogger(__name__)


@contextmanager
def ending_what_was_killed(client: PatientClient, root: Path, stage: str) -> Iterator[Callable[[str], None]]:
    """End the run that a killed process of this stage left open in this checkout, and take note of the next one.

    The note is locked while its process lives, so that a run of another process at work is left alone.

    Args:
        client: Whose address the killed run must have had; another address is left as it is.
        root: The project's root.
        stage: Whose runs they are.

    Yields:
        A function to call with the id of the run that is opened now.
    """
    path = root / ".scratch" / "runs" / stage
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, wait=False) as file:
        if file is None:
            yield lambda run_id: None
            return
        file.seek(0)
        uri, _, run_id = file.read().strip().rpartition(" ")
        if uri == client.uri:
            _end(client, run_id)

        def note(run_id: str) -> None:
            file.truncate(0)
            file.write(f"{client.uri} {run_id}\n")
            file.flush()

        try:
            yield note
        finally:
            # by now its end is said, or waits to be sent
            file.truncate(0)


def _end(client: PatientClient, run_id: str) -> None:
    try:
        client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED))
    except MlflowException as error:
        log.warning("run %s was left open by a killed process and cannot be ended: %s", run_id, str(error)[:200])
