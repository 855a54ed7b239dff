"""kill -9 over all stages and the pipeline's run: MLflow holds each run once, ended, with the numbers of the files."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from mlflow.tracking import MlflowClient

from moe_beyond.settings import STAGES, flatten
from tests.test_end_to_end import OVERRIDES, ROOT, RUNS, call, environment_of
from tests.tracking.small_pipeline import runs

FOLLOWING = ("reference", "extract", "assess", "split", "tune", "train")
"""Stages whose numbers follow from parameters alone: export measures times on this machine, and what comes after uses
them."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def clone(folder):
    call(ROOT, "git", "clone", "-q", str(ROOT), str(folder))
    return folder


def repro_killed(project, stage, moment, draw):
    """Run the pipeline and kill all of it in the middle of a stage: of its work, or of its logging.

    Returns whether it was killed there: a moment that passes before it is seen is none.
    """
    log = project.with_name("dvc.log")
    command = [sys.executable, "-m", "dvc", "repro"]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=project, env=environment_of(project), stdout=out, stderr=out, start_new_session=True
        )
    while process.poll() is None:
        begun = f"Running stage '{stage}'" in log.read_text()
        if begun and (moment == "work" or any((project / ".mlflow-records").glob("*.json"))):
            time.sleep(draw.uniform(0, 6 if moment == "work" else 1.5))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    process.wait()
    return process.returncode == -signal.SIGKILL


def named_runs(project):
    """Every run; that of the pipeline without the name of its state."""
    return [(name.split()[0], run) for name, run in runs(project)]


def numbers(run):
    return {name: value for name, value in run.data.metrics.items() if not name.startswith("system/")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    project = clone(tmp_path_factory.mktemp("undisturbed") / "project")
    call(project, "dvc", "exp", "run", "-f", *OVERRIDES)
    return project


def test_mlflow_holds_each_run_once_whatever_was_killed(undisturbed, tmp_path_factory):
    project = clone(tmp_path_factory.mktemp("killed") / "project")
    (project / "params.yaml").write_text((undisturbed / "params.yaml").read_text())
    draw = random.Random(7)  # noqa: S311 - moments
    kills = [repro_killed(project, stage, moment, draw) for stage in STAGES for moment in ("work", "logging")]
    # the next one may run nothing but publish
    call(project, "dvc", "repro")
    assert sum(kills) >= 20
    assert not list((project / ".mlflow-records").glob("*.json"))

    found, before = named_runs(project), dict(named_runs(undisturbed))
    assert sorted(name for name, _ in found) == sorted(before)
    status = {name: run.info.status for name, run in found}
    assert status == {name: run.info.status for name, run in before.items()}
    assert "RUNNING" not in status.values()
    stages = {run.data.tags["moe_beyond.stage"]: run for _, run in found}
    for stage in RUNS:
        receipt = json.loads((project / "reports" / stage / "run.json").read_text())
        assert stages[stage].data.tags["moe_beyond.key"] == receipt["key"]
        file = project / "reports" / stage / "metrics.json"
        values = flatten(json.loads(file.read_text()), "/").items() if file.exists() else []
        of_file = {name.removesuffix("/value"): value for name, value in values if isinstance(value, int | float)}
        assert numbers(stages[stage]).items() >= of_file.items()
    for name, run in found:
        if name in FOLLOWING or name.startswith("trial"):
            assert numbers(run) == pytest.approx(numbers(before[name]), abs=0, rel=0, nan_ok=True), name
    headline = json.loads((project / "reports/simulate/metrics.json").read_text())
    pipeline = numbers(stages["pipeline"])
    assert {name: pipeline[name] for name in headline} == {name: row["value"] for name, row in headline.items()}
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    assert len(client.search_logged_models([run.info.experiment_id for _, run in found][:1])) == 1
    assert [version.version for version in client.search_model_versions()] == [1]
