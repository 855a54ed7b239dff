"""A worker of a study as its own program, to be killed: its trials train nothing and take a second.

python tests/tuning_worker.py FOLDER STORAGE_URL|-
"""

import sys
import time
from pathlib import Path

from moe_beyond.tuning import trial as trial_module
from moe_beyond.tuning import work
from moe_beyond.tuning.choice import MEASURED
from moe_beyond.tuning.settings import SearchSpace
from tests.tuning_case import FileLog, job

EPOCHS, EPOCH_S, CANDIDATES = 4, 0.25, 8


def fit(train, validation, size, settings, *, epochs, seed, scratch, log_step):
    for epoch in range(epochs):
        time.sleep(EPOCH_S)
        log_step({"validation/recall_at_k": size.width / 100, "validation/loss": 1.0 / (epoch + 1)}, epoch + 1)
    return size


def cost(job, size, directory):
    return dict.fromkeys(MEASURED, size.width) | {"use": "token_step", "at_ms": int(time.time() * 1000)}


def study(folder, url):
    space = SearchSpace(width=(8, 16, 24, 32), depth=(1, 2), heads=(1,), train={})
    return job(folder / "study", FileLog(folder / "log"), url=url, space=space, trials=CANDIDATES, epochs=EPOCHS)


def main():
    setattr(trial_module, "fit", fit)  # noqa: B010 - this process alone
    setattr(trial_module, "_cost", cost)  # noqa: B010
    folder, url = Path(sys.argv[1]), None if sys.argv[2] == "-" else sys.argv[2]
    work(study(folder, url))


if __name__ == "__main__":
    main()
