"""Two workers on one study while something is killed, and what must hold afterwards."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from optuna.trial import TrialState

from moe_beyond.tuning.ledger import Ledger, is_tried
from tests.tuning_case import FileLog
from tests.tuning_worker import CANDIDATES, EPOCHS, study

ROOT = Path(__file__).parents[1]


def start(folder, url):
    command = [sys.executable, str(ROOT / "tests/tuning_worker.py"), str(folder), url or "-"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, cwd=ROOT)


def wait_for(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def epochs_logged(folder):
    return [line for run in FileLog(folder / "log").runs() for line in run.lines() if line.get("step")]


def run_with_a_kill(folder, url, break_something=lambda: None):
    """Start two workers, kill one in the middle of a trial and break something else; the other one ends the study."""
    job = study(folder, url)
    ledger = Ledger(job.place, job.settings, job.seed)
    workers = [start(folder, url), start(folder, url)]
    # both work, and the one that is killed is in the middle of a trial
    wait_for(lambda: len({line["pid"] for run in FileLog(folder / "log").runs() for line in run.lines()[:1]}) == 2)
    wait_for(lambda: len(epochs_logged(folder)) >= 3)
    workers[0].send_signal(signal.SIGKILL)
    workers[0].wait()
    break_something()
    assert workers[1].wait(250) == 0
    return ledger


def check_nothing_lost_nothing_doubled(folder, ledger):
    tried = [trial for trial in ledger.trials() if is_tried(trial)]
    assert [trial.state for trial in tried] == [TrialState.COMPLETE] * CANDIDATES
    assert len({tuple(trial.params.values()) for trial in tried}) == CANDIDATES
    assert not ledger.trials(TrialState.RUNNING, TrialState.WAITING)
    retried = [trial for trial in tried if trial.user_attrs.get("deaths")]
    assert len(retried) == 1, "the killed worker's candidate was tried again"
    # one record a candidate, in which each epoch has one time, however often it was said
    runs = FileLog(folder / "log").runs()
    assert {run.run_id for run in runs} == {trial.user_attrs["run_id"] for trial in tried}
    for run in runs:
        points = {(line["step"], line["at_ms"]) for line in run.lines() if line.get("step")}
        assert sorted(step for step, _ in points) == list(range(1, EPOCHS + 1))
        measured = {line["at_ms"] for line in run.lines() if "ms_per_token" in line.get("metrics", ())}
        assert len(measured) == 1
