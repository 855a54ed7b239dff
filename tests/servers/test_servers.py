"""The pipeline against a team's servers: PostgreSQL, MLflow with artifacts on it, a DVC remote over HTTP."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from moe_beyond.params import load_params
from moe_beyond.tracking import stage_run
from moe_beyond.tracking.connection import resend
from tests.tracking.test_stage import run_split

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def team(project, servers, monkeypatch):
    """The project, its runs on the server, an experiment of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.mlflow_uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", project.name)
    return project


def points(servers, run_id, name="loss"):
    return [(point.step, point.value) for point in MlflowClient(servers.mlflow_uri).get_metric_history(run_id, name)]


def runs(servers, team):
    client = MlflowClient(servers.mlflow_uri)
    experiment = client.get_experiment_by_name(team.name)
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])


def test_a_stage_logs_to_the_server_and_its_artifacts_come_back(team, servers, tmp_path):
    run_id = run_split(team)
    run = MlflowClient(servers.mlflow_uri).get_run(run_id)
    assert (run.info.status, run.data.metrics["recall"]) == ("FINISHED", 0.5)
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    fetched = MlflowClient(servers.mlflow_uri).download_artifacts(run_id, "data/splits/train/x.npy", str(tmp_path))
    assert Path(fetched).read_bytes() == b"x"


@pytest.mark.parametrize("victim", ["mlflow", "postgres"])
def test_a_server_killed_in_the_middle_of_a_stage_misses_nothing(team, servers, victim):
    with stage_run("split", load_params) as run:
        (team / "data/splits").mkdir()
        for step in range(9):
            if step == 3:
                getattr(servers, f"kill_{victim}")()
            if step == 6:
                getattr(servers, f"start_{victim}")()
            run.log_step_metrics({"loss": 1.0 / (step + 1)}, step)
        run.write_metrics({"recall": 0.5})
    resend(team)  # nothing is left unless the server was slow to come back
    assert points(servers, run.run_id) == [(step, 1.0 / (step + 1)) for step in range(9)]
    assert [(entry.info.run_name, entry.info.status) for entry in runs(servers, team)] == [("split", "FINISHED")]


def test_dvc_pushes_and_pulls_over_http(servers, tmp_path):
    def dvc(*arguments):
        command = [sys.executable, "-m", "dvc", *arguments]
        subprocess.run(command, cwd=tmp_path, env=os.environ | {"DVC_NO_ANALYTICS": "1"}, check=True)

    dvc("init", "--no-scm", "-q")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.txt").write_text("a")
    (tmp_path / "folder/b.txt").write_text("b" * 1000)
    dvc("add", "-q", "folder")
    dvc("remote", "add", "-d", "team", servers.dvc_remote)
    dvc("remote", "modify", "team", "method", "PUT")
    dvc("push", "-q")
    shutil.rmtree(tmp_path / "folder")
    shutil.rmtree(tmp_path / ".dvc/cache")
    dvc("pull", "-q")
    assert (tmp_path / "folder/a.txt").read_text() == "a"
    assert (tmp_path / "folder/b.txt").read_text() == "b" * 1000
