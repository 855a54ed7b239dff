from __future__ import annotations

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
from moe_beyond.formats.sources import members, name_of, natural_order


def _tar(path: Path, members_: dict[str, bytes], mode: str = "w:xz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members_.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def _read(source: Path) -> dict[str, bytes]:
    return {name: stream.read() for name, stream in members(source, ".csv")}


@pytest.mark.parametrize("ending", ["tar", "tar.xz", "tar.gz", "tar.bz2"])
def test_archive_and_folder_give_the_same_files(tmp_path: Path, ending: str) -> None:
    files = {"set/a.csv": b"1", "set/deep/b.csv": b"2", "set/notes.txt": b"no"}
    mode = {"tar": "w", "tar.xz": "w:xz", "tar.gz": "w:gz", "tar.bz2": "w:bz2"}[ending]
    archive = _tar(tmp_path / f"x.{ending}", files, mode)
    folder = tmp_path / "folder"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert _read(archive) == _read(folder) == {"set/a.csv": b"1", "set/deep/b.csv": b"2"}


def test_zip_and_single_gz_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.csv", "1")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"2"))
    assert _read(tmp_path / "x.zip") == {"a.csv": b"1"}
    assert _read(tmp_path / "b.csv.gz") == {"b.csv.gz": b"2"}


@pytest.mark.parametrize("name", ["../evil.csv", "/etc/evil.csv", "a/../../evil.csv", "..\\evil.csv"])
def test_a_name_that_leaves_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="leads out of the archive"):
        _read(_tar(tmp_path / "x.tar.xz", {name: b"1"}))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(name, "1")
    with pytest.raises(InputError, match="leads out of the archive"):
        _read(tmp_path / "x.zip")


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("a.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(InputError, match="link or device"):
        _read(tmp_path / "x.tar")


def test_empty_file_empty_folder_and_missing_source_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    with pytest.raises(InputError, match=r"empty\.csv: the file is empty \(0 bytes\)"):
        _read(tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"holds no file named \*\.csv"):
        _read(tmp_path / "nothing")
    with pytest.raises(InputError, match="no such file or folder"):
        _read(tmp_path / "absent")


@pytest.mark.parametrize("ending", ["tar.xz", "tar.gz", "zip", "csv.gz"])
def test_a_truncated_archive_is_one_clear_error(tmp_path: Path, ending: str) -> None:
    content = np.random.default_rng(0).bytes(50_000)
    path = tmp_path / f"x.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.csv", content)
    elif ending == "csv.gz":
        path.write_bytes(gzip.compress(content))
    else:
        _tar(path, {"a.csv": content}, f"w:{ending[4:]}")
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(InputError, match="damaged or cut short"):
        _read(path)


def test_names_lose_their_endings_and_numbers_sort_as_numbers() -> None:
    assert [name_of(Path(name)) for name in ("a/puffin.tar.xz", "b/webglm", "c/qwen.route.csv.gz")] == [
        "puffin",
        "webglm",
        "qwen",
    ]
    assert sorted(["p_10.csv", "p_2.csv", "a.csv"], key=natural_order) == ["a.csv", "p_2.csv", "p_10.csv"]


def _bytes_of(kind: str) -> bytes:
    files = {"a/x.csv": b"q," * 150, "a/é.csv": b"r," * 150}
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif kind == "csv.gz":
        return gzip.compress(b"q," * 300)
    else:
        with tarfile.open(fileobj=buffer, mode=f"w:{kind[4:]}") as archive_tar:  # type: ignore[call-overload]
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive_tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@settings(max_examples=300)
@given(
    kind=st.sampled_from(["tar", "tar.xz", "tar.gz", "tar.bz2", "zip", "csv.gz"]),
    flips=st.lists(st.tuples(st.integers(-300, 12_000), st.integers(0, 255)), max_size=5),
    cut=st.none() | st.integers(1, 600),
)
def test_any_damage_to_an_archive_is_read_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, flips: list[tuple[int, int]], cut: int | None
) -> None:
    content = bytearray(_bytes_of(kind))
    for place, value in flips:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(bytes(content[:cut]))
    try:
        for _, stream in members(path, ".csv"):
            stream.read()
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("flags", [1, 32])
def test_encrypted_and_patched_zips_are_input_errors(tmp_path: Path, flags: int) -> None:
    content = bytearray(_bytes_of("zip"))
    content[6] = content[content.index(b"PK\x01\x02") + 8] = flags
    (tmp_path / "x.zip").write_bytes(bytes(content))
    with pytest.raises(InputError, match="damaged or cut short"):
        _read(tmp_path / "x.zip")


def test_a_gzip_that_ends_in_its_header_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(_bytes_of("tar.gz")[:3])
    with pytest.raises(InputError, match="damaged or cut short"):
        _read(tmp_path / "x.tar.gz")
