"""The header of a GGUF file says what its tensors weigh: as the package's own reader finds them in the whole file."""

import re
from collections import Counter

import pytest
from gguf import GGUFEndian, GGUFReader

from moe_beyond.formats.headers import read_sizes
from moe_beyond.formats.headers.gguf_header import read_header
from tests.formats.headers.gguf_files import ARCHITECTURES, EXPERTS, TOP_K, write
from tests.traces.refusals import refused


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bytes_are_those_of_the_tensors(tmp_path, name):
    made, path = ARCHITECTURES[name], write(tmp_path / "model.gguf", name)
    routed, dense, other = Counter(), 0, 0
    for tensor in GGUFReader(path).tensors:
        layer = re.match(r"blk\.(\d+)\.ffn_.*?(_exps|\.\d+\.weight)", tensor.name)
        beyond = tensor.name.startswith(f"blk.{made.layers - made.further}.")
        if beyond or (tensor.name == "token_embd.weight" and not made.tied):
            other += tensor.n_bytes
        elif layer:
            routed[int(layer[1])] += tensor.n_bytes
        else:
            dense += tensor.n_bytes
    sizes = read_sizes(path)
    assert dict(zip(sizes.layer_numbers, (EXPERTS * size for size in sizes.expert_bytes), strict=True)) == routed
    assert (int(sizes.dense_bytes), sizes.other_bytes) == (dense, other)
    assert (sizes.num_layers, sizes.num_experts, sizes.top_k) == (made.layers - made.further, EXPERTS, TOP_K)
    assert sizes.token_cycle_bytes == TOP_K * sum(sizes.expert_bytes)
    assert sizes.name == f"a small {name}"


@pytest.mark.parametrize("alignment", [32, 256])
@pytest.mark.parametrize("order", GGUFEndian)
def test_other_byte_orders_and_alignments_are_read(tmp_path, order, alignment):
    plain, other = (tmp_path / name for name in ("a.gguf", "b.gguf"))
    assert read_sizes(write(other, "gpt-oss", alignment, endianess=order)) == read_sizes(write(plain, "gpt-oss"))


def test_the_first_bytes_are_enough_and_fewer_are_one_line(tmp_path):
    whole, first = write(tmp_path / "model.gguf", "qwen3moe"), tmp_path / "first.bin"
    data, begins = whole.read_bytes(), GGUFReader(whole).data_offset
    first.write_bytes(data[:begins])
    assert read_sizes(first) == read_sizes(whole)
    for length in (5, 30, 400, 3_000, begins // 2, begins - 64):
        first.write_bytes(data[:length])
        refused(f"ends within its header, after {length} bytes", read_sizes, first)


def test_a_split_model_is_read_from_any_shard_with_all_beside_it(tmp_path):
    whole = read_sizes(write(tmp_path / "model.gguf", "deepseek2"))
    folder = tmp_path / "split"
    folder.mkdir()
    write(folder / "model.gguf", "deepseek2", split_max_tensors=7)
    shards = sorted(folder.iterdir())
    assert len(shards) > 2
    assert read_sizes(shards[1]) == read_sizes(shards[0]) == read_sizes(folder) == whole
    assert sum(len(read_header(shard).tensors) for shard in shards) > 7
    for shard in shards[1:]:
        shard.rename(shard.with_suffix(".away"))
    refused(f"shards are missing: {shards[1].name}", read_sizes, shards[0])
    refused(f"one of {len(shards)} shards", read_sizes, shards[0].rename(folder / "renamed.gguf"))


def test_what_is_no_mixture_of_experts_is_one_line(tmp_path):
    path = write(tmp_path / "a.gguf", "qwen3moe")
    data = path.read_bytes()
    for change, said in (
        ((b"qwen3moe.expert_count", b"qwen3moe.expert_cOunt"), "qwen3moe.expert_count is missing"),
        ((b"qwen3moe.expert_count\x04\x00\x00\x00\x08", b"qwen3moe.expert_count\x04\x00\x00\x00\x10"), "expected 16"),
        ((b"_exps.weight", b"_Exps.weight"), "no tensor of routed experts"),
        ((b"blk.1.ffn_up_exps", b"blk.1.ffn_uq_exps"), "layer 1 lacks ffn_up_exps.weight"),
        ((b"general.architecture", b"general.architectUre"), "general.architecture is missing"),
        ((b"GGUF\x03", b"GGUF\x01"), "version 1"),
    ):
        assert change[0] in data
        (tmp_path / "b.gguf").write_bytes(data.replace(*change))
        refused(said, read_sizes, tmp_path / "b.gguf")
    (tmp_path / "mmproj-a.gguf").write_bytes(b"GGUF")
    refused("holds 2 GGUF models", read_sizes, tmp_path)
    refused("not readable", read_sizes, tmp_path / "none.gguf")
