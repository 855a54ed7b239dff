"""Metrics and parameters as MLflow takes them."""

from __future__ import annotations

import json
import time
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

_BATCH_METRICS, _BATCH_PARAMS = 1000, 100  # the most that one request of MLflow's API takes


def log_metrics(
    client: MlflowClient, run_id: str, metrics: dict[str, Any], step: int = 0, at_ms: int | None = None
) -> None:
    """Log numbers in as few requests as the API allows; booleans count as 0 and 1, None and text are left out.

    Args:
        client: Where to.
        run_id: Of the run.
        metrics: By name.
        step: Of all of them.
        at_ms: When they were measured, milliseconds since 1970; default now. The same again changes nothing.
    """
    now = at_ms or int(time.time() * 1000)
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
