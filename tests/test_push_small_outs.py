"""A state that is in no commit is restored in another clone: the run cache alone knows it, small outs included."""

import sys
from pathlib import Path

import pytest

from tests.test_end_to_end import ROOT, call, stages_run

PIPELINE = """
stages:
  made:
    cmd: python -c "import os; open('out', 'w').write('x' * 9); open('metrics.json', 'w').write('{\\"a\\":1}')"
    deps: [input]
    outs: [out]
    metrics: [{metrics.json: {cache: false}}]
"""


@pytest.fixture
def project(tmp_path):
    """A repository whose only commit is older than its run."""
    folder = tmp_path / "first"
    folder.mkdir()
    call(folder, "git", "init", "-q")
    call(folder, "dvc", "init", "-q")
    (tmp_path / "remote").mkdir()
    call(folder, "dvc", "remote", "add", "-q", "-d", "team", str(tmp_path / "remote"))
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "input").write_text("1")
    call(folder, "git", "add", "--all")
    call(folder, "git", "commit", "-q", "-m", "before any run")
    assert stages_run(call(folder, "dvc", "repro").stdout) == ["made"]
    call(folder, "dvc", "push", "-q", "--run-cache")
    return folder


def stages_run_in_a_clone(project, name):
    clone = project.parent / name
    call(project.parent, "git", "clone", "-q", str(project), name)
    call(clone, "dvc", "pull", "-q", "--run-cache", "--allow-missing")
    ran = stages_run(call(clone, "dvc", "repro", "--pull").stdout)
    assert Path(clone / "metrics.json").read_text() == '{"a":1}'
    return ran


def test_another_clone_restores_it_only_with_its_small_outs(project):
    assert stages_run_in_a_clone(project, "without") == ["made"]
    call(project, sys.executable, str(ROOT / "scripts/push_small_outs.py"))
    assert stages_run_in_a_clone(project, "with") == []
