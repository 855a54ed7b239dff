import json
import os
import socket
import subprocess
import sys

import pytest

from moe_beyond.errors import InputError
from moe_beyond.files import begins_with, check_output, list_files, replacing, write_json
from tests.traces.refusals import refused


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


def test_a_file_never_takes_the_place_of_a_folder_nor_a_folder_that_of_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("dear")
    (tmp_path / "file").write_text("dear")
    with pytest.raises(InputError, match="folder: is a folder already"), replacing(tmp_path / "folder") as temporary:
        temporary.write_text("x")
    with pytest.raises(InputError, match="file: is a file already"), replacing(tmp_path / "file") as temporary:
        temporary.mkdir()
    assert (tmp_path / "folder" / "mine").read_text() == (tmp_path / "file").read_text() == "dear"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("output", ["in", "in/deep/out", ".", "link", "in/../in"])
def test_an_output_that_is_holds_or_lies_in_an_input_is_refused(output, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    refused("is, holds or lies in the input", check_output, tmp_path / output, inputs=[tmp_path / "in"])
    check_output(tmp_path / "input", inputs=[tmp_path / "in"])


def test_only_a_folder_with_just_what_was_written_there_is_replaced(tmp_path):
    folder = tmp_path / "out"
    check_output(folder)
    (folder / "deep").mkdir(parents=True)
    check_output(folder / "deep")
    (folder / "deep" / "a.txt").write_text("a")
    refused("out: holds deep/a.txt, which this command did not write", check_output, folder)
    list_files(folder)
    check_output(folder)
    for name, what in (("b.txt", "file"), ("deep/empty", "folder"), ("c", "link")):
        path = folder / name
        {"file": path.touch, "folder": path.mkdir, "link": lambda path=path: path.symlink_to("nowhere")}[what]()
        refused(f"out: holds {name}", check_output, folder)
        path.rmdir() if what == "folder" else path.unlink()
    check_output(folder)
    (tmp_path / "file").touch()
    refused("file: is a file, and a folder is to be written", check_output, tmp_path / "file")


def test_only_a_file_that_the_command_wrote_is_replaced(tmp_path):
    ours = begins_with(b"# written", b"by us")
    for content, kept in (
        (b"", True),
        (b"# written by us: x", True),
        (b"# written by me", False),
        (b"\x00\xff", False),
    ):
        (tmp_path / "a").write_bytes(content)
        if kept:
            check_output(tmp_path / "a", ours=ours)
        else:
            refused("a: was not written by this command", check_output, tmp_path / "a", ours=ours)
    refused("is a folder, and a file is to be written", check_output, tmp_path, ours=ours)


def test_a_device_or_a_pipe_is_never_replaced(tmp_path):
    """As root, `/dev/null` as an output made a file of it for every program of the machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        refused("is a device, a pipe or a socket; name a file", check_output, path, ours=begins_with())
        with pytest.raises(InputError, match="is a device, a pipe or a socket"), replacing(path) as temporary:
            temporary.touch()
    assert pipe.is_fifo()


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
