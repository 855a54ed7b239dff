import json
import os
import socket
import subprocess
import sys

import pytest

from moe_beyond.files import replacing, write_json


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "out.txt"
    with replacing(target) as temporary:
        temporary.write_text("first")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("second")
        raise RuntimeError
    assert target.read_text() == "first"
    assert [path.name for path in target.parent.iterdir()] == ["out.txt"]


def test_a_directory_is_replaced_whole(tmp_path):
    target = tmp_path / "out"
    for content in ("old", "new"):
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["new"]
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.mkdir()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_json_refuses_what_is_not_a_number(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1.5}


@pytest.fixture
def dead():
    """Host and number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return f"{socket.gethostname()}.{process.pid}"


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path, dead):
    alive, elsewhere = f".out.{socket.gethostname()}.{os.getppid()}.tmp", f".out.other-{dead}.tmp"
    for name in (f".out.{dead}.tmp", alive, elsewhere):
        (tmp_path / name).mkdir()
    with replacing(tmp_path / "out") as temporary:
        temporary.write_text("x")
    assert {path.name for path in tmp_path.iterdir()} == {"out", alive, elsewhere}


def test_a_directory_that_a_killed_process_moved_aside_comes_back(tmp_path, dead):
    (tmp_path / f".out.{dead}.old/kept").mkdir(parents=True)
    with pytest.raises(RuntimeError), replacing(tmp_path / "out"):
        raise RuntimeError
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]
