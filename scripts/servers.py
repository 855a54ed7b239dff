"""A team's servers on one machine, for trying and testing: PostgreSQL, and an MLflow server that keeps artifacts.

    python scripts/servers.py start      # make servers
    . build/servers/environment          # MLFLOW_TRACKING_URI, OPTUNA_STORAGE, DVC_HTTP_REMOTE
    python scripts/servers.py stop       # make servers-stop

All of it listens on loopback alone and lies in one folder: databases, artifacts, logs, a password drawn at the first
start. PostgreSQL comes from the system (Debian: `apt install postgresql`), MLflow from this environment. MLflow's
artifact routes take and give files by PUT and GET, which is all that DVC needs of an HTTP remote.

PostgreSQL refuses to run as root: root starts it as the system's user `postgres`.
"""

from __future__ import annotations

import argparse
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import psutil

ROOT = Path(__file__).resolve().parents[1]
OURS = "MOE_BEYOND_SERVERS"
"""Environment variable of MLflow's processes with the folder that they serve: the number in a file may be another's."""
USER = "moe_beyond"
DATABASES = ("mlflow", "optuna")
START_S = 300.0


class CannotStartError(RuntimeError):
    """Something that the servers need is not there; the message names it and the fix."""


@dataclass(frozen=True)
class Servers:
    """Both servers, by the folder that they live in.

    Attributes:
        folder: Everything of theirs.
        postgres_port: On loopback.
        mlflow_port: On loopback.
    """

    folder: Path
    postgres_port: int = 5442
    mlflow_port: int = 5000

    @property
    def mlflow_uri(self) -> str:
        """Of the MLflow server."""
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def dvc_remote(self) -> str:
        """Address of a DVC remote; needs `method: PUT`."""
        return f"{self.mlflow_uri}/api/2.0/mlflow-artifacts/artifacts/dvc"

    def database(self, name: str) -> str:
        """Address of a database, with its password."""
        password = (self.folder / "password").read_text(encoding="utf-8")
        return f"postgresql+psycopg2://{USER}:{password}@127.0.0.1:{self.postgres_port}/{name}"

    def start(self) -> None:
        """Start what does not run yet; make the databases where they are new.

        Raises:
            CannotStartError: PostgreSQL is not installed, or a port is taken, or a server ends at once.
        """
        self.start_postgres()
        self.start_mlflow()
        _write_private(
            self.folder / "environment",
            f"export MLFLOW_TRACKING_URI={self.mlflow_uri}\n"
            f"export OPTUNA_STORAGE={self.database('optuna')}\n"
            f"export DVC_HTTP_REMOTE={self.dvc_remote}\n",
        )

    def start_postgres(self) -> None:
        """Start PostgreSQL alone, and make what is not there yet."""
        data = self.folder / "postgres"
        if not (data / "PG_VERSION").exists():
            self._init(data)
        if self._postmaster() is None or not _listens(self.postgres_port):
            _require_free(self.postgres_port, "--postgres-port")
            # pg_ctl gives all of this to a shell: no path may be in it, not even that of a socket, which is not needed
            options = f"-p {self.postgres_port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
            command = ("pg_ctl", "-D", ".", "-w", "-t", "60", "-l", "server.log", "-o", options, "start")
            # after a crash it refuses until the last of its former processes has ended
            deadline = time.monotonic() + (60.0 if (data / "postmaster.pid").exists() else 0.0)
            while not self._started(command, deadline):
                time.sleep(1.0)
        self._make_databases()

    def _started(self, command: tuple[str, ...], deadline: float) -> bool:
        try:
            self._postgres(*command)
        except CannotStartError:
            if time.monotonic() > deadline:
                raise
            return False
        return True

    def start_mlflow(self) -> None:
        """Start MLflow's server alone; its tables are made before, once, as its workers would each try to."""
        if self._mlflow() and _listens(self.mlflow_port):
            return
        _require_free(self.mlflow_port, "--mlflow-port or make PORT")
        # in the environment: a command line is everybody's to read
        environment = os.environ | {
            "MLFLOW_BACKEND_STORE_URI": self.database("mlflow"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            OURS: str(self.folder),
            # no jobs are sent to it here, and their eight processes take two gigabytes
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        made = "import os, mlflow.store.db.utils as u; e = u.create_sqlalchemy_engine_with_retry"
        made += "(os.environ['MLFLOW_BACKEND_STORE_URI']); u._safe_initialize_tables(e)"
        _run([sys.executable, "-c", made], environment)
        artifacts = self.folder / "artifacts"
        artifacts.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.mlflow_port)]
        # one process: a parent would end workers that a busy machine keeps from responding within five seconds
        command += ["--workers", "1", "--serve-artifacts", "--artifacts-destination", artifacts.as_uri()]
        path = self.folder / "mlflow.log"
        path.touch()
        path.chmod(0o600)
        with path.open("a") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self._wait_for_mlflow(process)

    def stop(self) -> None:
        """Stop both; their data stays. Whatever else has their ports or former process numbers is left alone."""
        self._end_mlflow(signal.SIGTERM, grace_s=10.0)
        if self._postmaster() is not None:
            self._postgres("pg_ctl", "-D", ".", "-w", "-m", "fast", "stop")

    def kill_mlflow(self) -> None:
        """End MLflow's server and its workers without a word, as a crash would."""
        self._end_mlflow(signal.SIGKILL, grace_s=0.0)

    def kill_postgres(self) -> None:
        """End PostgreSQL without a word; its children notice and follow."""
        postmaster = self._postmaster()
        if postmaster is not None:
            postmaster.kill()
        _wait(lambda: not _listens(self.postgres_port), "PostgreSQL to end")

    def _postmaster(self) -> psutil.Process | None:
        """PostgreSQL's first process, if it runs: the one of that number that works in our folder."""
        data = self.folder / "postgres"
        try:
            number = int((data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])
            process = psutil.Process(number)
            return process if Path(process.cwd()) == data else None
        except (FileNotFoundError, ValueError, IndexError, psutil.Error):
            return None

    def _mlflow(self) -> list[psutil.Process]:
        """The processes of MLflow's server that serve our folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(OURS) == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # it has ended, or is another user's
                continue
        return found

    def _end_mlflow(self, number: signal.Signals, grace_s: float) -> None:
        processes = self._mlflow()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        _, busy = psutil.wait_procs(processes, grace_s)
        for process in busy:  # in the middle of a response it may ignore anything else
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _wait(lambda: not self._mlflow(), "MLflow to end")

    def _wait_for_mlflow(self, process: subprocess.Popen[bytes]) -> None:
        def ready() -> bool:
            if process.poll() is not None:
                raise CannotStartError(f"mlflow ended with status {process.returncode}; see {self.folder}/mlflow.log")
            try:
                with urllib.request.urlopen(f"{self.mlflow_uri}/health", timeout=5) as response:  # noqa: S310 - loopback
                    return bool(response.status == 200)
            except (URLError, OSError):
                return False

        _wait(ready, f"MLflow's server on port {self.mlflow_port} (its log: {self.folder}/mlflow.log)")

    def _init(self, data: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        password = self.folder / "password"
        if not password.exists():
            _write_private(password, secrets.token_urlsafe(24))
        data.mkdir(mode=0o700, exist_ok=True)
        file = data.parent / "postgres-password"
        _write_private(file, password.read_text(encoding="utf-8"))
        if os.geteuid() == 0:
            for path in (data, file):
                shutil.chown(path, _postgres_user())
        try:
            self._postgres(
                "initdb", "-D", ".", "-U", USER, "--auth=scram-sha-256", f"--pwfile={file}", "--encoding=UTF8"
            )
        finally:
            file.unlink()

    def _make_databases(self) -> None:
        import psycopg2  # noqa: PLC0415 - of the extra `postgresql`

        connection = psycopg2.connect(self.database("postgres").replace("+psycopg2", ""))
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database")
            there = {row[0] for row in cursor.fetchall()}
            for name in DATABASES:
                if name not in there:
                    cursor.execute(f'CREATE DATABASE "{name}"')
        connection.close()

    def _postgres(self, program: str, *arguments: str) -> None:
        command = [str(_program(program)), *arguments]
        if os.geteuid() == 0:
            command = [
                "setpriv",
                f"--reuid={_postgres_user()}",
                f"--regid={_postgres_user()}",
                "--clear-groups",
                *command,
            ]
        # a server inherits what it is started with: files, not pipes, whose readers would wait for it
        _run(command, {**os.environ, "LC_ALL": "C"}, cwd=self.folder / "postgres")


def _write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone reads from the start, also where one that others could read stood before."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _program(name: str) -> Path:
    """A program of PostgreSQL: where Debian keeps it, the newest version, or on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which(name)
    if not found and on_path is None:
        raise CannotStartError(f"PostgreSQL's {name} is not installed; on Debian: apt install postgresql")
    return found[-1] if found else Path(str(on_path))


