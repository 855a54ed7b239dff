"""Two workers on one study while something is killed; as a program, a worker whose trials train nothing.

python tests/tuning/several_workers.py STUDY_URL GRACE_S LOG
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from moe_beyond.tuning.optuna_study import Outcome, StudyPlace

ROOT = Path(__file__).parents[2]
CANDIDATES = [{"width": width, "window": window} for width in (8, 16, 32) for window in (8, 16)]
CHOICES = {"width": (8, 16, 32), "window": (8, 16)}
OUTCOMES = {i: Outcome({"ms_per_token": 1 / (i + 3), "use": "both"}, [{"epoch": 0, "loss": 0.1 * i}]) for i in range(6)}


def start(program, *arguments):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    return subprocess.Popen([sys.executable, str(ROOT / program), *map(str, arguments)], env=environment)


def wait_for(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def try_with_a_kill(place, log, break_something=lambda: None):
    """Two workers try all candidates; one is killed in the middle of a trial, and something else is broken."""
    study = place.open(create=True)
    study.enqueue(CANDIDATES, CHOICES)
    log.touch()
    workers = [start("tests/tuning/several_workers.py", place.url, place.grace_s, log) for _ in range(2)]
    wait_for(lambda: len({line.split()[2] for line in log.read_text().splitlines()}) == 2)
    workers[0].kill()
    workers[0].wait()
    break_something()
    assert workers[1].wait(250) == 0
    assert study.tried() == OUTCOMES
    events = [line.split()[:2] for line in log.read_text().splitlines()]
    ended = sorted(int(index) for word, index in events if word == "end")
    assert ended == sorted(OUTCOMES), "each candidate to its end once"
    assert len(events) == 2 * len(CANDIDATES) + 1, "that of the killed worker began twice"


def main(url, grace_s, log):
    def measure(index, candidate):
        assert candidate == CANDIDATES[index]
        for word in ("begin", "end"):
            with Path(log).open("a") as file:
                file.write(f"{word} {index} {os.getpid()}\n")
            time.sleep(0.5 if word == "begin" else 0.0)
        return OUTCOMES[index]

    StudyPlace("study", url, int(grace_s)).open().work(measure)


if __name__ == "__main__":
    main(*sys.argv[1:])
