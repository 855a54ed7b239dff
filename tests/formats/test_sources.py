import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.sources import members, name_of, natural_order
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
