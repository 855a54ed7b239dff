"""Packed experts are those of the model, whatever happens while they are packed."""

import multiprocessing
import resource
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moe_beyond.live.dense_model import fused_layers
from moe_beyond.live.packing import pack, pack_model
from moe_beyond.live.store import ExpertStore
from tests.capture.tiny_models import tiny_model
from tests.live.store_case import ARCHITECTURES, file_bytes, pack_slowly, read_record, small_source
from tests.traces.refusals import refused


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small_source(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "whole"
    pack(source, folder)
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_record_holds_the_parameters_that_from_pretrained_loads(architecture, tmp_path):
    source, told = small_source(tmp_path / "model", architecture), []
    pack(source, tmp_path / "store", progress=lambda *counts: told.append(counts))
    model = AutoModelForCausalLM.from_pretrained(source.location)
    layers = fused_layers(model)
    with ExpertStore.open(tmp_path / "store") as store:
        assert store.layer_numbers == tuple(layer.number for layer in layers)
        assert store.num_model_experts == len(layers) * 8 == len(told)
        assert told[-1] == (store.num_model_experts, store.num_model_experts)
        assert store.stride % 4096 == 0 and store.record_bytes <= store.stride
        for expert in range(store.num_model_experts):
            record = read_record(store, expert)
            parameters = dict(layers[expert // 8].experts.named_parameters())
            assert list(store.views(record)) == list(parameters)
            for name, view in store.views(record).items():
                assert torch.equal(view, parameters[name][expert % 8]), name
                assert view.data_ptr() % 64 == 0
            assert not record[store.record_bytes :].any()
    # a model in memory gives the same bytes
    pack_model(model, tmp_path / "second", model_id=source.location, revision=store.revision)
    assert file_bytes(tmp_path / "second") == file_bytes(tmp_path / "store")


def test_packing_killed_at_any_moment_ends_with_the_same_bytes(source, packed, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.live.store_case"])
    folder, rng = tmp_path / "store", np.random.default_rng(4)
    partly = []  # for each time it was killed, whether experts were written
    while len(partly) < 20:
        written = context.Value("i", 0, lock=False)
        process = context.Process(target=pack_slowly, args=(source, folder, written))
        process.start()
        # each second time not before some experts are written; else it may be killed while it starts
        least = rng.integers(1, 16) if len(partly) % 2 else 0
        while written.value < least and process.is_alive():
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        process.join()
        if folder.exists():
            assert file_bytes(folder) == file_bytes(packed)
            shutil.rmtree(folder)
        else:
            records = tmp_path / ".store.packing" / "store" / "experts.bin"
            partly.append(records.exists() and records.stat().st_size > 0)
    assert sum(partly) >= 10
    pack(source, folder)
    assert file_bytes(folder) == file_bytes(packed)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


class StoppedError(Exception):
    pass


def stop_after(experts):
    def progress(done, _total):
        if done == experts:
            raise StoppedError

    return progress


def test_what_a_killed_process_left_is_continued_only_if_it_is_whole_and_of_this_model(source, packed, tmp_path):
    folder, told = tmp_path / "store", []

    def interrupt(of=source):
        with pytest.raises(StoppedError):
            pack(of, folder, progress=stop_after(11))
        return tmp_path / ".store.packing" / "store" / "experts.bin"

    interrupt()
    pack(source, folder, progress=lambda done, _total: told.append(done))
    assert told[0] == 12
    assert file_bytes(folder) == file_bytes(packed)
    shutil.rmtree(folder)
    # damaged in the middle of the sixth record
    records = interrupt()
    data = bytearray(records.read_bytes())
    data[len(data) * 11 // 22] ^= 1
    records.write_bytes(data)
    told.clear()
    pack(source, folder, progress=lambda done, _total: told.append(done))
    assert told[0] == 6
    assert file_bytes(folder) == file_bytes(packed)
    shutil.rmtree(folder)
    interrupt(replace(source, dtype="float16"))
    pack(source, folder)
    assert file_bytes(folder) == file_bytes(packed)


def test_a_store_of_the_same_experts_is_kept_and_nothing_else_is_touched(source, packed, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in packed.iterdir()}
    pack(source, packed)
    assert {path: path.stat().st_mtime_ns for path in packed.iterdir()} == before
    other = small_source(tmp_path / "other", hidden_size=64)
    refused(r"holds the experts of .* \(revision \w+, float32\), not of .*other \(revision", pack, other, packed)
    refused("float32.*not of .*bfloat16", pack, replace(source, dtype="bfloat16"), packed)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    refused("mine: holds other things than experts", pack, source, tmp_path / "mine")
    refused("letter.txt: holds other things", pack, source, tmp_path / "mine" / "letter.txt")
    assert {path: path.stat().st_mtime_ns for path in packed.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "other"]
    (tmp_path / "empty").mkdir()
    pack(source, tmp_path / "empty")
    assert file_bytes(tmp_path / "empty") == file_bytes(packed)


def test_two_processes_do_not_pack_into_one_folder(source, tmp_path):
    (tmp_path / ".store.packing").mkdir()
    with FileLock(tmp_path / ".store.packing" / "lock"):
        refused("another process is packing into it", pack, source, tmp_path / "store")
    pack(source, tmp_path / "store")


@contextmanager
def files_of_at_most(nbytes):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_told_in_one_line_and_packing_goes_on_later(source, packed, tmp_path, monkeypatch):
    folder = tmp_path / "store"
    with files_of_at_most(50_000):
        refused(r"store: no room for the experts; [\d,]+ bytes are still", pack, source, folder)
    assert not folder.exists()
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)
        patch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
        refused("and 1,000 are free", pack, source, folder)
    pack(source, folder)
    assert file_bytes(folder) == file_bytes(packed)


def test_a_folder_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").write_text("")
    refused("store: cannot be written", pack, source, tmp_path / "file" / "store")


def test_layers_of_unequal_experts_are_refused(tmp_path):
    model = tiny_model("mixtral")
    model.model.layers[1].mlp.experts.to(torch.bfloat16)
    message = r"an expert of layer 1 is gate_up_proj \[32, 32\] bfloat16, .*, but of layer 0 .* float32"
    refused(message, pack_model, model, tmp_path / "store", model_id="m", revision="r")


def drop_expert(tensors):
    for name in [name for name in tensors if "layers.1." in name and ".w2." in name]:
        del tensors[name]


def cut_expert(tensors):
    name = next(name for name in tensors if "layers.1." in name and ".experts.3.w2." in name)
    tensors[name] = tensors[name][:-1].contiguous()


@pytest.mark.parametrize(
    ("harm", "message"), [(drop_expert, "hold no {} that fits"), (cut_expert, "{} cannot be converted .*equal size")]
)
def test_files_without_an_expert_that_fits_are_refused(source, tmp_path, harm, message):
    shutil.copytree(source.location, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    harm(tensors)
    save_file(tensors, weights, metadata={"format": "pt"})
    broken = replace(source, location=str(tmp_path / "model"))
    refused(message.format(r"model\.layers\.1\.mlp\.experts\.down_proj"), pack, broken, tmp_path / "store")
    assert not (tmp_path / "store").exists()
