import bz2
import gzip
import io
import lzma
import os
import signal
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.sources import members, name_of, natural_order
from moe_beyond.limits import limited
from tests.cli.started import started
from tests.formats.cases import write
from tests.traces.refusals import refused

FILES = {"set/a.csv": b"1" * 300, "set/deep/é.csv": b"2" * 300, "set/notes.txt": b"no"}
TARS = ["tar", "tar.xz", "tar.gz", "tar.bz2"]


def packed(kind, files):
    """The bytes of an archive, or of one compressed file."""
    if kind == "csv.gz":
        return gzip.compress(next(iter(files.values())))
    buffer = io.BytesIO()
    is_zip = kind == "zip"
    with zipfile.ZipFile(buffer, "w") if is_zip else tarfile.open(fileobj=buffer, mode=f"w:{kind[4:]}") as archive:
        for name, data in files.items():
            if is_zip:
                archive.writestr(name, data, zipfile.ZIP_DEFLATED)
            else:
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def read(source, content=None):
    if content is not None:
        source.write_bytes(content)
    return {name: stream.read() for name, stream in members(source, ".csv")}


@pytest.mark.parametrize("kind", [*TARS, "zip"])
def test_archive_and_folder_give_the_same_files(tmp_path, kind):
    expected = {name: data for name, data in FILES.items() if name.endswith(".csv")}
    assert read(tmp_path / f"x.{kind}", packed(kind, FILES)) == read(write(tmp_path / "folder", FILES)) == expected
    assert read(tmp_path / "b.csv.gz", packed("csv.gz", FILES)) == {"b.csv.gz": FILES["set/a.csv"]}


@pytest.mark.parametrize("name", ["../evil.csv", "/etc/evil.csv", "a/../../evil.csv", "..\\evil.csv"])
def test_a_name_that_leaves_the_archive_is_refused(tmp_path, name):
    for kind in ("tar.xz", "zip"):
        refused("leads out of the archive", read, tmp_path / f"x.{kind}", packed(kind, {name: b"1"}))


