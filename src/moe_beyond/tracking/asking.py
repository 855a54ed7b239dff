"""Questions to MLflow from the command line: no answer is one line, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from moe_beyond.errors import InputError
from moe_beyond.tracking.client import PatientClient, answers, is_away
from moe_beyond.tracking.connection import connect, tracking_uri


@contextmanager
def must_answer(uri: str) -> Iterator[None]:
    """Turn silence of MLflow inside the `with` into one line.

    Args:
        uri: Of MLflow.

    Raises:
        InputError: MLflow does not answer, at once or within its time limits, 30 seconds in all.
    """
    silent = f"MLFLOW_TRACKING_URI: {uri} does not answer; start it (make ui on this machine) or unset the variable"
    if not answers(uri):
        raise InputError(silent)
    try:
        yield
    except (MlflowException, RequestException) as error:
        if not is_away(error):
            raise
        raise InputError(f"{silent} ({' '.join(str(error).split())[:160]})") from error


@contextmanager
def asking(root: Path) -> Iterator[PatientClient]:
    """A client for questions whose answer cannot wait.

    Args:
        root: The project's root.

    Raises:
        InputError: MLflow does not answer.
    """
    with must_answer(tracking_uri(root)):
        yield connect(root)
