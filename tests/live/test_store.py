"""Records are read as they were packed, or refused."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from moe_beyond.live.packing import pack
from moe_beyond.live.store import ExpertStore, aligned_buffer
from tests.live.store_case import read_record, small_source
from tests.traces.refusals import refused


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    # three pages a record
    folder = tmp_path_factory.mktemp("store")
    pack(small_source(folder / "model", intermediate_size=28), folder / "store")
    return folder / "store"


@pytest.fixture
def folder(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "store")


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    ("start", "end", "shift"), [(0, 12288, 0), (4096, 8192, 0), (1, 4097, 0), (5, 5, 0), (0, 4096, 8)]
)
def test_any_part_of_a_record_is_read_and_no_byte_beside_it(packed, direct, start, end, shift):
    with ExpertStore.open(packed) as store:
        assert store.stride == 12288
        if not direct and store._direct is not None:
            store._direct = None
        buffer = aligned_buffer(store.stride + shift)[shift:]
        assert (buffer.data_ptr() - shift) % 4096 == 0
        buffer.fill_(255)
        store.read(9, memoryview(buffer.numpy()), start, end)
        whole = (packed / "experts.bin").read_bytes()[9 * 12288 : 10 * 12288]
        assert bytes(buffer.numpy()) == b"\xff" * start + whole[start:end] + b"\xff" * (12288 - end)


def test_threads_share_a_store(packed):
    with ExpertStore.open(packed) as store, ThreadPoolExecutor(8) as threads:
        records = list(threads.map(lambda expert: read_record(store, expert % 24), range(240)))
        assert bytes(torch.cat(records[:24]).numpy()) == (packed / "experts.bin").read_bytes()


def test_reads_outside_the_store_are_errors_of_the_program(packed):
    with ExpertStore.open(packed) as store:
        buffer = memoryview(bytearray(store.stride))
        for expert, start, end in [(24, 0, 1), (-1, 0, 1), (0, -1, 1), (0, 0, store.stride + 1)]:
            with pytest.raises(ValueError, match="outside the store or buffer"):
                store.read(expert, buffer, start, end)
        with pytest.raises(ValueError, match="outside the store or buffer"):
            store.read(0, buffer[:100], 0, 101)


def test_another_revision_is_refused(packed):
    with ExpertStore.open(packed) as store:
        revision = store.revision
    ExpertStore.open(packed, revision=revision).close()
    refused(
        f"store: holds the experts of .* at revision {revision}, not 0123", ExpertStore.open, packed, revision="0123"
    )


def test_a_flipped_byte_is_found_in_the_record_that_has_it(folder):
    data = bytearray((folder / "experts.bin").read_bytes())
    data[13 * 12288 + 700] ^= 1
    (folder / "experts.bin").write_bytes(data)
    with ExpertStore.open(folder) as store:
        read_record(store, 12)
        refused(r"experts\.bin: layer 1, expert 5 was changed or damaged since it was packed", read_record, store, 13)


def test_a_file_that_grows_shorter_while_it_is_open_is_named(folder):
    with ExpertStore.open(folder) as store, (folder / "experts.bin").open("r+b") as file:
        file.truncate(13 * 12288 + 5000)
        refused(r"experts\.bin: layer 1, expert 5 ends early", read_record, store, 13)


def manifest_changed(folder, old, new):
    text = (folder / "manifest.json").read_text()
    assert old in text
    (folder / "manifest.json").write_text(text.replace(old, new, 1))


DAMAGE = {
    "no folder": (shutil.rmtree, "holds no manifest.json, so no whole expert store"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "holds no manifest.json"),
    "half a manifest": (lambda folder: manifest_changed(folder, '"digests"', ""), "manifest.json: Invalid JSON"),
    "another version": (lambda folder: manifest_changed(folder, '"format": 1', '"format": 2'), r"contents\.format"),
    "no dtype": (lambda folder: manifest_changed(folder, '"float32"', '"float33"'), "'float33' is no dtype"),
    "tampered": (lambda folder: manifest_changed(folder, '"num_experts": 8', '"num_experts": 4'), "changed or damaged"),
    "no records": (lambda folder: (folder / "experts.bin").unlink(), r"experts\.bin: 0 bytes, but manifest\.json says"),
    "short": (lambda folder: (folder / "experts.bin").write_bytes(b"1"), r"experts\.bin: 1 bytes, but"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_store_that_is_not_whole_is_refused(folder, damage):
    harm, message = DAMAGE[damage]
    harm(folder)
    refused(message, ExpertStore.open, folder)
