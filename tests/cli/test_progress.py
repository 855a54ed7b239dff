"""No command is silent for long, none keeps `--help` waiting, and stdout stays what it was."""

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_beyond.cli import progress
from moe_beyond.traces import store
from tests.traces_of_chance import chance_trace

SOURCE = Path(__file__).parents[2] / "src"
HEAVY = {"polars", "pyarrow", "numpy", "rich.console", "torch", "mlflow", "numba", "scipy"}


def moe_beyond(*words, **environment):
    """The command in a process of its own."""
    code = "from moe_beyond.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_help_imports_nothing_heavy():
    code = f"import sys, moe_beyond.cli; sys.exit(str({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
    assert "advise" in moe_beyond("--help").stdout


@pytest.fixture
def trace_file(tmp_path):
    store.write_parquet(chance_trace(40), tmp_path / "trace.parquet")
    return tmp_path / "trace.parquet"


def test_the_first_replay_says_that_it_compiles(trace_file, tmp_path):
    words = ("replay", trace_file, "--policy", "lru", "--capacity", 10, "--json")
    first, second = (moe_beyond(*words, NUMBA_CACHE_DIR=str(tmp_path / "numba")) for _ in range(2))
    assert first.stderr.splitlines().count("compiling the replay for this processor, once: up to half a minute") == 1
    assert "compiling" not in second.stderr
    assert json.loads(first.stdout) == json.loads(second.stdout)


def test_lines_come_until_the_end_and_say_what_is_done(monkeypatch, capsys):
    for name in ("_ELSEWHERE_S", "_NEXT_S"):
        monkeypatch.setattr(progress, name, 0.02)
    with progress.shown():
        time.sleep(0.1)
        progress.tell("7 plans timed")
        time.sleep(0.1)
    before = capsys.readouterr()
    assert before.out == ""
    assert {"working, 0 s", "7 plans timed, 0 s"} == set(before.err.splitlines())
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_in_a_terminal_the_first_line_comes_after_two_seconds():
    code = "import time; from moe_beyond.cli import progress\nwith progress.shown(): time.sleep(2.5)"
    leader, follower = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(SOURCE)}, stderr=follower, check=True
    )
    os.close(follower)
    assert os.read(leader, 1000).decode().strip() == "working, 2 s"
    os.close(leader)
