"""MLflow, all of it: a run per stage, a run per pipeline state, and the receipts that tie files to runs.

Files are the truth, MLflow mirrors them. No other module of the project imports mlflow.
"""

import os

# mlflow reads these when it is imported; what the user set wins
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "2")
os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
# a server that is away is known to be away within half a minute, whether it refuses or says nothing
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")

from moe_beyond.tracking.children import ChildRuns
from moe_beyond.tracking.pipeline import pipeline_run
from moe_beyond.tracking.stage import StageRun, stage_run

__all__ = ["ChildRuns", "StageRun", "pipeline_run", "stage_run"]
