"""The pipeline against a team's servers: PostgreSQL, MLflow with artifacts on it, a DVC remote over HTTP."""

import os
import shutil
import socket
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import pytest
import requests
from mlflow.tracking import MlflowClient

from moe_beyond.files import folder_digest
from moe_beyond.tuning.optuna_study import StudyPlace
from scripts.servers import CannotStartError, Servers
from tests.tracking.small_pipeline import check_whole, only, readdress, run_split, warnings
from tests.tracking.test_dvc import dvc
from tests.tuning.several_workers import try_with_a_kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def servers():
    """PostgreSQL and MLflow on loopback; skips, with the reason, where they cannot start."""
    # not pytest's folder: that is closed to the user that PostgreSQL runs as
    folder = Path(tempfile.mkdtemp(prefix="moe-beyond servers;$(exit 1)'\"&#?%20-"))
    folder.chmod(0o755)
    servers = Servers(folder, free_port(), free_port())
    try:
        servers.start()
    except CannotStartError as error:
        pytest.skip(f"the servers cannot start here: {error}")
    yield servers
    servers.stop()
    shutil.rmtree(folder)


@pytest.fixture
def team(project, servers, monkeypatch):
    """The project, whose runs go to the server; those of the tests before are gone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.mlflow_uri)
    to = MlflowClient(servers.mlflow_uri)
    experiment = to.get_experiment_by_name("moe-beyond")
    for run in [] if experiment is None else to.search_runs([experiment.experiment_id]):
        to.delete_run(run.info.run_id)
    return project


def test_the_password_is_in_files_of_their_owner_alone(servers):
    password = (servers.folder / "password").read_text()
    for path in servers.folder.rglob("*"):
        if path.is_file() and password.encode() in path.read_bytes():
            assert path.name in ("password", "environment")
            assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("killed", ["mlflow log_inputs", "mlflow log_artifacts", "postgres log_inputs"])
def test_a_server_killed_in_the_middle_of_logging_misses_nothing(team, servers, killed, caplog):
    victim, call = killed.split()
    real = getattr(MlflowClient, call)

    def kill(self, *args, **kwargs):
        getattr(servers, f"kill_{victim}")()
        return real(self, *args, **kwargs)

    with mock.patch.object(MlflowClient, call, kill):
        run_split(team)
    assert any("MLflow lacks 1 run: split" in warning for warning in warnings(caplog))
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
        writes = self.command != "GET" and "search" not in self.path
        status, content = 500, b"no space left on device"
        if self.carries_out or not writes:
            done = requests.request(self.command, self.server_uri + self.path, data=body, headers=headers, timeout=60)
            status, content = (status, content) if writes else (done.status_code, done.content)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = forward

    def log_message(self, *_):
        """Say nothing."""


@pytest.mark.parametrize("carried_out", [False, True])
def test_a_server_that_fails_on_writes_alone_misses_and_doubles_nothing(team, servers, caplog, carried_out):
    class Handler(FailsOnWrites):
        server_uri, carries_out = servers.mlflow_uri, carried_out

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{proxy.server_port}"
        with mock.patch.dict(os.environ, MLFLOW_TRACKING_URI=address):
            run_split(team)
        proxy.shutdown()
    (warning,) = warnings(caplog)
    assert "MLflow lacks 1 run: split" in warning
    assert "500" in warning
    readdress(team, address, servers.mlflow_uri)
    check_whole(team, MlflowClient(servers.mlflow_uri))


def test_dvc_pushes_and_pulls_over_http(servers, tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("a", "b"):
        (tmp_path / "folder" / name).write_text(name)
    before = folder_digest(tmp_path / "folder")
    remote = (f"remote add -d team {servers.dvc_remote}", "remote modify team method PUT")
    for command in ("init --no-scm -q", "add -q folder", *remote, "push -q"):
        dvc(tmp_path, *command.split())
    shutil.rmtree(tmp_path / "folder")
    shutil.rmtree(tmp_path / ".dvc/cache")
    dvc(tmp_path, "pull", "-q")
    assert folder_digest(tmp_path / "folder") == before


def test_two_workers_share_a_study_on_postgresql_while_it_is_killed(servers, tmp_path):
    def break_postgres():
        servers.kill_postgres()
        servers.start_postgres()

    place = StudyPlace("study", servers.database("optuna"), grace_s=20)
    try_with_a_kill(place, tmp_path / "log", break_postgres)
