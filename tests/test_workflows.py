"""Workflows are what their schema and a security linter allow, and their steps are those of the Makefile."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
BIN = Path(sys.executable).parent


def run(*words):
    done = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflows_follow_their_published_schema():
    assert {path.stem for path in WORKFLOWS} == {"test", "retrain"}
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)
    gitlab = [".gitlab-ci.example.yml", "--data-transform", "gitlab-ci"]
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.gitlab-ci", *gitlab)


def test_workflows_have_no_known_security_fault():
    run(BIN / "zizmor", "--offline", "--no-progress", *WORKFLOWS)


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
