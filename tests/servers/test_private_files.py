"""Files with passwords are their owner's alone, also where one that others could read stood before."""

import os

from scripts.servers import _write_private


def test_a_private_file_is_its_owners_alone(tmp_path):
    path = tmp_path / "environment"
    before = os.umask(0)
    try:
        for _ in range(2):
            _write_private(path, "a password")
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.read_text() == "a password"
            path.chmod(0o666)
    finally:
        os.umask(before)
