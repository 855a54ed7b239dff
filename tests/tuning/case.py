"""A search on small traces; as a program, a tune stage that can be killed.

python tests/tuning/case.py ROOT WORKERS
"""

import sys
from pathlib import Path

from moe_beyond.capture.settings import TracesSettings
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.traces import store
from moe_beyond.tuning.inputs import Inputs
from moe_beyond.tuning.settings import SearchSpace, TuneSettings
from stages.tune import Params
from stages.tune import main as tune
from tests.predictor.small import SETTINGS
from tests.traces_of_chance import chance_trace

SEED = 3


def tune_settings(**changes):
    space = SearchSpace(width=(8, 16), depth=(1,), heads=(1, 2), train={})
    return TuneSettings(**{"trials": 4, "epochs": 3, "max_prompts": 50, "space": space} | changes)


def write_splits(root):
    for name, prompts, seed in (("train", 60, 1), ("validation", 8, 2)):
        store.write_working(chance_trace(prompts, seed=seed, name=name), root / "data/splits" / name)


def inputs_of(root, **changes):
    """Inputs of a search on the splits under a root."""
    return Inputs(root / "data/splits", SEED, tune_settings(**changes), SETTINGS, SimulateSettings())


def main(root, workers):
    params = Params(seed=SEED, traces=TracesSettings(), tune=tune_settings(workers=workers), train=SETTINGS)
    tune(root, params)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
