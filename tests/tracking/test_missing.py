"""Whatever MLflow refuses is kept, reported in one line, and logged later: nothing is lost, nothing is there twice."""

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from moe_beyond.cli import app
from moe_beyond.errors import InputError
from moe_beyond.files import folder_digest
from moe_beyond.tracking import client as client_module
from moe_beyond.tracking.client import send
from tests.tracking.small_pipeline import check_whole, only, readdress, records, run_split, runs, warnings

AWAY = "http://127.0.0.1:9"


def resend():
    done = CliRunner().invoke(app, ["resend"])
    return done.exit_code, done.output.splitlines()[-1]


def test_a_server_that_is_away_stops_no_stage_and_resend_says_what_is_missing(project, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    before_ms = time.time() * 1000
    run_split(project)
    assert json.loads((project / "reports/split/run.json").read_text())["stage"] == "split"
    (warning,) = warnings(caplog)
    assert warning.startswith(f"MLflow lacks 1 run: split ({AWAY}: ")
    assert warning.endswith("; to log it again: moe-beyond resend")
    assert resend() == (1, warning)
    # a record is for one MLflow; at another one a line names the right one
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    advice = "set MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME so, then: moe-beyond resend"
    assert resend() == (1, f"waiting for {AWAY}, experiment moe-beyond: 1 run: split; {advice}")
    assert runs(project) == []
    readdress(project, AWAY, "")
    assert resend() == (0, "nothing is missing")
    check_whole(project)
    # as it was, not as it was sent
    info = only(project, "split").info
    assert before_ms - 1 < info.start_time <= info.end_time < before_ms + 60_000


@pytest.mark.parametrize("table", ["runs", "params", "metrics", "inputs", "tags"])
def test_a_database_that_fails_in_the_middle_of_writing_misses_nothing(project, caplog, table):
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute(f"CREATE TRIGGER full BEFORE INSERT ON {table} BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
    for _ in range(2):  # again: it is the same run
        run_split(project)
        assert "disk is full" in warnings(caplog)[-1]
        assert len(records(project)) == 1
    assert not any(run.info.status == "RUNNING" for _, run in runs(project))
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute("DROP TRIGGER full")
    check_whole(project)


def test_what_is_locked_read_only_or_no_folder_is_logged_to_when_it_can_be(project, monkeypatch, caplog):
    monkeypatch.setattr(client_module, "_PROBE_S", 0.2)
    with closing(sqlite3.connect(project / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        run_split(project)
    assert "database is locked" in warnings(caplog)[-1]
    (project / "mlartifacts").write_text("a file")
    run_split(project)
    assert "mlartifacts" in warnings(caplog)[-1]
    readonly = f"sqlite:///file:{project / 'mlflow.db'}?mode=ro&uri=true"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", readonly)
    readdress(project, "", readonly)
    run_split(project)
    assert "readonly database" in warnings(caplog)[-1]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    readdress(project, readonly, "")
    (project / "mlartifacts").unlink()
    check_whole(project)


@pytest.mark.parametrize("call", ["create_run", "log_batch", "log_artifact", "log_artifacts"])
def test_a_full_disk_under_the_artifacts_misses_nothing(project, caplog, monkeypatch, call):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "mlartifacts/1")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, full)
        run_split(project)
    assert "No space left on device" in warnings(caplog)[-1]
    assert not any(run.info.status == "RUNNING" for _, run in runs(project))
    check_whole(project)


KILL = """
import os, signal, sys
from pathlib import Path
from mlflow.tracking import MlflowClient
from moe_beyond.tracking.__main__ import run_stage
name, left, after = sys.argv[1], [int(sys.argv[2])], sys.argv[3] == "after"
real = getattr(MlflowClient, name)
def call(self, *args, **kwargs):
    left[0] -= 1
    done = real(self, *args, **kwargs) if left[0] or after else None
    return done if left[0] else os.kill(os.getpid(), signal.SIGKILL)
setattr(MlflowClient, name, call)
run_stage(Path.cwd(), "split")
"""


CALLS = "create_run 1 before, create_run 1 after, create_run 3 after, log_batch 2 after, log_artifact 1 before"


@pytest.mark.parametrize("where", CALLS.split(", "))
def test_kill_9_in_the_middle_of_logging_loses_and_doubles_nothing(project, where):
    command = [sys.executable, "-c", KILL, *where.split()]
    ended = subprocess.run(command, cwd=project, env=os.environ, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(records(project)) == 1
    # DVC runs the stage again; or it does not, and the record is logged all the same
    if "1" in where:
        run_split(project)
    check_whole(project)


def test_processes_that_start_together_make_one_database_and_one_run(project):
    (project / "mlflow.db").unlink()
    command = [sys.executable, "-m", "moe_beyond.tracking", "split"]
    started = [subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE) for _ in range(3)]
    ends = [process.communicate(timeout=200)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ends
    check_whole(project)


def test_artifacts_come_from_dvcs_cache_where_the_workspace_has_moved_on(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    run_split(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=project, check=True)
    out, lost = project / "data/splits", "reports/split/history.csv"
    listing, file = folder_digest(out), folder_digest(out / "train/x.npy")
    for digest, content in ((listing, json.dumps([{"md5": file, "relpath": "train/x.npy"}])), (file, "a")):
        kept = project / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(content)
    shutil.rmtree(out)
    (project / lost).write_text("changed")
    readdress(project, AWAY, "")
    assert send(project).sentences() == [f"run split in MLflow lacks {lost}: changed since, and not in DVC's cache"]
    run = only(project, "split")
    assert list((project / "mlartifacts").rglob("data/splits/train/x.npy"))
    assert run.data.tags["moe_beyond.lost_artifacts"] == lost
    assert records(project) == []


def test_a_damaged_record_is_named_and_stops_no_other(project, caplog):
    (project / ".mlflow-records/a folder.json").mkdir(parents=True)
    (project / ".mlflow-records/broken.json").write_text('{"key": ')
    (project / ".mlflow-records/no text.json").write_bytes(b"\xff\xfe")
    run_split(project)
    assert "MLflow lacks 3 runs: a folder.json, broken.json, no text.json (" in warnings(caplog)[0]
    assert "broken.json: not a record of a run" in warnings(caplog)[0]
    assert only(project, "split").info.status == "FINISHED"


def test_a_damaged_record_of_this_very_run_is_written_anew(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    run_split(project)
    (record,) = records(project)
    record.write_bytes(b"")
    run_split(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    readdress(project, AWAY, "")
    check_whole(project)


def test_the_last_line_says_how_much_is_missing(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    for text in "ab":
        (project / "data/traces/a.txt").write_text(text)
        run_split(project)
    status, line = resend()
    assert status == 1
    assert line.startswith(f"MLflow lacks 2 runs: split (2 times) ({AWAY}: ")


def test_where_a_failure_cannot_be_kept_its_own_line_is_the_error(project, caplog):
    (project / ".mlflow-records").write_text("in the way")
    (project / "bad").write_text("prompts.jsonl: line 3: no 'prompt'; add it")
    with pytest.raises(InputError, match="line 3"):
        run_split(project)
    assert "this failed run is not kept for MLflow: " in warnings(caplog)[0]


def test_passwords_are_kept_nowhere(project, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:planted@127.0.0.1:9/?token=planted")
    (project / "bad").write_text("postgresql://user:planted@host/db does not answer")
    with pytest.raises(InputError):
        run_split(project)
    kept = "".join(path.read_text() for path in records(project)) + caplog.text
    assert "127.0.0.1:9" in kept
    assert "planted" not in kept
