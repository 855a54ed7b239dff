"""The pipeline against a team's servers: PostgreSQL, MLflow with artifacts on it, a DVC remote over HTTP."""

import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from mlflow.tracking import MlflowClient

from tests.tracking.small_pipeline import check_whole, only, readdress, run_split, warnings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def team(project, servers, monkeypatch):
    """The project, whose runs go to the server; those of the tests before are gone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.mlflow_uri)
    to = MlflowClient(servers.mlflow_uri)
    experiment = to.get_experiment_by_name("moe-beyond")
    for run in [] if experiment is None else to.search_runs([experiment.experiment_id]):
        to.delete_run(run.info.run_id)
    return project


@pytest.mark.parametrize("killed", ["mlflow log_inputs", "mlflow log_artifacts", "postgres log_inputs"])
def test_a_server_killed_in_the_middle_of_logging_misses_nothing(team, servers, killed, monkeypatch, caplog):
    victim, call = killed.split()
    real = getattr(MlflowClient, call)

    def kill(self, *args, **kwargs):
        getattr(servers, f"kill_{victim}")()
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, kill)
        run_split(team)
    assert any("MLflow lacks split" in warning for warning in warnings(caplog))
    getattr(servers, f"start_{victim}")()
    to = MlflowClient(servers.mlflow_uri)
    check_whole(team, to)
    assert only(team, "split", to).info.artifact_uri.startswith("mlflow-artifacts:/")


class FailsOnWrites(BaseHTTPRequestHandler):
    """A proxy that passes reads on and responds to every write with 500."""

    server_uri, carries_out = "", False

    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
        request = Request(self.server_uri + self.path, body or None, headers, method=self.command)  # noqa: S310 - loopback
        writes = self.command != "GET" and "search" not in self.path
        status, content = 500, b"no space left on device"
        if self.carries_out or not writes:
            try:
                with urlopen(request, timeout=60) as found:  # noqa: S310
                    status, content = (status, content) if writes else (found.status, found.read())
            except HTTPError as error:
                status, content = error.code, error.read()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = forward

    def log_message(self, *_):
        """Say nothing."""


@pytest.mark.parametrize("carried_out", [False, True])
def test_a_server_that_fails_on_writes_alone_misses_and_doubles_nothing(
    team, servers, monkeypatch, caplog, carried_out
):
    class Handler(FailsOnWrites):
        server_uri, carries_out = servers.mlflow_uri, carried_out

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{proxy.server_port}")
        run_split(team)
        proxy.shutdown()
    (warning,) = warnings(caplog)
    assert "MLflow lacks split" in warning
    assert "500" in warning
    readdress(team, f"http://127.0.0.1:{proxy.server_port}", servers.mlflow_uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.mlflow_uri)
    check_whole(team, MlflowClient(servers.mlflow_uri))


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
