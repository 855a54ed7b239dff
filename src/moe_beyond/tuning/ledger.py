"""The books of a study that several workers share: each candidate is tried once, whoever dies, and none is lost.

A worker takes a candidate while it has the turn. Its name and a sign of life stand on the trial; a trial whose worker
is gone is closed as failed, and its candidate waits again with all that its epochs have shown.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from moe_beyond.errors import InputError
from moe_beyond.tuning.settings import TuneSettings
from moe_beyond.tuning.space import Candidate, all_candidates, key_of, suggest
from moe_beyond.tuning.storage import StudyPlace, patiently

BEAT_S, STALE_S = 10.0, 120.0
MAX_DEATHS = 3
CARRIED = ("rows", "measured", "run_id", "deaths")
"""What a candidate that is tried again takes along from the trial whose worker died."""

Row = dict[str, Any]
"""An epoch: step, at_ms, metrics."""


@dataclass(frozen=True)
class Claim:
    """A trial that is this worker's to run.

    Attributes:
        trial: In the study.
        candidate: What to try.
    """

    trial: Trial
    candidate: Candidate

    @property
    def rows(self) -> list[Row]:
        """Epochs that are known already."""
        return list(self.trial.user_attrs.get("rows", []))

    def note(self, name: str, value: Any) -> None:
        """Write an attribute of the trial."""
        patiently(lambda: self.trial.set_user_attr(name, value))


class Ledger:
    """A worker's view of the study."""

    def __init__(self, place: StudyPlace, settings: TuneSettings, seed: int) -> None:
        """Open the study.

        Args:
            place: Where it lies.
            settings: Space, and how many candidates.
            seed: Of the sampler.
        """
        self.settings, self.seed = settings, seed
        self.place, self.storage = place, place.open()
        self.study = place.study(self.storage)
        self.candidates = all_candidates(settings.space)
        self.wanted = min(settings.trials, len(self.candidates))
        self.owner = _owner(os.getpid())

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials in these states, by number; all of them without one."""
        return patiently(lambda: self.study.get_trials(deepcopy=False, states=states or None))

    def claim(self) -> Claim | Literal["wait", "done"]:
        """Take a candidate that nobody has tried; `wait` while others work on the last, `done` when all are tried."""
        return patiently(self._claim)

    def _claim(self) -> Claim | Literal["wait", "done"]:
        with self.place.turn(self.storage):
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self._bury_if_dead(trial)
            trials = self.study.get_trials(deepcopy=False)
            taken = {key_of(trial.params) for trial in trials if is_tried(trial) or trial.state == TrialState.RUNNING}
            if len(taken) >= self.wanted:
                return "wait" if any(trial.state == TrialState.RUNNING for trial in trials) else "done"
            claim = Claim(*self._ask(taken, len(trials)))
            claim.trial.set_user_attr("alive_at", time.time())
            # last: a trial with an owner is whole
            claim.trial.set_user_attr("owner", self.owner)
            return claim

    def _ask(self, taken: set[str], number: int) -> tuple[Trial, Candidate]:
        # half of the few trials are random, the rest follow what those showed; seeded by the number of trials, so that
        # a study that was interrupted goes on as it would have
        startup = max(2, self.settings.trials // 2)
        self.study.sampler = optuna.samplers.TPESampler(seed=self.seed + number, n_startup_trials=startup)
        while True:
            trial = self.study.ask()
            candidate = suggest(trial, self.settings.space)
            if key_of(candidate) not in taken:
                return trial, candidate
            # the sampler may repeat itself; another candidate says more than the same fit again
            trial.set_user_attr("repeats", True)
            self.study.tell(trial, state=TrialState.FAIL)
            untried = [candidate for candidate in self.candidates if key_of(candidate) not in taken]
            self.study.enqueue_trial(untried[np.random.default_rng([self.seed, number]).integers(len(untried))])

    def _bury_if_dead(self, trial: FrozenTrial) -> None:
        owner = trial.user_attrs.get("owner")
        if owner is None:  # its worker died before it was whole: it was never begun
            self.study.tell(trial.number, state=TrialState.FAIL)
            return
        # whoever asks for a candidate works on none
        if owner != self.owner and _is_alive(owner, trial.user_attrs["alive_at"]):
            return
        deaths = trial.user_attrs.get("deaths", 0) + 1
        if deaths >= MAX_DEATHS:
            self._close(trial, f"its worker died {deaths} times")
            return
        again = [t for t in self.study.get_trials(deepcopy=False) if t.user_attrs.get("retries") == trial.number]
        if not again:  # else whoever buried it died between the two steps
            carried = {name: trial.user_attrs[name] for name in CARRIED if name in trial.user_attrs}
            self.study.enqueue_trial(trial.params, carried | {"deaths": deaths, "retries": trial.number})
        self.study.tell(trial.number, state=TrialState.FAIL)

    def _close(self, trial: FrozenTrial, reason: str) -> None:
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(
            self.storage.get_study_id_from_name(self.place.name), trial.number
        )
        self.storage.set_trial_user_attr(trial_id, "reason", reason)
        self.study.tell(trial.number, state=TrialState.FAIL)

    def finish(self, claim: Claim, values: tuple[float, float, float]) -> None:
        """A candidate was measured: recall, latency, bytes."""
        patiently(lambda: self.study.tell(claim.trial.number, list(values), skip_if_finished=True))

    def give_up(self, claim: Claim, reason: str, *, pruned: bool) -> None:
        """A candidate is not worth more work, or cannot be trained."""
        claim.note("reason", reason)
        state = TrialState.PRUNED if pruned else TrialState.FAIL
        patiently(lambda: self.study.tell(claim.trial.number, state=state, skip_if_finished=True))

    def enqueue_first(self, candidates: list[Candidate]) -> None:
        """Let these be tried before the sampler is asked, unless the study has begun."""

        def once() -> None:
            with self.place.turn(self.storage):
                if not self.study.get_trials(deepcopy=False):
                    for candidate in candidates[: self.wanted]:
                        self.study.enqueue_trial(candidate, {"warm_start": True})

        patiently(once)

    @contextmanager
    def alive(self, claim: Claim) -> Iterator[None]:
        """Give signs of life for a trial inside the `with`."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(BEAT_S):
                try:
                    claim.note("alive_at", time.time())
                except UpdateFinishedTrialError:
                    return  # told between two beats

        thread = threading.Thread(target=beat, daemon=True, name="signs-of-life")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def is_tried(trial: FrozenTrial) -> bool:
    """Whether a trial says something of its candidate: it was measured, or ended early, or failed for good."""
    if trial.state == TrialState.FAIL:
        return "reason" in trial.user_attrs
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def earlier_candidates(rows: list[dict[str, Any]], settings: TuneSettings) -> list[Candidate]:
    """Those of an earlier search that the space still holds, in their order.

    Raises:
        InputError: There is none.
    """
    known = {key_of(candidate): candidate for candidate in all_candidates(settings.space)}
    names = set(next(iter(known.values()), {}))
    found = [known.get(key_of({name: row[name] for name in names if name in row})) for row in rows]
    kept = list({key_of(candidate): candidate for candidate in found if candidate is not None}.values())
    if not kept:
        raise InputError(f"tune.warm_start: {settings.warm_start} holds no candidate of tune.space; change one of them")
    return kept


def _owner(pid: int) -> str:
    # a process id is used again; with the time of its start it is not
    return f"{socket.gethostname()}:{pid}:{psutil.Process(pid).create_time():.2f}"


def _is_alive(owner: str, alive_at: float) -> bool:
    """Whether a worker lives: on this machine the process says so, on others its last sign of life."""
    host, pid, _ = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return time.time() - alive_at < STALE_S
    try:
        return _owner(int(pid)) == owner and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
