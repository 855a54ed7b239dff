"""What a second worker or process brings on this machine, by the wall clock: seconds with one, with two, and the ratio.

    python benchmarks/scaling.py     # capture, search, fit and replay: on the outs of the last `make repro`

It promises nothing, so `make bench` leaves it out: the ratio says how many free cores there are. Run it alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from moe_beyond.capture.reference.prompts import reference_job, reference_prompts
from moe_beyond.capture.shards import capture
from moe_beyond.params import load_params
from moe_beyond.simulator.study.study import replay_splits
from moe_beyond.traces import store
from moe_beyond.training.distributed import is_further_process
from moe_beyond.training.fit import fit
from moe_beyond.training.size import Size
from moe_beyond.tuning.inputs import Inputs
from moe_beyond.tuning.optuna_study import StudyPlace
from moe_beyond.tuning.search import search

ROOT = Path(__file__).parents[1]
EPOCHS, SIZE = 6, Size(192, 2, 4)


def main() -> None:
    """Time both, or take part in a fit that was started for it."""
    if len(sys.argv) > 1:
        fit_once(Path(sys.argv[1]), int(sys.argv[2]))
        return
    print(f"cores {os.cpu_count()}, load before {os.getloadavg()[0]:.2f}")
    works = {"capture": time_capture, "search": time_search, "training": time_training, "replay": time_replay}
    for name, timed in works.items():
        one, two = timed(1), timed(2)
        print(f"{name}: one {one:.1f} s, two {two:.1f} s, {one / two:.2f} times as fast")


def time_capture(workers: int) -> float:
    """Seconds of tracing all prompts with the reference model, the start of processes included."""
    params = load_params(ROOT / "params.yaml")
    model = ROOT / "models/reference"
    settings = params.extract.model_copy(update={"workers": workers, "shard_prompts": 50})
    job, prompts = reference_job(model, settings, params.seed), reference_prompts(model, settings, params.seed)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        capture(job, prompts, Path(folder), Path(folder) / "traces")
        return time.perf_counter() - started


def time_replay(workers: int) -> float:
    """Seconds of replaying the policies without a predictor on a test split, the start of processes included."""
    settings = load_params(ROOT / "params.yaml").simulate.model_copy(update={"workers": workers})
    names = ("train", "validation", "test_out_of_domain")
    train, validation, test = (store.open_working(ROOT / "data/splits" / name) for name in names)
    started = time.perf_counter()
    replay_splits({"test_out_of_domain": test}, train, validation, [], settings)
    return time.perf_counter() - started


def time_search(workers: int) -> float:
    """Seconds of the search of params.yaml in this many processes, their start included."""
    params = load_params(ROOT / "params.yaml")
    tune = params.tune.model_copy(update={"workers": workers})
    simulate = params.simulate.of_source(params.traces.source)
    inputs = Inputs(ROOT / "data/splits", params.seed, tune, params.train, simulate)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        search(inputs, StudyPlace.of(None, "scaling", Path(folder)), Path(folder))
        return time.perf_counter() - started


def time_training(devices: int) -> float:
    """Seconds of a fit in this many processes, their start included."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        started = time.perf_counter()
        subprocess.run([sys.executable, __file__, folder, str(devices)], env=environment, cwd=ROOT, check=True)
        return time.perf_counter() - started


def fit_once(folder: Path, devices: int) -> None:
    """Fit on the splits; each process of it runs this."""
    settings = load_params(ROOT / "params.yaml").train
    strategy = "ddp" if devices > 1 else "auto"
    settings = settings.model_copy(update={"devices": devices, "strategy": strategy})
    train = store.open_working(ROOT / "data/splits/train")
    validation = store.open_working(ROOT / "data/splits/validation")
    fit(train, validation, SIZE, settings, epochs=EPOCHS, seed=1, scratch=folder / "scratch")
    if not is_further_process():
        shutil.rmtree(folder / "scratch")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
