"""Small models on disk, their stores, and processes that pack slowly."""

import time

import torch

from moe_beyond.capture.models import ModelSource
from moe_beyond.live.packing import pack
from moe_beyond.live.store import aligned_buffer
from tests.capture.capture_case import save_tiny_model

ARCHITECTURES = ("mixtral", "gpt_oss", "deepseek_v3", "jamba", "ernie4_5_moe", "qwen3_moe", "granitemoe")


def small_source(folder, architecture="mixtral", **config):
    return ModelSource(str(save_tiny_model(folder, architecture, **config)))


def read_record(store, expert):
    """The record's bytes as a tensor, checked."""
    buffer = aligned_buffer(store.stride)
    store.read(expert, memoryview(buffer.numpy()), 0, store.stride)
    store.check(expert, memoryview(buffer.numpy()))
    return buffer


def file_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pack_slowly(source, folder, written):
    """Pack; `written` is a shared number that counts the experts."""
    torch.set_num_threads(1)

    def progress(done, _total):
        written.value = done
        time.sleep(0.006)

    pack(source, folder, progress=progress)