def test_a_link_in_an_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("a.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    refused("link or device", read, tmp_path / "x.tar")


def test_empty_file_empty_folder_and_missing_source_are_named(tmp_path):
    write(tmp_path, {"empty.csv": b"", "nothing/notes.txt": b""})
    refused(r"empty\.csv: the file is empty \(0 bytes\)", read, tmp_path)
    refused(r"holds no file named \*\.csv", read, tmp_path / "nothing")
    refused("no such file or folder", read, tmp_path / "absent")


@pytest.mark.parametrize("kind", ["tar.xz", "tar.gz", "zip", "csv.gz"])
def test_a_truncated_archive_is_one_clear_error(tmp_path, kind):
    content = packed(kind, {"a.csv": np.random.default_rng(0).bytes(50_000)})
    for end in (20_000, 3):
        refused("damaged or cut short", read, tmp_path / f"x.{kind}", content[:end])


@pytest.mark.parametrize("flags", [1, 32])
def test_encrypted_and_patched_zips_are_input_errors(tmp_path, flags):
    content = bytearray(packed("zip", FILES))
    content[6] = content[content.index(b"PK\x01\x02") + 8] = flags
    refused("damaged or cut short", read, tmp_path / "x.zip", bytes(content))


def test_names_lose_their_endings_and_numbers_sort_as_numbers():
    names = [name_of(Path(name)) for name in ("a/puffin.tar.xz", "b/webglm", "c/qwen.route.csv.gz")]
    assert names == ["puffin", "webglm", "qwen"]
    assert sorted(["p_10.csv", "p_2.csv", "a.csv"], key=natural_order) == ["a.csv", "p_2.csv", "p_10.csv"]


@settings(max_examples=300)
@given(
    kind=st.sampled_from([*TARS, "zip", "csv.gz"]),
    flips=st.lists(st.tuples(st.integers(-300, 12_000), st.integers(0, 255)), max_size=5),
    cut=st.none() | st.integers(1, 600),
)
def test_any_damage_to_an_archive_is_read_or_an_input_error(tmp_path_factory, kind, flips, cut):
    content = bytearray(packed(kind, FILES))
    for place, value in flips:
        content[place % len(content)] = value
    try:
        read(tmp_path_factory.getbasetemp() / f"damaged.{kind}", bytes(content[:cut]))
    except InputError as error:
        assert len(str(error).splitlines()) == 1


def test_a_tar_that_unpacks_without_end_is_refused_soon(tmp_path):
    """What is skipped is unpacked, too."""
    zeros = lzma.compress(bytes(16 << 20))
    entry = tarfile.TarInfo("skipped.bin")
    entry.size = 16 << 40
    begins = time.monotonic()
    for ending, data in (
        ("tar.xz", lzma.compress(entry.tobuf()) + zeros * 40),
        ("tar.gz", gzip.compress(entry.tobuf()) + gzip.compress(bytes(16 << 20)) * 40),
        ("tar.bz2", bz2.compress(entry.tobuf()) + bz2.compress(bytes(16 << 20)) * 40),
    ):
        with limited(ratio=100):
            refused("bytes unpack to more than", read, tmp_path / f"x.{ending}", data)
        with limited(total_bytes=20 << 20, ratio=10**6):
            refused("unpacks to more than 20 MiB", read, tmp_path / f"x.{ending}")
    assert time.monotonic() - begins < 30


@pytest.mark.parametrize("kind", ["tar.xz", "zip", "csv.gz"])
def test_a_file_that_unpacks_to_much_is_refused(tmp_path, kind):
    data = packed(kind, {"a.csv": bytes(20 << 20)})
    with limited(ratio=100):
        refused("unpack to more than", read, tmp_path / f"x.{kind}", data)
    with limited(file_bytes=1 << 20):
        refused("more than 1 MiB in one file", read, tmp_path / f"x.{kind}", data)


def test_unpacking_is_linear(tmp_path):
    """tarfile's own unpacking copies the rest of a piece, megabytes of zeros, for every 512 bytes."""
    data = packed("tar.xz", {f"{n}.csv": bytes(1000) for n in range(20_000)})
    begins = time.monotonic()
    with limited(ratio=10**6):
        assert len(read(tmp_path / "x.tar.xz", data)) == 20_000
    assert time.monotonic() - begins < 30
    with limited(members=1000):
        refused("more than 1000 files", read, tmp_path / "x.tar.xz")


def test_a_header_of_a_tar_is_not_read_whole_however_long(tmp_path):
    entry = tarfile.TarInfo("long")
    entry.type, entry.size = tarfile.XHDTYPE, 2**33
    refused("damaged or cut short", read, tmp_path / "x.tar", entry.tobuf() + bytes(2**16))


@pytest.mark.parametrize(
    "names", [("a_1.csv", "a_01.csv"), ("a.csv", "a.csv.gz"), ("x/007.csv", "x/7.csv"), ("1/a.csv", "01/a.csv")]
)
def test_names_that_differ_in_zeros_or_packing_alone_are_refused(tmp_path, names):
    files = {name: gzip.compress(b"1") if name.endswith("gz") else b"1" for name in names}
    refused("has the same name but for zeros or packing", read, write(tmp_path / "folder", files))
    refused("has the same name but for zeros or packing", read, tmp_path / "x.tar.xz", packed("tar.xz", files))
    assert len(read(write(tmp_path / "other", {"a_10.csv": b"1", "a_1.csv": b"1", "b_1.csv": b"1"}))) == 3


@pytest.mark.parametrize("again", ["a.csv", "./a.csv"])
def test_a_member_that_stands_twice_is_refused(tmp_path, again):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("a.csv", again):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"1"))
    refused("twice|same name", read, tmp_path / "x.tar")


def test_links_out_of_a_folder_and_what_is_no_plain_file_are_refused(tmp_path):
    write(tmp_path, {"outside.csv": b"1", "folder/a.csv": b"1"})
    link = tmp_path / "folder/b.csv"
    link.symlink_to("a.csv")
    assert len(read(tmp_path / "folder")) == 2
    for target in (tmp_path / "outside.csv", "/dev/zero", "/etc/passwd"):
        link.unlink()
        link.symlink_to(target)
        refused("a link that leads out of the folder", read, tmp_path / "folder")
    link.unlink()
    link.symlink_to("nothing.csv")
    refused("a broken link, pipe", read, tmp_path / "folder")
    link.unlink()
    os.mkfifo(link)
    refused("pipe, socket or device", read, tmp_path / "folder")
    refused("pipe, socket or device", read, link)


def test_a_name_of_thousands_of_digits_is_sorted():
    assert sorted(["9" * 5000, "10", "010", "9"], key=natural_order) == ["9", "10", "010", "9" * 5000]


@pytest.mark.slow  # it is about seconds
def test_an_interrupt_ends_an_import_at_once(tmp_path):
    with (tmp_path / "x.csv").open("wb") as file:
        file.write(b"Layer ID,Batch Number,Token,Activated Expert IDs\n")
        file.write(b'1,0,a,"[1, 2, 3, 4, 5, 6]"\n' * 9_000_000)
    words = ["import", "moe-beyond-csv", tmp_path / "x.csv", tmp_path / "out.parquet"]
    process = started(*words)
    time.sleep(5)
    assert process.poll() is None
    begins = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - begins < 6  # of which most is a busy machine
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not (tmp_path / "out.parquet").exists()
