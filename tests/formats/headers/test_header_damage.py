"""Any damage to a header is sizes that it does say, or one line; never much memory, whatever it promises."""

import json
import struct
import tracemalloc

import numpy as np
import pytest
from gguf import GGUFReader

from moe_beyond.errors import InputError
from moe_beyond.formats.headers import read_sizes
from tests.formats.headers.gguf_files import write
from tests.formats.headers.test_safetensors_header import saved

_MOST_MEMORY = 200 * 2**20
_PROMISES = (0, 1, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
_VALUES: tuple[object, ...] = (
    None,
    -1,
    0,
    2**40,
    2**70,
    1.5,
    float("nan"),
    "x",
    "",
    [],
    [[]],
    {},
    True,
    [2**62, 2**62],
)


def damaged(data, draw):
    """Bytes changed, cut out, put in or repeated; or eight of them become a large number."""
    data, at = bytearray(data), int(draw.integers(len(data)))
    match int(draw.integers(5)):
        case 0:
            for place in draw.integers(len(data), size=int(draw.integers(1, 9))):
                data[place] = int(draw.integers(256))
        case 1:
            del data[at : at + int(draw.integers(1, 40))]
        case 2:
            data[at:at] = draw.bytes(int(draw.integers(1, 40)))
        case 3:
            data[at:at] = data[at : at + 200]
        case _:
            data[at : at + 8] = struct.pack("<Q", int(draw.choice(np.array(_PROMISES, np.uint64))))
    return bytes(data)


def judged(path):
    """Sizes, or None if refused in one line; within the memory."""
    tracemalloc.start()
    try:
        sizes = read_sizes(path)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        assert path.name in str(error) or path.parent.name in str(error)
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < _MOST_MEMORY
    assert 1 <= sizes.top_k <= sizes.num_experts
    assert min(sizes.expert_bytes) > 0
    assert max(sizes.layer_numbers) < sizes.num_layers
    return sizes


@pytest.mark.parametrize("name", ["deepseek2", "gpt-oss"])
def test_damaged_gguf_headers(tmp_path, name):
    whole = write(tmp_path / "whole.gguf", name)
    data, draw = whole.read_bytes()[: GGUFReader(whole).data_offset], np.random.default_rng(7)
    # the vocabulary is most of the header and the least of it: damage what follows as often
    after = data.index(b"tokenizer.chat_template")
    found, total = [], sum(tensor.n_bytes for tensor in GGUFReader(whole).tensors)
    for turn in range(400):
        hurt = damaged(data, draw) if turn % 2 else data[:after] + damaged(data[after:], draw)
        (tmp_path / "hurt.gguf").write_bytes(hurt)
        found.append(judged(tmp_path / "hurt.gguf"))
    read = [sizes for sizes in found if sizes is not None]
    assert 20 < len(read) < 380
    # tensors lie one after another, so that no changed size passes
    assert sum(abs(s.routed_bytes + s.dense_bytes + s.other_bytes - total) > 0.05 * total for s in read) == 0


def test_damaged_safetensors_headers(tmp_path):
    saved(tmp_path, "gpt_oss")
    path = tmp_path / "model.safetensors"
    data, draw = path.read_bytes(), np.random.default_rng(7)
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    refused = 0
    for _ in range(400):
        path.write_bytes(damaged(header, draw))
        refused += judged(path) is None
    assert refused > 300


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_wrong_values_in_config_and_index(tmp_path, file):
    saved(tmp_path, "mixtral", max_shard_size="20KB")
    for shard in sorted(tmp_path.glob("*.safetensors"))[1:]:
        shard.unlink()
    path = tmp_path / file
    fields = json.loads(path.read_text())
    assert judged(tmp_path) is not None
    keys = ["num_local_experts", "num_experts_per_tok", "num_hidden_layers", "hidden_size", "vocab_size", "dtype"]
    for key in keys if file == "config.json" else fields:
        for value in _VALUES:
            path.write_text(json.dumps(fields | {key: value}))
            judged(tmp_path)
    if "weight_map" in fields:
        for value in _VALUES:
            path.write_text(json.dumps(fields | {"metadata": {"total_size": value}}))
            judged(tmp_path)
            path.write_text(json.dumps(fields | {"weight_map": {"model.layers.0.mlp.experts.0.w1.weight": value}}))
            judged(tmp_path)
    path.write_bytes(b'{"a": ' + b"[" * 100_000)
    assert judged(tmp_path) is None
