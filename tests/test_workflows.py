"""Workflows are what their schema and a security linter allow, and their steps are those of the Makefile."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
BIN = Path(sys.executable).parent


def run(*words):
    done = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflows_follow_their_published_schema():
    assert {path.stem for path in WORKFLOWS} == {"audit", "test", "retrain", "fuzz"}
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)
    gitlab = [".gitlab-ci.example.yml", "--data-transform", "gitlab-ci"]
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.gitlab-ci", *gitlab)


def test_workflows_have_no_known_security_fault():
    run(BIN / "zizmor", "--offline", "--no-progress", *WORKFLOWS)


def test_actions_are_pinned_to_a_commit():
    lines = [line for path in WORKFLOWS for line in path.read_text().splitlines()]
    used = [line.split("uses:")[1].strip() for line in lines if "uses:" in line]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v[\d.]+", action) for action in used), used


def test_the_lock_file_is_audited_weekly_and_when_it_changes():
    audit = yaml.safe_load((ROOT / ".github/workflows/audit.yml").read_text())
    events = audit[True]  # YAML reads `on` so
    assert "requirements.lock" in events["push"]["paths"]
    assert "requirements.lock" in events["pull_request"]["paths"]
    assert events["schedule"][0]["cron"].endswith("* * 1")
    assert "make audit" in [step.get("run") for step in audit["jobs"]["audit"]["steps"]]


@pytest.mark.parametrize("workflow", [".github/workflows/retrain.yml", ".gitlab-ci.example.yml"])
def test_ci_retrains_by_the_same_command_as_a_person(workflow):
    text = (ROOT / workflow).read_text()
    assert "make retrain" in text
    assert "dvc " not in text
    for variable in ("REMOTE", "BASE", "MLFLOW_TRACKING_URI", "MOE_BEYOND_GATE"):
        assert variable in text
    assert "\t.ci/retrain" in (ROOT / "Makefile").read_text()
    for script in (".ci/retrain", ".ci/comment", ".ci/run"):
        run("bash", "-n", script)


def test_ci_runs_the_predictor_in_the_oldest_onnxruntime_too():
    assert "make test-oldest" in (ROOT / ".ci/run").read_text()
    steps = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]


def test_ci_looks_for_damage_that_no_reader_bears_every_week():
    workflow = yaml.safe_load((ROOT / ".github/workflows/fuzz.yml").read_text())
    assert "schedule" in workflow[True]  # YAML reads the key `on` as a truth
    assert "make fuzz" in [step.get("run") for step in workflow["jobs"]["fuzz"]["steps"]]


def made(folder, *words):
    """What a make of its own says, not one below the make that runs the tests."""
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, check=False, env=own)


def planned(folder):
    done = made(folder, "-n", "repro")
    return done.stdout + done.stderr


def test_an_environment_that_was_moved_or_copied_is_made_anew(tmp_path):
    """Its programs would run the code of the checkout that it came from."""
    first, new = tmp_path / "the first", "-m venv --clear .venv"
    (first / ".venv/bin").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, first)
    assert new in planned(first)
    (first / ".venv/bin/python").symlink_to(sys.executable)
    (first / ".venv/made-at").write_text(f"{first}/.venv\n")
    (first / ".venv/.ok").touch()
    assert planned(first).startswith("dvc repro")
    shutil.copytree(first, tmp_path / "copy", symlinks=True)
    assert new in planned(tmp_path / "copy")
    assert planned(first).startswith("dvc repro")
    first.rename(tmp_path / "moved")
    assert new in planned(tmp_path / "moved")


def test_another_python_is_refused_before_an_environment_is_made(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    other = tmp_path / "python3.12"
    pretend = "import sys; sys.version, sys.version_info = '3.12.1 (main)', (3, 12); exec(sys.argv[2])"
    other.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$@"\n')
    other.chmod(0o755)
    done = made(tmp_path, ".venv/.ok", f"PYTHON={other}")
    assert done.returncode != 0
    assert done.stderr.startswith("error: Python 3.11 is needed, found 3.12.1; install it, or name it: make PYTHON=")
    assert not (tmp_path / ".venv").exists()
