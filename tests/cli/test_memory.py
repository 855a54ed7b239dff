"""What commands on traces take of the memory does not grow with the trace."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from moe_beyond.traces import columns, store
from tests.traces.random_traces import trace_of

_LAYERS, _EXPERTS, _TOP_K = 16, 64, 4
_COMMAND = "from moe_beyond.cli import main; main()"


def routing(num_tokens):
    """Distinct experts, a little local: the first few of a slow walk round the experts."""
    draw = np.random.default_rng(0)
    start_TL = np.cumsum(draw.integers(0, 3, (num_tokens, _LAYERS)), axis=0)
    step_TL1 = draw.integers(1, 8, (num_tokens, _LAYERS, 1))
    return ((start_TL[..., None] + step_TL1 * np.arange(_TOP_K)) % _EXPERTS).astype(np.uint8)


def peak_mib(*words):
    """Peak resident MiB of a command with little memory for traces."""
    environment = os.environ | {columns.VARIABLE: "8"}
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        told = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = status
    assert status == 0, told.decode()
    return used.ru_maxrss / 2**10


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """Parquet files of 1 and 4 times 3 million expert choices."""
    folder = tmp_path_factory.mktemp("sizes")
    paths = []
    for times in (1, 4):
        lengths = [375] * (times * 125)
        paths.append(folder / f"{times}.parquet")
        store.write_parquet(trace_of(routing(sum(lengths)), lengths, _EXPERTS), paths[-1])
    return paths


def test_an_import_of_four_times_the_tokens_takes_no_more_memory(tmp_path):
    shape = {"num_hidden_layers": _LAYERS, "num_experts": _EXPERTS, "num_experts_per_tok": _TOP_K}
    config = shape | {
        "model_type": "qwen3_moe",
        "hidden_size": 8,
        "moe_intermediate_size": 8,
        "torch_dtype": "bfloat16",
    }
    peaks = []
    for times in (1, 4):
        source = tmp_path / str(times)
        source.mkdir()
        (source / "config.json").write_text(json.dumps(config))
        for number, experts_TLK in enumerate(np.split(routing(375 * 125 * times), 25 * times)):
            np.savez(source / f"{number}.npz", routed_experts=experts_TLK, prompt_routed_experts=experts_TLK[:1])
        # the least of two: on a busy machine what libraries take at their loading varies by more than the difference
        words = ("import", "vllm-npz", str(source), str(tmp_path / f"{times}.parquet"))
        peaks.append(min(peak_mib(*words) for _ in range(2)))
    assert peaks[1] < peaks[0] + 20


@pytest.mark.parametrize(
    "words", [["replay", "--policy", "lru", "--capacity", "100"], ["replay", "--policy", "belady", "--capacity", "100"]]
)
def test_a_replay_of_four_times_the_tokens_takes_no_more_memory(traces, words):
    command, *options = words
    once, fourfold = (peak_mib(command, str(path), *options) for path in traces)
    # the events of the difference alone would take 9 million times 4 bytes for their members, and more for the rest
    assert fourfold < once + 20
