"""Where MLflow is: the usual environment variables, or a database and artifacts in the project's root."""

from __future__ import annotations

import logging
import os
from pathlib import Path

# mlflow reads these when it is imported; what the user set wins
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "2")
os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from moe_beyond.errors import InputError

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


def connect(root: Path) -> MlflowClient:
    """Set the tracking URI and the experiment; create the experiment where it is new.

    Args:
        root: The folder that the stage runs in, the project's root or a copy of it.

    Raises:
        InputError: The tracking server does not answer.
    """
    home = main_root(root)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    try:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            # a server decides itself where artifacts go; beside a local database they lie in the project's root
            local = uri.startswith("sqlite:")
            place = (home / "mlartifacts").as_uri() if local else None
            # the kind decides which pages MLflow shows first: runs and models, not chats
            client.create_experiment(name, place, tags={"mlflow.experimentKind": "custom_model_development"})
    except MlflowException as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"MLFLOW_TRACKING_URI: {uri} does not answer ({reason}); start it or unset it") from error
    mlflow.set_experiment(name)
    return client
