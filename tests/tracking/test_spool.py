"""MLflow goes away and comes back: nothing is lost, nothing is there twice, and a line says so."""

import json
import os
import socket
import time

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from moe_beyond.params import load_params
from moe_beyond.tracking import client as client_module
from moe_beyond.tracking import pipeline_run, stage_run
from moe_beyond.tracking.client import PatientClient, answers
from moe_beyond.tracking.connection import connect, resend
from moe_beyond.tracking.spool import FOLDER, Spool
from tests.tracking.test_stage import all_runs, artifacts, client, run_split


@pytest.fixture
def outage(monkeypatch):
    """A switch: while it is on, every write of MLflow's client fails as it does without a server."""
    state = {"on": False, "sent": 0}

    def fails_when_away(name):
        real = getattr(MlflowClient, name)

        def call(self, *args, **kwargs):
            if state["on"]:
                raise MlflowException("connection refused")
            state["sent"] += 1
            return real(self, *args, **kwargs)

        monkeypatch.setattr(MlflowClient, name, call)

    for name in (
        "create_run",
        "log_batch",
        "set_terminated",
        "log_artifact",
        "log_artifacts",
        "log_inputs",
        "get_run",
        "get_experiment_by_name",
        "search_runs",
    ):
        fails_when_away(name)
    monkeypatch.setattr(client_module, "answers", lambda uri: not state["on"])
    monkeypatch.setattr(client_module, "PAUSE_S", 0.0)
    return state


def points(project, run_id, name):
    return [(point.step, point.value) for point in client(project).get_metric_history(run_id, name)]


def test_a_server_that_is_away_for_a_while_misses_nothing_and_gets_nothing_twice(project, outage, caplog):
    with stage_run("split", load_params) as run:
        (project / "data/splits").mkdir()
        for step in range(6):
            outage["on"] = 2 <= step < 4
            run.log_step_metrics({"loss": 1.0 / (step + 1)}, step)
        run.write_metrics({"recall": 0.5})
    assert points(project, run.run_id, "loss") == [(step, 1.0 / (step + 1)) for step in range(6)]
    assert points(project, run.run_id, "recall") == [(0, 0.5)]
    assert [entry.info.status for entry in all_runs(project)] == ["FINISHED"]
    assert connect(project).num_waiting() == 0
    assert sum("does not answer" in message for message in caplog.messages) == 1
    assert sum("answers again" in message for message in caplog.messages) == 1


def test_a_server_that_is_away_from_start_to_end_gets_the_run_by_resend(project, outage):
    outage["on"] = True
    run_id = run_split(project)
    assert run_id.startswith("local-")
    assert json.loads((project / "reports/split/run.json").read_text())["run_id"] == run_id
    outage["on"] = False
    (project / "reports/split/metrics.json").write_text("{}")  # what is sent is what was said, not what lies there now
    assert list(resend(project).values()) == [0]
    [run] = all_runs(project)
    assert (run.info.status, run.data.params["split.test_fraction"]) == ("FINISHED", "0.1")
    assert points(project, run.info.run_id, "loss") == [(1, 2.0), (2, 1.0)]
    assert run.inputs.dataset_inputs[0].dataset.name == "data.traces"
    assert set(artifacts(project, run.info.run_id)) == {
        "data/splits/train/x.npy",
        "reports/split/metrics.json",
        "reports/split/run.json",
    }
    metrics = client(project).download_artifacts(run.info.run_id, "reports/split/metrics.json", str(project))
    assert json.loads((project / metrics).read_text())["recall"] == 0.5


def test_the_pipelines_run_finds_a_stage_that_ran_while_the_server_was_away(project, outage):
    outage["on"] = True
    run_split(project)
    outage["on"] = False
    with stage_run("report", load_params) as run, pipeline_run(run, []) as pipeline_id:
        (project / "reports/index.html").write_text("<p>page</p>")
    named = client(project).get_run(pipeline_id).data.tags["run.split"]
    assert client(project).get_run(named).data.metrics["recall"] == 0.5
    assert client(project).get_run(named).data.tags["mlflow.parentRunId"] == pipeline_id
    assert sorted(entry.info.run_name.split()[0] for entry in all_runs(project)) == ["pipeline", "report", "split"]


