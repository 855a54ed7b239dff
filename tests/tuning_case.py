"""A search on small traces, its log in memory or in files, for tests in one process and in several."""

import json
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.tuning import Inputs, StudyPlace
from moe_beyond.tuning.settings import SearchSpace, TuneSettings
from tests.predictor.small import SETTINGS
from tests.traces_of_chance import chance_trace


def tune_settings(**changes):
    settings = {
        "trials": 4,
        "epochs": 1,
        "max_prompts": 12,
        "pruning_margin": None,
        "space": SearchSpace(width=(8, 16), depth=(1,), heads=(1, 2), train={}),
        "latency_repeats": 10,
        "max_latency_ms": 1000,
    }
    return TuneSettings(**settings | changes)


def job(folder, trial_log, url=None, name="study", train=SETTINGS, **changes):
    inputs = Inputs(3, tune_settings(**changes), train, SimulateSettings(), 20)
    traces = chance_trace(20, seed=1, name="t"), chance_trace(5, seed=2, name="v")
    return inputs.job_on(*traces, StudyPlace(name, url, Path(folder)), trial_log)


@dataclass
class FileRun:
    """A record of a trial: a line in a file for everything that it is told."""

    folder: Path
    run_id: str
    slow_s: float

    def __call__(self, metrics, step, at_ms=None):
        self.write({"metrics": metrics, "step": step, "at_ms": at_ms})
        time.sleep(self.slow_s)

    def write(self, line):
        with (self.folder / self.run_id).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self):
        return [json.loads(line) for line in (self.folder / self.run_id).read_text().splitlines()]


@dataclass
class FileLog:
    """Opens such records; as `tracking.ChildRuns`, and can be sent to another process."""

    folder: Path
    slow_s: float = 0.0
    parent: str = "parent"

    @contextmanager
    def __call__(self, name, params, run_id=None):
        self.folder.mkdir(exist_ok=True)
        run = FileRun(self.folder, run_id or f"{name}-{os.getpid()}", self.slow_s)
        run.write({"open": params, "pid": os.getpid()})
        yield run
        run.write({"closed": os.getpid()})

    def runs(self):
        paths = sorted(self.folder.iterdir()) if self.folder.exists() else []
        return [FileRun(self.folder, path.name, 0.0) for path in paths]
