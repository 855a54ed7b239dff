"""Two workers on one study while something is killed, and what must hold afterwards."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.tuning.worker import CANDIDATES, CHOICES, outcome_of

ROOT = Path(__file__).parents[2]


def start(place, log):
    command = [sys.executable, str(ROOT / "tests/tuning/worker.py"), place.url, str(place.grace_s), str(log)]
    return subprocess.Popen(command, env=environment(), cwd=ROOT)


def environment():
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "OMP_NUM_THREADS": "1"}


def wait_for(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines(log):
    return [tuple(map(int, line.split()[1:])) for line in log.read_text().splitlines()] if log.exists() else []


def try_with_a_kill(place, folder, break_something=lambda: None):
    """Two workers try all candidates; one is killed in the middle of a trial, and something else is broken."""
    study, log = place.open(create=True), folder / "log"
    study.enqueue(CANDIDATES, CHOICES)
    workers = [start(place, log) for _ in range(2)]
    wait_for(lambda: len({pid for _, pid in lines(log)}) == 2)
    workers[0].send_signal(signal.SIGKILL)
    workers[0].wait()
    break_something()
    assert workers[1].wait(250) == 0
    assert study.tried() == {index: outcome_of(index) for index in range(len(CANDIDATES))}
    began = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("begin")]
    ended = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("end")]
    assert len(ended) == len(set(ended)) == len(CANDIDATES), "each candidate to its end once"
    assert len(began) == len(CANDIDATES) + 1, "the killed worker's candidate began twice"
