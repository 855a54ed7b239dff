"""MLflow's database in a file: whether it can be written, and whether its artifacts are looked for beside it.

MLflow keeps absolute addresses of artifacts. Those of a checkout that was moved or copied name the place where it was.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

log = logging.getLogger(__name__)

ARTIFACTS = "mlartifacts"
"""Folder beside the database that the artifacts of all experiments lie in."""
_SQLITE_FILE = "sqlite:///"
_BUSY_S = 5.0
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def uri_of(database: Path) -> str:
    """What MLflow calls a database; `?` would begin a query, and `%` is taken as the start of an escape."""
    return _SQLITE_FILE + str(database).replace("%", "%25").replace("?", "%3F")


def local_database(uri: str) -> Path | None:
    """The file of a local database; None where the URI names something else."""
    path = uri.removeprefix(_SQLITE_FILE)
    return Path(unquote(path)) if uri.startswith(_SQLITE_FILE) and not path.startswith(("file:", ":memory:")) else None


def artifacts_beside(database: Path) -> Path:
    """The folder of a database's artifacts."""
    return database.resolve().parent / ARTIFACTS


def require_writable(database: Path) -> None:
    """Fail at once where nothing can be logged: mlflow itself would try for minutes.

    Raises:
        OSError: It is locked, damaged or read-only, or the folder of artifacts cannot be made.
    """
    try:
        with closing(sqlite3.connect(database, timeout=_BUSY_S)) as opened:
            opened.execute("BEGIN IMMEDIATE")
            opened.rollback()
    except sqlite3.Error as error:
        raise OSError(f"{database}: {error}") from error
    artifacts_beside(database).mkdir(exist_ok=True)


def bring_artifacts_home(database: Path) -> None:
    """Let every address in the database name the folder beside it, where it names that of another checkout.

    Only addresses below a folder of this name are ours to change. A line says from where to where.

    Args:
        database: Of the schema of this release of mlflow.

    Raises:
        sqlite3.Error: The database cannot be written.
    """
    here = artifacts_beside(database)
    with closing(sqlite3.connect(database, timeout=_BUSY_S)) as opened, opened:
        found = opened.execute(
            "SELECT DISTINCT artifact_location FROM experiments "
            "WHERE artifact_location LIKE ? AND artifact_location != ?",
            (f"file:%/{ARTIFACTS}", here.as_uri()),
        )
        for (former,) in found.fetchall():
            for table, column in _ADDRESSES:
                opened.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - names from above
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (here.as_uri(), len(former) + 1, former, len(former) + 1, f"{former}/"),
                )
            log.warning("%s was moved or copied: its artifacts are now those in %s, not in %s", database, here, former)
