"""Where MLflow is: the usual environment variables, or a database and artifacts in the project's root."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from moe_beyond.errors import InputError
from moe_beyond.files import locked
from moe_beyond.tracking.client import PatientClient, answers, is_away, local_database
from moe_beyond.tracking.spool import Spool

DEFAULT_EXPERIMENT = "moe-beyond"


# how mlflow monitors, migrates and guesses is of no interest to who runs a stage
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)


def main_root(root: Path) -> Path:
    """The checkout that keeps the default database.

    `dvc exp run --temp` and `--queue` run stages in a throw-away copy, where a database would be lost; DVC names the
    checkout in DVC_ROOT.
    """
    return Path(os.environ.get("DVC_ROOT") or root).resolve()


def tracking_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI`, or the database of the checkout."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{main_root(root) / 'mlflow.db'}"


def connect(root: Path) -> PatientClient:
    """Set the tracking URI and the experiment, and send what earlier work could not send.

    Where an MLflow server does not answer, a line says so within half a minute, and what the client is asked to write
    waits in files.

    Args:
        root: The folder that the stage runs in, the project's root or a copy of it.

    Raises:
        InputError: MLflow answers and refuses; or the address is a database's own, and it does not answer.
    """
    uri = tracking_uri(root)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    mlflow.set_tracking_uri(uri)
    there = answers(uri)
    if not there and not uri.startswith("http"):
        # mlflow opens a database when it makes a client, so there is nothing that could wait for it
        raise InputError(f"MLFLOW_TRACKING_URI: {uri} does not answer; start it or unset it")
    with _alone(uri):
        client = PatientClient(uri, Spool(main_root(root), uri), name)
        if not there:
            client.give_up_for_now("nothing listens there")
            return client
        try:
            client.experiment_id()
            mlflow.set_experiment(name)
        except (MlflowException, RequestException) as error:
            if not is_away(error):
                reason = " ".join(str(error).split())[:200]
                raise InputError(f"MLFLOW_TRACKING_URI: {uri} refuses ({reason}); correct it or unset it") from error
            client.give_up_for_now(str(error))
            return client
    client.flush()
    return client


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold the right to create a local database and what is in it; a killed process loses it.

    MLflow fills a new SQLite file in many steps, and two processes that start together stumble over each other.
    """
    path = local_database(uri)
    if path is None or not path.parent.is_dir():
        yield
        return
    with locked(path.with_name(f"{path.name}.lock")):
        yield


def resend(root: Path) -> dict[str, int]:
    """Send what waits for each address that MLflow had; returns how many records still wait there.

    Args:
        root: The project's root.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    left = {}
    for spool in Spool.all_of(main_root(root)):
        client = PatientClient(spool.uri, spool, name)
        client.flush(patient=True)
        left[spool.uri] = client.num_waiting()
    return left
