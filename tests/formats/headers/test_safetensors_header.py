"""Headers of a safetensors checkpoint, or its index and config.json, say what its tensors weigh."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.formats.headers import read_sizes
from moe_beyond.formats.headers.safetensors_header import INDEX
from tests.capture.tiny_models import ARCHITECTURES, tiny_model
from tests.traces.refusals import refused

_NARROW = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 8}
_NARROW |= {"num_key_value_heads": 2, "pad_token_id": 0, "num_hidden_layers": 4}
MORE = {
    "llama4_text": _NARROW | {"num_local_experts": 8, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 2},
    "gemma4_text": _NARROW
    | {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 16}
    | {"hidden_size_per_layer_input": 0, "layer_types": ["full_attention"] * 4},
    "lfm2_moe": _NARROW
    | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_dense_layers": 2}
    | {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
}


def saved(folder, name, **options):
    """A tiny model with bfloat16 weights, written as checkpoints are; the model."""
    if name in MORE:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **MORE[name])).to(torch.bfloat16)
    else:
        model = tiny_model(name, torch.bfloat16)
    model.save_pretrained(folder, **options)
    return model


def beginnings(folder):
    """Cut every shard after its header."""
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        path.write_bytes(data[: 8 + int.from_bytes(data[:8], "little")])


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE])
def test_bytes_are_those_of_the_tensors(tmp_path, name):
    model = saved(tmp_path, name)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        total = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118 - it is no dict
    beginnings(tmp_path)
    sizes = read_sizes(tmp_path)
    layers = {layer.number: layer for layer in moe_layers(model, readable=False)}
    routed = {n: sum(weight.nbytes for weight in layer.experts.parameters()) for n, layer in layers.items()}
    assert dict(zip(sizes.layer_numbers, (8 * size for size in sizes.expert_bytes), strict=True)) == routed
    assert sizes.routed_bytes + sizes.dense_bytes + sizes.other_bytes == total
    assert sizes.num_layers == model.config.num_hidden_layers
    assert sizes.other_bytes == (0 if model.config.tie_word_embeddings else 64 * 32 * 2)
    assert read_sizes(tmp_path / "model.safetensors") == sizes


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe", "gpt_oss", "mixtral"])
def test_an_index_with_config_says_what_all_shards_say(tmp_path, name):
    saved(tmp_path, name, max_shard_size="20KB")
    beginnings(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    by_shards = read_sizes(tmp_path)
    assert len(shards) > 2
    assert f"{len(shards)} safetensors files" in by_shards.source
    shards[1].unlink()
    by_index = read_sizes(tmp_path / INDEX)
    assert by_index == read_sizes(shards[0])
    assert INDEX in by_index.source
    named = ("layer_numbers", "expert_bytes", "dense_bytes", "other_bytes", "num_experts", "top_k", "num_layers")
    assert {key: getattr(by_index, key) for key in named} == {key: getattr(by_shards, key) for key in named}
    # a layer that predicts further tokens is none of the model's
    index = json.loads((tmp_path / INDEX).read_text())
    index["metadata"]["total_size"] += 8 * by_index.expert_bytes[-1]
    index["weight_map"] |= {f"model.layers.3.mlp.experts.{e}.up_proj.weight": shards[0].name for e in range(8)}
    (tmp_path / INDEX).write_text(json.dumps(index))
    further = read_sizes(tmp_path)
    assert further.dense_bytes == by_index.dense_bytes
    assert further.other_bytes == by_index.other_bytes + 8 * by_index.expert_bytes[-1]
    (tmp_path / INDEX).unlink()
    refused(f"shards are missing: {shards[1].name}", read_sizes, tmp_path)


def test_what_headers_cannot_say_is_one_line(tmp_path):
    saved(tmp_path, "mixtral")
    model, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    data, fields = model.read_bytes(), json.loads(config.read_text())
    for length, said in ((4, "not the beginning"), (100, "ends within its header, after 100 bytes; fetch the first")):
        model.write_bytes(data[:length])
        refused(said, read_sizes, tmp_path)
    model.write_bytes((2**40).to_bytes(8, "little") + data[8:])
    refused("a header of 1099511627776 bytes", read_sizes, model)
    for old, new, said in (
        (b'"shape":[64,32]', b'"shape":[65,32]', "bytes; fetch it again"),
        (b'"dtype":"BF16"', b'"dtype":"BF61"', "dtype 'BF61' is unknown"),
        (b".experts.3.", b".experts.9.", "expected as many of each of 8"),
        (b".experts.3.w1", b".exverts.3.w1", "2 to 3 of each"),
        (b".experts.", b".exqerts.", "no tensor of routed experts"),
    ):
        assert old in data
        model.write_bytes(data.replace(old, new))
        refused(said, read_sizes, tmp_path)
    model.write_bytes(data)
    for change, said in (
        ({"num_local_experts": 16}, "tensors of 8 experts, 3 to 3 of each, expected as many of each of 16"),
        ({"num_experts_per_tok": 9}, "not a mixture of experts"),
        ({"num_experts_per_tok": None}, "none of"),
    ):
        config.write_text(json.dumps(fields | change))
        refused(said, read_sizes, tmp_path)
    config.unlink()
    refused("config.json: no such file; fetch the model's", read_sizes, model)
    config.write_text(json.dumps(fields))
    model.unlink()
    refused("holds no", read_sizes, tmp_path)


def test_layers_that_predict_further_tokens_and_pictures_are_not_read_by_a_token(tmp_path):
    saved(tmp_path, "qwen3_moe")
    plain = read_sizes(tmp_path)
    more = {"mtp.layers.0.mlp.experts.gate_up_proj": [8, 4, 4], "model.visual.blocks.0.attn.weight": [5, 5]}
    more |= {"model.layers.3.mlp.experts.gate_up_proj": [8, 4, 4]}  # of three layers
    model = tmp_path / "model.safetensors"
    data = model.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    for name, shape in more.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    model.write_bytes(len(text).to_bytes(8, "little") + text)
    sizes = read_sizes(tmp_path)
    assert (sizes.expert_bytes, sizes.dense_bytes) == (plain.expert_bytes, plain.dense_bytes)
    assert sizes.other_bytes == plain.other_bytes + 2 * (128 + 25 + 128)
