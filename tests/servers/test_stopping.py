"""Stopping ends what was started for the folder, and nothing that has its port or its former process number."""

import os
import socket
import subprocess
import sys

import psutil
import pytest

from scripts.servers import OURS, CannotStartError, Servers

SLEEPS = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


@pytest.fixture
def sleeping():
    """Starts processes that do nothing; ends those that are left."""
    started = []

    def start(**environment):
        process = subprocess.Popen(SLEEPS, env=os.environ | environment, stdout=subprocess.PIPE)
        process.stdout.readline()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def taken():
    """A port that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_only_processes_that_serve_the_folder_are_ended(tmp_path, sleeping, taken):
    ours, others, none = sleeping(**{OURS: str(tmp_path)}), sleeping(**{OURS: f"{tmp_path}/other"}), sleeping()
    (tmp_path / "mlflow.pid").write_text(str(none.pid))  # as releases before this one kept it
    Servers(tmp_path, taken, taken).stop()
    assert not psutil.pid_exists(ours.pid)
    assert (others.poll(), none.poll()) == (None, None)


def test_a_number_that_another_process_has_by_now_is_not_postgresqls(tmp_path, sleeping, taken):
    other = sleeping()
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres/postmaster.pid").write_text(f"{other.pid}\n{tmp_path}/postgres\n")
    Servers(tmp_path, taken, taken).stop()
    assert psutil.pid_exists(other.pid)
    assert other.poll() is None


def test_a_taken_port_is_one_line(tmp_path, taken):
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres/PG_VERSION").touch()
    servers = Servers(tmp_path, taken, taken)
    with pytest.raises(CannotStartError, match=f"port {taken} is taken by another program; give another one by --post"):
        servers.start_postgres()
    with pytest.raises(CannotStartError, match=f"port {taken} is taken by another program; give another one by --mlf"):
        servers.start_mlflow()
