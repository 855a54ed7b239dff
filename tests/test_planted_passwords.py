"""Passwords planted in every address of a run: none is in any output, file, tag or parameter.

The run meets a working MLflow server, one that refuses, a study that cannot be opened and a remote that refuses.
"""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.tracking.small_pipeline import records, write_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]
PLANTED = "planted-"
TUNE = """
from moe_beyond.settings import Seed, Settings
from moe_beyond.tuning.optuna_study import StudyPlace

class Params(Settings):
    seed: Seed

def main(root, params):
    StudyPlace.of(None, "study", root).open(create=True)
"""


class Refuses(BaseHTTPRequestHandler):
    """401 to everything, with the password repeated, as a careless server might."""

    def refuse(self):
        content = f"no entry for user:{PLANTED}in-uri, {self.path}".encode()
        self.send_response(401)
        self.send_header("WWW-Authenticate", "Basic")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_HEAD = refuse

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def refusing():
    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def working(tmp_path_factory):
    """Address of an MLflow server on a file, and its folder."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", address.split(":")[1]]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True)
    deadline = time.monotonic() + 200
    while True:
        try:
            urllib.request.urlopen(f"http://{address}/health", timeout=5).close()
            break
        except OSError:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.5)
    yield address, folder
    os.killpg(server.pid, 9)


def check_clean(said, *folders):
    assert PLANTED not in said
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "config.local":
                assert PLANTED.encode() not in path.read_bytes(), path


def test_no_password_is_in_any_output_file_tag_or_parameter(tmp_path, refusing, working):
    server, kept = working
    project = tmp_path / "project"
    write_project(project)
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    stages["split"]["cmd"] = "python -m moe_beyond.tracking split"
    stages["tune"] = {
        "cmd": "python -m moe_beyond.tracking tune",
        "params": ["seed"],
        "outs": ["reports/tune/run.json"],
    }
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (project / "stages/tune.py").write_text(TUNE)
    remote = f"http://user:{PLANTED}in-remote@{refusing}/x?token={PLANTED}in-query"
    dropped = ("MLFLOW_", "DVC_", "OPTUNA_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "DVC_NO_ANALYTICS": "1",
        # cannot be opened, at once: no such option
        "OPTUNA_STORAGE": f"postgresql://user:{PLANTED}in-study@127.0.0.1:9/db?unknown={PLANTED}option",
        "REMOTE": remote,
    }

    def call(at, command):
        here = environment | {"MLFLOW_TRACKING_URI": f"http://user:{PLANTED}in-uri@{at}"}
        done = subprocess.run(
            ["bash", "-c", command], cwd=project, env=here, capture_output=True, text=True, check=False
        )
        said = done.stdout + done.stderr
        check_clean(said, project, kept)
        return done.returncode, said

    masked = "2>&1 | python -m moe_beyond.masking"
    moe_beyond = f"{sys.executable} -c 'from moe_beyond.cli import main; main()'"
    assert call(server, 'dvc init --no-scm -q && dvc remote add -q --local -d team "$REMOTE"')[0] == 0
    # refused, then away: each is one line, and the record waits
    for at, reason in ((refusing, "401"), ("127.0.0.1:9", "refused")):
        status, said = call(at, "dvc repro -f split")
        assert status == 0
        assert f"MLflow lacks 1 run: split (http://{at}: " in said
        assert reason in said
    assert len(records(project)) == 2
    assert call(refusing, f"{moe_beyond} resend")[0] == 1
    # to a server that takes them: a run, and one of a stage that fails at the study
    assert call(server, "dvc repro -f split")[0] == 0
    status, said = call(server, "dvc repro tune")
    assert status != 0
    assert "error: tune.storage: invalid dsn: " in said
    assert "MLflow lacks" not in said
    shown = f"{moe_beyond} compare champion workspace; {moe_beyond} rollback; {moe_beyond} resend --json"
    for at in (server, refusing, "127.0.0.1:9"):
        call(at, shown)
    status, said = call(server, f"dvc push {masked}; dvc pull -v {masked}")
    assert "401" in said
