"""Runs of killed processes."""

import signal
import subprocess
import sys

from mlflow.tracking import MlflowClient

from moe_beyond.params import load_params
from moe_beyond.tracking import stage_run

BE_KILLED = """
import os, signal, sys
from moe_beyond.tracking import stage_run
with stage_run(sys.argv[1], load_params) as run:
    print(run.run_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
STAY = """
import sys
from moe_beyond.tracking import stage_run
with stage_run("split", load_params) as run:
    print(run.run_id, flush=True)
    sys.stdin.readline()
"""


def be_killed(project, stage):
    ended = subprocess.run(
        [sys.executable, "-c", BE_KILLED, stage], cwd=project, capture_output=True, text=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return ended.stdout.strip()


def client(project):
    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def status(project, run_id):
    return client(project).get_run(run_id).info.status


def run_split(project):
    with stage_run("split", load_params) as run:
        (project / "data/splits").mkdir(parents=True, exist_ok=True)
        run.write_metrics({"prompts": 3})
    return run.run_id


def test_the_next_run_of_a_stage_ends_the_killed_one(project):
    killed, of_another_stage = be_killed(project, "split"), be_killed(project, "report")
    assert status(project, killed) == "RUNNING"
    finished = run_split(project)
    assert status(project, killed) == "KILLED"
    assert status(project, finished) == "FINISHED"
    assert status(project, of_another_stage) == "RUNNING"
    ended_at = client(project).get_run(killed).info.end_time
    run_split(project)
    assert client(project).get_run(killed).info.end_time == ended_at


def test_the_run_of_a_process_at_work_is_left_alone(project):
    command = [sys.executable, "-c", STAY]
    with subprocess.Popen(
        command, cwd=project, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as worker:
        assert worker.stdout is not None
        at_work = worker.stdout.readline().strip()
        run_split(project)
        assert status(project, at_work) == "RUNNING"
        worker.communicate("\n", timeout=60)
    assert status(project, at_work) == "FINISHED"


def test_a_killed_run_that_was_deleted_stops_nothing(project, caplog):
    killed = be_killed(project, "split")
    client(project).delete_run(killed)
    assert status(project, run_split(project)) == "FINISHED"
    assert f"run {killed} was left open by a killed process and cannot be ended" in caplog.text


def test_the_run_at_another_address_is_left_alone(project, monkeypatch):
    killed = be_killed(project, "split")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'other.db'}")
    run_split(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert status(project, killed) == "RUNNING"
