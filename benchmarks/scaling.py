"""What a second worker or process brings on this machine, by the wall clock: seconds with one, with two, and the ratio.

    python benchmarks/scaling.py            # a search of eight trials, then a fit on data/splits

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

import numpy as np

from moe_beyond.config import load_params
from moe_beyond.predictor.settings import SearchSpace
from moe_beyond.ranks import is_further_process
from moe_beyond.traces import store
from moe_beyond.training import Size, fit

ROOT = Path(__file__).parents[1]
EPOCHS, PROMPTS, SIZE = 2, 200, Size(128, 2, 4)


def main() -> None:
    """Time both, or take part in a fit that was started for it."""
    if len(sys.argv) > 1:
        fit_once(Path(sys.argv[1]), int(sys.argv[2]))
        return
    print(f"cores {os.cpu_count()}, load before {os.getloadavg()[0]:.2f}")
    for name, timed in (("search", time_search), ("training", time_training)):
        one, two = timed(1), timed(2)
        print(f"{name}: one {one:.1f} s, two {two:.1f} s, {one / two:.2f} times as fast")


def time_search(workers: int) -> float:
    """Seconds of a search in this many processes, their start included."""
    # its trials are those of the tests, small: what is measured is how they share the machine
    from moe_beyond.tuning import search  # noqa: PLC0415
    from tests.tuning_case import FileLog, job  # noqa: PLC0415

    space = SearchSpace(width=(32, 48, 64, 96), depth=(1, 2), heads=(2,), train={})
    with tempfile.TemporaryDirectory() as folder:
        log = FileLog(Path(folder) / "log")
        made = job(  # type: ignore[no-untyped-call]
            Path(folder) / "study", log, space=space, trials=8, epochs=3, workers=workers
        )
        started = time.perf_counter()
        search(made)
        return time.perf_counter() - started


def time_training(devices: int) -> float:
    """Seconds of a fit in this many processes, their start included."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        started = time.perf_counter()
        subprocess.run([sys.executable, __file__, folder, str(devices)], env=environment, cwd=ROOT, check=True)
        return time.perf_counter() - started


def fit_once(folder: Path, devices: int) -> None:
    """Fit on a part of the splits; each process of it runs this."""
    settings = load_params(ROOT / "params.yaml").train
    strategy = "ddp" if devices > 1 else "auto"
    settings = settings.model_copy(update={"devices": devices, "strategy": strategy})
    train = store.open_working(ROOT / "data/splits/train")
    train = train.select(np.arange(min(PROMPTS, train.num_prompts)))
    validation = store.open_working(ROOT / "data/splits/validation")
    fit(train, validation, SIZE, settings, epochs=EPOCHS, seed=1, scratch=folder / "scratch")
    if not is_further_process():
        shutil.rmtree(folder / "scratch")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
