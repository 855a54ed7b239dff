"""A stage that was killed before DVC took its outs and then gave others has one run: that of the outs that are kept."""

import shutil
import subprocess
import sys

import pytest

from moe_beyond.tracking.client import send
from tests.tracking.small_pipeline import client, only, readdress, records, run_split, runs

AWAY = "http://127.0.0.1:9"


@pytest.fixture
def measuring(project):
    """A project under DVC whose stage measures something: its outs differ each time, its inputs do not."""
    script = project / "stages/split.py"
    path = '(root / "data/splits/train/x.npy")'
    text = script.read_text().replace(f"{path}.write_text(", f"{path}.write_text(str(__import__('time').time()) + ")
    script.write_text(text)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=project, check=True)
    return project


def commit_receipt(root):
    """As DVC takes the outs of a stage that has ended."""
    shutil.copyfile(root / "reports/split/run.json", root / "receipt.json")
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "receipt.json"], cwd=root, check=True)


def names(root):
    return sorted(name for name, _ in runs(root))


ONCE = ["split", "trial-0", "trial-1", "trial-2"]


def test_of_a_killed_stage_the_run_of_the_outs_that_are_there_stays(measuring):
    run_split(measuring)
    first = only(measuring, "split").data.tags["moe_beyond.key"]
    run_split(measuring)
    assert names(measuring) == ONCE
    assert only(measuring, "split").data.tags["moe_beyond.key"] != first


def test_a_run_whose_outs_dvc_has_taken_stays(measuring):
    run_split(measuring)
    commit_receipt(measuring)
    run_split(measuring)
    assert names(measuring) == sorted(2 * ONCE)


def test_a_run_of_a_pipeline_of_other_inputs_or_of_another_checkout_stays(measuring):
    run_split(measuring)
    to = client(measuring)
    to.set_tag(only(measuring, "split").info.run_id, "mlflow.parentRunId", "a pipeline")
    run_split(measuring)
    assert names(measuring).count("split") == 2
    newest = [run for name, run in runs(measuring) if name == "split"][-1]
    to.set_tag(newest.info.run_id, "moe_beyond.checkout", "another")
    run_split(measuring)
    (measuring / "data/traces/a.txt").write_text("b")
    run_split(measuring)
    assert names(measuring).count("split") == 4


def test_a_record_that_waits_is_replaced_too(measuring, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    for _ in range(2):
        run_split(measuring)
    assert len(records(measuring)) == 1
    commit_receipt(measuring)
    run_split(measuring)
    assert len(records(measuring)) == 2
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    readdress(measuring, AWAY, "")
    send(measuring)
    assert names(measuring) == sorted(2 * ONCE)
