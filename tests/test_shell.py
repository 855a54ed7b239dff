"""Names of folders and given values are words, not commands: with blanks, quotes, `;`, `&`, `$(...)` and patterns."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# each would make a file if a shell or make took it apart
NAME = "a b'c\"d;touch made;$(touch made)&`touch made`[e]#%20"
PROGRAMS = ("python", "pytest", "ruff", "mypy", "lint-imports", "mlflow", "moe-beyond", "dvc", "cat")


@pytest.fixture
def checkout(tmp_path):
    """What make and .ci need, and programs that only note how they were called: in `calls`, a line each."""
    root = tmp_path / NAME
    (root / ".venv/bin").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / ".ci", root / ".ci")
    (root / "dvc1").touch()  # what a pattern in SET would find
    noted = "import json, os, sys; word = json.dumps([sys.argv[1:], os.getcwd(), os.environ.get('OLDEST_PYTHON')])"
    (tmp_path / "note.py").write_text(f"{noted}; print(word, file=open(os.environ['CALLS'], 'a'))")
    for name in PROGRAMS:
        program = root / ".venv/bin" / name
        program.write_text(f'#!/bin/sh\nexec "$REAL_PYTHON" "$NOTE" {name} "$@"\n')
        program.chmod(0o755)
    (root / ".venv/made-at").write_text(f"{root / '.venv'}\n")
    (root / ".venv/.ok").touch()
    return root


def called(root, *command, path="", **variables):
    """The calls of our programs, each its words; fails where anything else was run."""
    dropped = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CDPATH", "SET", "REMOTE", "BASE", "TRACES", "TORCH_INDEX")
    own = {name: value for name, value in os.environ.items() if name not in dropped}
    calls = root.parent / "calls"
    own |= {"CALLS": str(calls), "NOTE": str(root.parent / "note.py"), "REAL_PYTHON": sys.executable}
    own |= {"PATH": f"{path}{os.environ['PATH']}"} | variables
    calls.write_text("")
    done = subprocess.run(command, cwd=root, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(root.parent.rglob("made")), done.stdout
    return [json.loads(line) for line in calls.read_text().splitlines()]


def test_make_runs_in_a_folder_of_any_name(checkout):
    calls = called(checkout, "make", "lint", "ui", "servers", "servers-stop", "release")
    assert {folder for _, folder, _ in calls} == {str(checkout)}
    words = [given for given, *_ in calls]
    assert ["ruff", "check", "."] in words
    assert ["python", "scripts/servers.py", "start", "--mlflow-port", "5000"] in words
    (server,) = [given for given in words if given[0] == "mlflow"]
    assert "sqlite:///mlflow.db" in server


def test_the_oldest_runtime_is_named_by_its_path(checkout):
    (checkout / "build/oldest-runtime/bin").mkdir(parents=True)
    shutil.copy(checkout / ".venv/bin/python", checkout / "build/oldest-runtime/bin/python")
    (tests,) = [call for call in called(checkout, "make", "test-oldest") if call[0][0] == "pytest"]
    assert tests[2] == f"{checkout}/build/oldest-runtime/bin/python"


@pytest.mark.parametrize("how", ["on the command line", "in the environment"])
def test_what_make_is_given_arrives_as_it_was_given(checkout, how):
    given = {"TRACES": f"{NAME}$$", "REMOTE": f"/r/{NAME}", "BASE": NAME, "SET": "a.b=[1] c=*"}
    if how == "in the environment":
        calls = called(checkout, "make", "golden", "retrain", **given)
    else:
        calls = called(checkout, "make", "golden", "retrain", *(f"{name}={value}" for name, value in given.items()))
    words = [line for line, *_ in calls]
    assert words[0] == ["python", "-m", "benchmarks.golden", given["TRACES"]]
    assert [line[-1] for line in words if line[:3] == ["dvc", "remote", "add"]] == [given["REMOTE"]]
    assert ["dvc", "exp", "run", "-S", "++a.b=[1]", "-S", "++c=*"] in words
    assert next(line for line in words if line[:2] == ["moe-beyond", "retrain-report"])[2] == f"--base={NAME}"


def test_retraining_starts_from_any_folder(checkout):
    path = f"{checkout}/.venv/bin:"
    calls = called(checkout, "bash", "-c", 'cd / && exec "$0/.ci/retrain"', str(checkout), path=path, SET="dvc[1]")
    assert {folder for _, folder, _ in calls} == {str(checkout)}
    assert ["dvc", "exp", "run", "-S", "++dvc[1]"] in [line for line, *_ in calls]
    # a shell whose `cd` looks elsewhere first
    (checkout / "elsewhere/.ci").mkdir(parents=True)
    calls = called(checkout, ".ci/retrain", path=path, CDPATH="elsewhere")
    assert {folder for _, folder, _ in calls} == {str(checkout)}


@pytest.mark.parametrize("name", ["a:b", "a\nb"])
def test_a_folder_that_path_cannot_hold_is_one_line(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    for file in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / file, folder)
    words = ["make", ".venv/.ok", f"PYTHON={sys.executable}"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("error: the name of this folder, or of one above it, holds a colon or a line break")
    assert not (folder / ".venv").exists()
