"""MLflow: a run per stage and per state of the pipeline, logged from files, and the receipts that tie files to runs.

Files are the truth, MLflow mirrors them. Only this package and `registry` import mlflow.
"""

import os

# mlflow reads these when it is imported; what the user set wins
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# a server that is away is given up within half a minute, whether it refuses or does not respond
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
