"""MLflow, all of it: a run per stage, a run per pipeline state, and the receipts that tie files to runs.

Files are the truth, MLflow mirrors them. No other module of the project imports mlflow.
"""

from moe_beyond.tracking.pipeline import pipeline_run
from moe_beyond.tracking.stage import StageRun, stage_run

__all__ = ["StageRun", "pipeline_run", "stage_run"]
