"""The study that workers share, in Optuna's storage: a SQLite file in the scratch folder, or PostgreSQL.

Workers take waiting trials until none waits or runs. A trial whose worker is killed loses its heartbeat and waits again
(Optuna's `RetryHeartbeatStaleTrialCallback`). PostgreSQL may go away for a minute: every call waits for it.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from moe_beyond.errors import InputError, reason_of
from moe_beyond.tuning.candidates import Candidate

log = logging.getLogger(__name__)
Result = TypeVar("Result")

URL_VARIABLE = "OPTUNA_STORAGE"
MAX_DEATHS = 3
"""How often the worker of a candidate may be killed in one search."""
PATIENCE_S, PAUSE_S, WAIT_S, BUSY_S = 120.0, 2.0, 1.0, 60.0
_AWAY = (StorageInternalError, sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
_CANDIDATE, _MEASURED, _REASON = "candidate", "measured", "reason"


def patiently(call: Callable[[], Result]) -> Result:
    """Call again while the storage is away, for two minutes at most; a repeated call must do no harm.

    Raises:
        InputError: The storage stayed away.
    """
    deadline, warned = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            return call()
        except _AWAY as error:
            reason = reason_of(error.__cause__ or error)
            if time.monotonic() > deadline:
                raise InputError(f"tune.storage: it does not answer ({reason}); start it and run this again") from error
            if not warned:
                log.warning("the study's storage does not answer (%s); trying for %.0f s", reason, PATIENCE_S)
                warned = True
            time.sleep(PAUSE_S)


class _Storage(RDBStorage):
    """Optuna's, with heartbeats that survive an absence of the database, and none missing.

    A trial without any heartbeat never counts as stale, so the first is recorded before the trial is claimed.
    """

    def record_heartbeat(self, trial_id: int) -> None:
        patiently(lambda: super(_Storage, self).record_heartbeat(trial_id))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if state == TrialState.RUNNING:
            self.record_heartbeat(trial_id)
        return super().set_trial_state_values(trial_id, state, values)


@dataclass(frozen=True)
class Outcome:
    """The result of a candidate.

    Attributes:
        numbers: By name, as in trials.csv; empty where the candidate failed.
        epochs: A row an epoch, as in `Fit.history`.
        reason: Why it failed.
    """

    numbers: dict[str, Any]
    epochs: list[dict[str, float]]
    reason: str | None = None


@dataclass(frozen=True)
class StudyPlace:
    """A study's name and storage; can be sent to another process.

    Attributes:
        name: Of the study: the same data, parameters and code, the same name.
        url: Of the storage.
        grace_s: A trial without a heartbeat for so long has lost its worker.
    """

    name: str
    url: str
    grace_s: int

    @classmethod
    def of(cls, setting: str | None, name: str, folder: Path) -> StudyPlace:
        """In the PostgreSQL that the environment or the parameter names, else in a file.

        Args:
            setting: `tune.storage`.
            name: Of the study.
            folder: For the file.

        Raises:
            InputError: An address that is not PostgreSQL's.
        """
        url = os.environ.get(URL_VARIABLE) or setting
        if url is None:
            file = sqlalchemy.URL.create("sqlite", database=str(folder / "study.db"))
            return cls(name, file.render_as_string(), grace_s=20)
        if not url.startswith("postgresql"):
            raise InputError(f"{URL_VARIABLE}: not an address that begins with postgresql; correct or unset it")
        if not _is_readable(url):
            raise InputError(f"{URL_VARIABLE}: this address cannot be read; in a password write %40 for @, %2F for /")
        # the driver that this project installs, whatever SQLAlchemy takes for granted
        return cls(name, url.replace("postgresql://", "postgresql+psycopg2://", 1), grace_s=int(PATIENCE_S) + 60)

    @property
    def is_shared(self) -> bool:
        """Whether other machines can join."""
        return not self.url.startswith("sqlite")

    def open(self, *, create: bool = False) -> Study:
        """Open the study.

        Raises:
            InputError: It does not respond, the database's driver is not installed, or there is no such study.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            return Study(patiently(lambda: self._open(create=create)), is_shared=self.is_shared)
        except KeyError as error:
            raise InputError(f"study {self.name}: not begun; start the tune stage first, on the same inputs") from error
        except ImportError as error:
            raise InputError(f"tune.storage: {error}; install moe-beyond[postgresql]") from error
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise InputError(f"tune.storage: {reason_of(error.__cause__ or error)}; correct its address") from error

    def _open(self, *, create: bool) -> optuna.Study:
        # a connection that a restart of the server broke is replaced
        shared: dict[str, Any] = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}
        # by default SQLite reads without a lock, and two workers would claim the same trial
        local: dict[str, Any] = {"connect_args": {"timeout": BUSY_S, "isolation_level": None}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = _Storage(
                # Optuna takes the address for a format string
                self.url.replace("{", "{{").replace("}", "}}"),
                shared if self.is_shared else local,
                heartbeat_interval=max(1, self.grace_s // 10),
                grace_period=self.grace_s,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=MAX_DEATHS - 1),
            )
        if not self.is_shared:
            sqlalchemy.event.listen(storage.engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
        # every trial is enqueued: the sampler draws nothing
        sampler = RandomSampler()
        if create:
            return optuna.create_study(study_name=self.name, storage=storage, sampler=sampler, load_if_exists=True)
        return optuna.load_study(study_name=self.name, storage=storage, sampler=sampler)


def _is_readable(url: str) -> bool:
    """Whether a database's driver would look for the host that was meant: not for one with an end of a password."""
    try:
        host = sqlalchemy.make_url(url).host
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return False
    return "@" not in (host or "")


class Study:
    """A worker's or the search's own view of the study."""

    def __init__(self, study: optuna.Study, *, is_shared: bool) -> None:
        self.study, self.is_shared = study, is_shared

    def enqueue(self, candidates: Iterable[Candidate], choices: dict[str, tuple[Any, ...]]) -> None:
        """Let each candidate wait that is neither tried nor under way.

        Args:
            candidates: All of the search, in their order.
            choices: The values that each name of a candidate may have.
        """
        distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(values) for name, values in choices.items()
        }

        def once() -> None:
            if not self.is_shared:
                # of a search that was killed; its workers ended with it
                for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                    self.study.tell(trial.number, state=TrialState.FAIL)
            trials = self.study.get_trials(deepcopy=False)
            known = {trial.user_attrs.get(_CANDIDATE) for trial in trials if _is_open(trial) or _is_tried(trial)}
            for index, candidate in enumerate(candidates):
                if index not in known:
                    self.study.add_trial(
                        create_trial(
                            state=TrialState.WAITING,
                            params=candidate,
                            distributions=distributions,
                            user_attrs={_CANDIDATE: index},
                        )
                    )

        patiently(once)

    def tried(self) -> dict[int, Outcome]:
        """Outcome of each candidate that was tried to its end, by its index."""
        trials = patiently(lambda: self.study.get_trials(deepcopy=False))
        return {
            trial.user_attrs[_CANDIDATE]: Outcome(
                **trial.user_attrs.get(_MEASURED, {"numbers": {}, "epochs": []}), reason=trial.user_attrs.get(_REASON)
            )
            for trial in trials
            if _is_tried(trial)
        }

    def work(self, measure: Callable[[int, Candidate], Outcome]) -> None:
        """Try candidates until none waits and none is under way elsewhere.

        Args:
            measure: Gets a candidate's index and the candidate; an exception ends the worker.
        """
        while patiently(self._is_any_open):
            trial = patiently(self._claim)
            if trial is None:
                time.sleep(WAIT_S)
                continue
            with get_heartbeat_thread(trial._trial_id, self.study._storage):
                measured = measure(trial.user_attrs[_CANDIDATE], trial.params)
                patiently(partial(self._tell, trial, measured))

    def _is_any_open(self) -> bool:
        return any(_is_open(trial) for trial in self.study.get_trials(deepcopy=False))

    def _claim(self) -> Trial | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # heartbeats are experimental, and meant for `study.optimize`
            fail_stale_trials(self.study)
            if not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                return None
            trial = self.study.ask()
        if _CANDIDATE in trial.user_attrs:
            return trial
        # another worker was faster, and Optuna made a new trial
        self.study.tell(trial, state=TrialState.FAIL)
        return None

    def _tell(self, trial: Trial, measured: Outcome) -> None:
        # a worker without heartbeat counts as killed, and its candidate is tried again: with the same outcome
        with suppress(UpdateFinishedTrialError):
            if measured.reason is not None:
                trial.set_user_attr(_REASON, measured.reason)
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            else:
                trial.set_user_attr(_MEASURED, {"numbers": measured.numbers, "epochs": measured.epochs})
                self.study.tell(trial.number, measured.numbers["ms_per_token"], skip_if_finished=True)


def _is_open(trial: FrozenTrial) -> bool:
    return _CANDIDATE in trial.user_attrs and not trial.state.is_finished()


def _is_tried(trial: FrozenTrial) -> bool:
    """Whether a trial has an outcome: its candidate was measured, or cannot be fitted."""
    return trial.state == TrialState.COMPLETE or (trial.state == TrialState.FAIL and _REASON in trial.user_attrs)
