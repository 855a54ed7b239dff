"""The search: opens the study, lets workers try candidates until all are tried, and chooses.

No trial sees a test split.
"""

from __future__ import annotations

import csv
import logging
import multiprocessing
import os
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from moe_beyond.errors import InputError
from moe_beyond.tuning.choice import Search, choose, trials_table
from moe_beyond.tuning.ledger import MAX_DEATHS, Ledger, earlier_candidates, is_tried
from moe_beyond.tuning.settings import TuneSettings
from moe_beyond.tuning.storage import patiently
from moe_beyond.tuning.trial import Job, run_trial

log = logging.getLogger(__name__)
WAIT_S = 1.0


def search(job: Job) -> tuple[Search, tuple[str, ...]]:
    """Run the study, or the rest of one that was interrupted; each trial is of another candidate.

    Returns:
        The outcome, and the ids of the trials' records.

    Raises:
        InputError: No candidate is fast enough, a warm start that holds nothing, or a storage that does not answer.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = job.settings
    # the schema and the study are made once, before there are several workers
    ledger = Ledger(job.place, settings, job.seed)
    # for those who join from other machines
    patiently(lambda: ledger.study.set_user_attr("parent_run", job.trial_log.parent))
    ledger.enqueue_first(_warm_start(ledger, settings))
    if settings.workers == 1:
        work(job)
    else:
        _in_processes(job, settings.workers)
    table = patiently(lambda: trials_table(ledger.study, settings))
    outcome = choose(table, settings, job.bench.on_demand_ms())
    tried = [trial for trial in ledger.trials() if is_tried(trial) and "run_id" in trial.user_attrs]
    return outcome, tuple(trial.user_attrs["run_id"] for trial in tried)


def work(job: Job) -> None:
    """Try candidates until all are tried, also those whose workers die meanwhile."""
    ledger = Ledger(job.place, job.settings, job.seed)
    while (claim := ledger.claim()) != "done":
        if claim == "wait":
            time.sleep(WAIT_S)
        else:
            run_trial(job, ledger, claim)


def _in_processes(job: Job, workers: int) -> None:
    """Keep that many workers going; one that is killed is replaced, an error of one ends all."""
    context = multiprocessing.get_context("spawn")

    def start() -> BaseProcess:
        process = context.Process(target=_worker, args=(job,))
        process.start()
        return process

    running, killed = [start() for _ in range(workers)], 0
    try:
        while running:
            time.sleep(WAIT_S / 4)
            ended = [process for process in running if process.exitcode is not None]
            running = [process for process in running if process.exitcode is None]
            for process in ended:
                if (process.exitcode or 0) > 0:
                    raise RuntimeError(f"a worker of the search failed with status {process.exitcode}; see above")
                if process.exitcode:
                    killed += 1
                    log.warning("a worker of the search was ended by signal %d; another goes on", -process.exitcode)
                    if killed > MAX_DEATHS * workers:
                        raise InputError(f"tune.workers: {killed} workers were killed; memory may be short, set fewer")
                    running.append(start())
    finally:
        for process in running:
            process.terminate()
            process.join()


def _worker(job: Job) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("moe_beyond").setLevel(logging.INFO)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        work(job)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the one line that a person reads
        raise SystemExit(1) from error


def _end_with_parent(parent: int) -> None:
    """A worker does not outlive the stage that started it, however that ends."""
    while os.getppid() == parent:
        time.sleep(WAIT_S)
    os._exit(1)


def _warm_start(ledger: Ledger, settings: TuneSettings) -> list[dict[str, Any]]:
    """Candidates of an earlier search, fastest per token first."""
    if settings.warm_start is None:
        return []
    kind, _, name = settings.warm_start.partition(":")
    if kind == "study" and name:
        return earlier_candidates(_rows_of_study(ledger, name), settings)
    path = Path(settings.warm_start)
    if not path.is_file():
        raise InputError(f"tune.warm_start: {path}: no such file; give a copy of an earlier trials.csv or study:NAME")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return earlier_candidates(sorted(rows, key=_by_time), settings)


def _rows_of_study(ledger: Ledger, name: str) -> list[dict[str, Any]]:
    try:
        study = patiently(lambda: optuna.load_study(study_name=name, storage=ledger.storage))
    except KeyError as error:
        raise InputError(f"tune.warm_start: no study {name!r} in the storage; correct its name") from error
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    rows = [trial.params | {"ms_per_token": trial.user_attrs["measured"]["ms_per_token"]} for trial in complete]
    return sorted(rows, key=_by_time)


def _by_time(row: dict[str, Any]) -> float:
    value = row.get("ms_per_token")
    return float(value) if isinstance(value, int | float) else float("inf")


def _number(text: str) -> Any:
    """What a cell of a table meant."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
