"""The search: enqueues the candidates, lets workers try them until all are tried, and chooses.

No trial sees a test split. The outcome follows from the inputs alone: not from the number of workers, nor from when one
of them was interrupted.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import joblib
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moe_beyond.errors import InputError, line_of
from moe_beyond.masking import mask_output
from moe_beyond.tuning.candidates import choices
from moe_beyond.tuning.choice import Search, choose
from moe_beyond.tuning.inputs import Inputs
from moe_beyond.tuning.optuna_study import MAX_DEATHS, Study, StudyPlace

log = logging.getLogger(__name__)
POLL_S = 1.0


def search(inputs: Inputs, place: StudyPlace, scratch: Path) -> Search:
    """Run the study, or the rest of one that was interrupted.

    Args:
        inputs: Data and parameters.
        place: Of the study.
        scratch: For the fits on this machine; one that lies there is resumed.

    Raises:
        InputError: A candidate was interrupted each time, none can be measured, or the storage does not respond.
    """
    drawn, bench = inputs.drawn, inputs.bench
    study = place.open(create=True)
    study.enqueue(drawn.candidates, choices(inputs.tune.space))
    with _workers(inputs, place, scratch, study) as finish:
        # beside their first fits: what it compiles they find compiled
        on_demand_ms = bench.on_demand_ms()
        finish()
    outcomes = study.tried()
    if untried := [index for index in range(len(drawn.candidates)) if index not in outcomes]:
        candidate = ", ".join(f"{name} {value}" for name, value in drawn.candidates[untried[0]].items())
        raise InputError(
            f"tune: {len(untried)} of {len(drawn.candidates)} candidates lost their worker up to {MAX_DEATHS} times "
            f"({candidate}); is memory short? set fewer tune.workers, and run it again: it goes on where it was"
        )
    return choose(drawn, outcomes, inputs.tune, on_demand_ms)


def join(inputs: Inputs, place: StudyPlace, scratch: Path) -> None:
    """Help a search that was started on another machine until all candidates are tried; arguments as `search`.

    Raises:
        InputError: The study lies in a file, or is not begun.
    """
    if not place.is_shared:
        raise InputError("tune.storage: a file is not shared; set OPTUNA_STORAGE to PostgreSQL's address")
    with _workers(inputs, place, scratch, place.open()) as finish:
        finish()


@contextmanager
def _workers(inputs: Inputs, place: StudyPlace, scratch: Path, study: Study) -> Iterator[Callable[[], None]]:
    """Start workers, and yield what waits until all candidates are tried; no worker outlives the `with`."""
    total = len(inputs.drawn.candidates)
    # of a container, its share
    cores = joblib.cpu_count() if inputs.train.accelerator == "cpu" else 1
    context, running = multiprocessing.get_context("spawn"), list[BaseProcess]()
    unopened = replace(inputs)  # each worker maps the data itself

    def start() -> None:
        process = context.Process(target=_work, args=(unopened, place, scratch))
        process.start()
        running.append(process)

    for _ in range(min(inputs.tune.workers or cores, total - len(study.tried()))):
        start()
    try:
        yield partial(_wait, study, total, running, start)
    finally:
        for process in running:
            process.terminate()
            process.join()


def _wait(study: Study, total: int, running: list[BaseProcess], start: Callable[[], None]) -> None:
    """Wait for the workers; one that is killed is replaced, an error of one ends all."""
    killed = 0
    columns = (TextColumn("trying candidates"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=total, completed=len(study.tried()))
        while running:
            wait([process.sentinel for process in running], POLL_S)
            for process in [process for process in running if process.exitcode is not None]:
                running.remove(process)
                if process.exitcode and process.exitcode > 0:
                    raise InputError("tune: a worker failed, its message stands above; what was tried is kept")
                if process.exitcode:
                    killed += 1
                    log.warning("a worker of the search was ended by signal %d; another goes on", -process.exitcode)
                    if killed > MAX_DEATHS * total:
                        raise InputError(f"tune.workers: {killed} workers were killed; is memory short? set fewer")
                    start()
            progress.update(bar, completed=len(study.tried()))


def _work(inputs: Inputs, place: StudyPlace, scratch: Path) -> None:
    """A worker's process."""
    from moe_beyond.tuning.trial import measure  # noqa: PLC0415 - loads torch, which the search itself does not need

    # its parent ends it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    mask_output()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        place.open().work(partial(measure, inputs, scratch))
    except InputError as error:
        print(f"error: {line_of(error)}", file=sys.stderr)  # noqa: T201 - the one line for the user
        raise SystemExit(1) from error


def _end_with_parent() -> None:
    """A worker does not outlive the search that started it, however that ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