def test_trials_of_a_search_are_sent_later_below_their_stage(project, outage):
    outage["on"] = True
    with stage_run("split", load_params) as run:
        with run.children("trial-0", {"width": 8}) as log_step:
            log_step({"recall": 0.25}, 3)
        (project / "data/splits").mkdir()
        run.write_metrics({"x": 1})
    outage["on"] = False
    resend(project)
    by_name = {entry.info.run_name: entry for entry in all_runs(project)}
    assert by_name["trial-0"].data.tags["mlflow.parentRunId"] == by_name["split"].info.run_id
    assert points(project, by_name["trial-0"].info.run_id, "recall") == [(3, 0.25)]


def test_a_process_killed_after_sending_and_before_noting_it_sends_again_without_a_trace(project, outage, monkeypatch):
    outage["on"] = True
    run_split(project)
    outage["on"] = False
    with monkeypatch.context() as patch:
        patch.setattr("moe_beyond.tracking.spool.Record.remove", lambda record: None)
        resend(project)
    assert list(resend(project).values()) == [0]
    [run] = all_runs(project)
    assert points(project, run.info.run_id, "loss") == [(1, 2.0), (2, 1.0)]


def test_what_mlflow_refuses_is_set_aside_and_named_and_the_rest_goes_on(project, outage, caplog):
    outage["on"] = True
    with stage_run("split", load_params) as run:
        (project / "data/splits").mkdir()
        run.client.set_tag(run.run_id, "x" * 300, "a name that MLflow does not take")
        run.write_metrics({"recall": 0.5})
    outage["on"] = False
    assert list(resend(project).values()) == [0]
    assert [entry.data.metrics["recall"] for entry in all_runs(project)] == [0.5]
    assert "MLflow refuses this record" in caplog.text
    assert len(list((project / FOLDER).rglob("rejected/*.json"))) == 1


def test_a_server_that_does_not_answer_is_said_within_half_a_minute_and_the_stage_goes_on(project, caplog, monkeypatch):
    uri = "http://127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    run_split(project)
    assert time.monotonic() - started < 30
    assert f"MLFLOW_TRACKING_URI: {uri} does not answer" in caplog.text
    assert "moe-beyond resend" in caplog.text
    assert resend(project)[uri] > 5
    assert not answers(uri)


def test_a_server_that_hangs_is_said_within_half_a_minute(project, caplog, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts and says nothing
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # a tenth of the default
        started = time.monotonic()
        connect(project)
        took_s = time.monotonic() - started
    assert "does not answer" in caplog.text
    assert 1 <= took_s < 5  # twice the timeout and a pause; of the default's ten seconds, under thirty


def test_a_database_that_does_not_answer_ends_the_stage(project, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://user@127.0.0.1:9/db")
    with pytest.raises(SystemExit), stage_run("split", load_params):
        pytest.fail("the stage must not start")
    assert "MLFLOW_TRACKING_URI: postgresql+psycopg2://user@127.0.0.1:9/db does not answer" in capsys.readouterr().err


def test_records_of_processes_that_share_a_folder_do_not_meet(tmp_path):
    spool = Spool(tmp_path, "sqlite:///x.db")
    for number in range(3):
        spool.add("log_batch", {"run_id": str(number)})
    pid = os.fork()
    if pid == 0:
        spool.add("log_batch", {"run_id": "3"})
        os._exit(0)
    os.waitpid(pid, 0)
    assert [spool.read(path).arguments["run_id"] for path in spool.waiting()] == ["0", "1", "2", "3"]
    with spool.taking() as mine:
        assert mine
        with Spool(tmp_path, "sqlite:///x.db").taking() as other:
            assert not other


def test_a_refusal_of_a_live_server_is_an_error_at_once(project):
    made = PatientClient(f"sqlite:///{project / 'mlflow.db'}", Spool(project, "x"), "moe-beyond")
    run = made.create_run(run_name="x")
    with pytest.raises(MlflowException):
        made.set_tag(run.info.run_id, "x" * 300, "too long")
    assert made.num_waiting() == 0
