import shutil
from pathlib import Path

import pytest

from tests.tracking.small_pipeline import write_project

VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "DVC_ROOT",
    "DVC_EXP_NAME",
    "MOE_BEYOND_GATE",
    "LOCAL_RANK",
)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database that MLflow has filled with its tables, which takes seconds; and the experiment."""
    import mlflow  # noqa: PLC0415 - tests that need none start at once

    folder = tmp_path_factory.mktemp("mlflow")
    mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return folder / "mlflow.db"


@pytest.fixture
def project(tmp_path, monkeypatch, empty_database):
    """A folder with params.yaml, a stage `split`, and a local database."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    write_project(tmp_path)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return Path(tmp_path)
