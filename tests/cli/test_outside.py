"""Outside a project a command says so in one line, and makes nothing."""

import pytest
from typer.testing import CliRunner

from moe_beyond.cli import app
from moe_beyond.tracking import __main__ as stages

COMMANDS = [
    "rollback",
    "resend",
    "resend --root missing",
    "compare champion name@champion",
    "compare workspace champion",
    "drift missing",
    "retrain-report",
]


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """An empty folder, and no MLflow named."""
    for variable in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("server", [False, True])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_a_project_makes_nothing_where_there_is_none(outside, monkeypatch, command, server):
    if server:
        if command.startswith("resend"):
            pytest.skip("what no project keeps cannot be missing")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert list(outside.iterdir()) == []


def test_a_stage_needs_its_project(outside, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tracking", "split"])
    with pytest.raises(SystemExit, match="1"):
        stages.main()
    assert "dvc.yaml: not found; run from the project's root" in capsys.readouterr().err
    assert list(outside.iterdir()) == []
