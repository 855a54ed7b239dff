import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from scripts.servers import CannotStartError, Servers


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def servers():
    """PostgreSQL and MLflow on loopback; skips, with the reason, where they cannot start."""
    # not pytest's folder: that is closed to the user that PostgreSQL runs as
    folder = Path(tempfile.mkdtemp(prefix="moe-beyond-servers-"))
    folder.chmod(0o755)
    servers = Servers(folder, free_port(), free_port())
    try:
        servers.start()
    except CannotStartError as error:
        pytest.skip(f"the servers cannot start here: {error}")
    yield servers
    servers.stop()
    shutil.rmtree(folder)
