"""Where a study lies, and how workers take turns: a journal file and a file lock, or PostgreSQL and its own lock.

PostgreSQL may go away for minutes: every call waits for it (`patiently`).
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from moe_beyond.errors import InputError
from moe_beyond.files import locked

log = logging.getLogger(__name__)
Result = TypeVar("Result")

URL_VARIABLE = "OPTUNA_STORAGE"
PATIENCE_S, PAUSE_S = 600.0, 2.0
AWAY = (StorageInternalError, sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
"""What Optuna raises when its database does not answer."""


def patiently(call: Callable[[], Result]) -> Result:
    """Call again while the storage is away, for ten minutes at most; the call must bear being repeated.

    Raises:
        InputError: The storage stayed away.
    """
    deadline, said = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            return call()
        except AWAY as error:
            reason = " ".join(str(error.__cause__ or error).split())[:160]
            if time.monotonic() > deadline:
                raise InputError(f"{URL_VARIABLE}: the study's storage does not answer ({reason}); start it") from error
            if not said:
                log.warning("the study's storage does not answer (%s); trying for %.0f s", reason, PATIENCE_S)
                said = True
            time.sleep(PAUSE_S)


@dataclass(frozen=True)
class StudyPlace:
    """A study's name and storage; can be sent to another process.

    Attributes:
        name: Of the study: the same data and parameters, the same name.
        url: PostgreSQL's address; None for a journal file in `folder`.
        folder: Of this study alone, on this machine.
    """

    name: str
    url: str | None
    folder: Path

    def open(self) -> BaseStorage:
        """The storage.

        Raises:
            InputError: It does not answer, or the database's driver is not installed.
        """
        if self.url is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(self.folder / "study.journal")))
        # a connection that a restart of the server broke is replaced
        engine_settings = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}
        url = self.url
        try:
            return patiently(lambda: RDBStorage(url, engine_kwargs=engine_settings, skip_compatibility_check=False))
        except ImportError as error:
            raise InputError(f"tune.storage: {error}; install moe-beyond[postgresql]") from error

    def study(self, storage: BaseStorage) -> optuna.Study:
        """The study, which is created where it is new: recall up, latency and bytes down."""
        return patiently(
            lambda: optuna.create_study(
                study_name=self.name,
                directions=["maximize", "minimize", "minimize"],
                storage=storage,
                load_if_exists=True,
            )
        )

    def turn(self, storage: BaseStorage) -> AbstractContextManager[None]:
        """The right to start a trial: one worker of all machines has it. Whoever is killed loses it at once."""
        return _database_turn(storage, self.name) if isinstance(storage, RDBStorage) else self._file_turn()

    @contextmanager
    def _file_turn(self) -> Iterator[None]:
        with locked(self.folder / "turn"):
            yield


def place_of(setting: str | None, name: str, folder: Path) -> StudyPlace:
    """The place that the environment or the parameter names.

    Args:
        setting: `tune.storage`.
        name: Of the study.
        folder: For a journal.

    Raises:
        InputError: An address that is not PostgreSQL's.
    """
    url = os.environ.get(URL_VARIABLE) or setting
    if url is not None:
        if not url.startswith("postgresql"):
            raise InputError(f"{URL_VARIABLE}: {url.split('@')[-1]!r} is no PostgreSQL address; correct or unset it")
        # the driver that this project installs, whatever SQLAlchemy takes for granted
        url = url.replace("postgresql://", "postgresql+psycopg2://", 1)
    return StudyPlace(name, url, folder)


@contextmanager
def _database_turn(storage: RDBStorage, name: str) -> Iterator[None]:
    key = zlib.crc32(name.encode())
    with storage.engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
        try:
            yield
        finally:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": key})
