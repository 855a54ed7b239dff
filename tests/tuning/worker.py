"""A worker of a study as its own program, to be killed: its trials train nothing and take half a second.

python tests/tuning/worker.py STUDY_URL GRACE_S LOG
"""

import os
import sys
import time
from pathlib import Path

from moe_beyond.tuning.study import Outcome, StudyPlace

CANDIDATES = [{"width": width, "window": window} for width in (8, 16, 32) for window in (8, 16)]
CHOICES = {"width": (8, 16, 32), "window": (8, 16)}
TRIAL_S = 0.5


def say(log, *words):
    with log.open("a") as file:
        file.write(" ".join(map(str, (*words, os.getpid()))) + "\n")


def measure(log, index, candidate):
    assert candidate == CANDIDATES[index]
    say(log, "begin", index)
    time.sleep(TRIAL_S)
    say(log, "end", index)
    return outcome_of(index)


def outcome_of(index):
    return Outcome({"ms_per_token": 1.0 / (index + 3), "use": "token_step"}, [{"epoch": 0, "loss": 0.1 * index}])


def main():
    url, grace_s, log = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    StudyPlace("study", url, grace_s).open().work(lambda index, candidate: measure(log, index, candidate))


if __name__ == "__main__":
    main()
