"""Whatever responds in MLflow's place: the stage succeeds, the record waits, and one line says so."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from moe_beyond.tracking.client import MlflowMissingError, connected
from tests.tracking.small_pipeline import check_whole, readdress, records, run_split, warnings

NO_MLFLOW = {
    "a refusal": (401, b"no entry"),
    "a page": (200, b"<html>log in</html>"),
    "half a document": (200, b'{"experiment": {"exper'),
    "nothing": (200, b"{}"),
    "a list": (200, b"[]"),
    "another type": (200, b'{"experiment": 5}'),
    "no text": (200, b"\xff\xfe"),
    "no response": None,
}
RUN = '{"info": {"run_id": "1234567890abcdef1234567890abcdef", "artifact_uri": "mlflow-artifacts:/1"}}'
BELIEVES = f'{{"experiment": {{"experiment_id": "1", "name": "x"}}, "run": {RUN}, "runs": [{RUN}]}}'.encode()


@pytest.fixture
def respond(monkeypatch):
    """Set what a server, which MLFLOW_TRACKING_URI names with a password, responds to everything."""
    responses = []

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if responses[-1] is None:
                self.connection.close()
                return
            status, content = responses[-1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = handle_any

        def log_message(self, *_):
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:planted@127.0.0.1:{server.server_port}")
        yield responses.append
        server.shutdown()


@pytest.mark.parametrize("what", NO_MLFLOW)
def test_what_is_no_mlflow_is_one_line_and_loses_nothing(project, respond, caplog, monkeypatch, what):
    respond(NO_MLFLOW[what])
    run_split(project)
    line = warnings(caplog)[-1]
    assert line.startswith("MLflow lacks 1 run: split (")
    assert line.endswith("to log it again: moe-beyond resend")
    assert "\n" not in line
    assert "planted" not in line
    with pytest.raises(MlflowMissingError) as caught:
        connected(project).__enter__()
    assert "planted" not in str(caught.value)
    (record,) = records(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    readdress(project, json.loads(record.read_text())["address"], "")
    check_whole(project)


def test_a_server_that_takes_everything_and_keeps_nothing_is_not_believed(project, respond, caplog):
    respond((200, BELIEVES))
    run_split(project)
    assert "MLflow lacks 1 run: split (took every request, and does not hold the run)" in warnings(caplog)[-1]
    assert len(records(project)) == 1