def _postgres_user() -> str:
    """The user that PostgreSQL runs as where root starts it."""
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError as error:
        raise CannotStartError("PostgreSQL does not run as root, and there is no user `postgres`; add it") from error


def _run(command: list[str], environment: dict[str, str], cwd: Path | None = None) -> None:
    done = subprocess.run(
        command, env=environment, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        reason = " ".join(done.stderr.decode(errors="replace").split())[-400:]
        raise CannotStartError(f"{Path(command[0]).name} ended with status {done.returncode}: {reason}")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _require_free(port: int, option: str) -> None:
    if _listens(port):
        raise CannotStartError(f"port {port} is taken by another program; give another one by {option}")


def _wait(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        if time.monotonic() > deadline:
            raise CannotStartError(f"waited {START_S:.0f} s for {what}")
        time.sleep(0.2)


def main() -> None:
    """Start or stop the servers of this checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "servers")
    parser.add_argument("--postgres-port", type=int, default=5442)
    parser.add_argument("--mlflow-port", type=int, default=5000)
    options = parser.parse_args()
    servers = Servers(options.folder.resolve(), options.postgres_port, options.mlflow_port)
    try:
        if options.action == "stop":
            servers.stop()
            return
        servers.start()
    except CannotStartError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"MLflow       {servers.mlflow_uri}")
    print(f"PostgreSQL   127.0.0.1:{servers.postgres_port}, user {USER}, password in {servers.folder}/password")
    print(f"for a shell  . {shlex.quote(str(servers.folder / 'environment'))}")


if __name__ == "__main__":
    main()
