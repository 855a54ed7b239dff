"""Bytes of one expert under each method of quantisation, counted by hand."""

import json

import pytest

from moe_beyond.formats.importers.model_config import NONE, ShapeOverride, shape_beside
from tests.formats.test_model_config import shape_of
from tests.traces.refusals import refused

# gate and up 256 x 512, down 512 x 256
WEIGHTS = 3 * 512 * 256
CONFIG = {"num_hidden_layers": 16, "num_experts": 8, "num_experts_per_tok": 2, "hidden_size": 512}
CONFIG |= {"moe_intermediate_size": 256}


def sizes(method, **changes):
    return set(
        shape_of(CONFIG | {"dtype": "bfloat16"} | changes | ({"quantization_config": method} if method else {}))[
            0
        ].expert_bytes
    )


def compressed(**weights):
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


def bits(each, *, group=0, scale=0):
    return WEIGHTS * each // 8 + (WEIGHTS // group * scale // 8 if group else 0)


ROWS = 256 + 256 + 512
INT4, ATTENTION = {"num_bits": 4, "type": "int", "group_size": 32}, ["re:.*self_attn.*"]
METHODS = [
    (None, bits(16)),
    (compressed(**INT4), bits(4, group=32, scale=16)),
    (compressed(**INT4, symmetric=False), bits(4, group=32, scale=16 + 4)),
    (compressed(num_bits=8, type="int", strategy="channel"), bits(8) + 2 * ROWS),
    (compressed(num_bits=8, type="float", strategy="tensor"), bits(8) + 2 * 3),
    (
        compressed(num_bits=8, type="float", strategy="block", block_structure=[128, 128]),
        bits(8) + 2 * WEIGHTS // 128**2,
    ),
    (compressed(num_bits=4, type="float", strategy="tensor_group", group_size=16), bits(4, group=16, scale=8) + 4 * 3),
    (compressed(**INT4) | {"ignore": ["lm_head", "re:.*mlp.experts.*"]}, bits(16)),
    (compressed(**INT4) | {"ignore": ["lm_head", "re:.*mlp.gate$"]}, bits(4, group=32, scale=16)),
    ({"quant_method": "compressed-tensors", "config_groups": {"a": {"targets": ATTENTION, "weights": INT4}}}, bits(16)),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, bits(4, group=16, scale=8) + 4 * 3),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, bits(8) + 4 * 3),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, bits(4, group=128, scale=16 + 4)),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, bits(8) + 3 * ROWS),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {r"-:.*experts.*": {}}}, bits(16)),
    ({"quant_method": "auto-round", "bits": 2, "group_size": 64}, bits(2, group=64, scale=16 + 2)),
    ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, bits(4, group=128, scale=16 + 4)),
    (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": ["gate"]},
        bits(4, group=128, scale=20),
    ),
    ({"quant_method": "mxfp4"}, bits(4, group=32, scale=8)),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, bits(8) + 4 * WEIGHTS // 128**2),
    ({"quant_method": "fp8"}, bits(8) + 4 * 3),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, bits(4, group=64, scale=32)),
    ({"quant_method": "bitsandbytes", "_load_in_8bit": True}, bits(8) + 4 * ROWS),
    ({"quant_method": "gguf", "quant_type": "Q4_K"}, WEIGHTS * 144 // 256),
]


@pytest.mark.parametrize(("method", "expected"), METHODS)
def test_weights_and_their_scales_are_counted(method, expected):
    assert sizes(method) == {expected}


def test_precisions_two_projections_and_biases():
    assert sizes(None, dtype="float32") == {bits(32)}
    assert sizes(None, mlp_hidden_act="relu2") == {bits(16) * 2 // 3}
    # gpt-oss: as the checkpoint has it, biases in bfloat16
    gpt_oss = {"model_type": "gpt_oss", "num_local_experts": 8, "intermediate_size": 256}
    assert sizes({"quant_method": "mxfp4"}, **gpt_oss) == {bits(4, group=32, scale=8) + 2 * (2 * 256 + 512)}
    # DeepSeek-V4 says by another key that its experts have four bits
    assert sizes({"quant_method": "fp8", "weight_block_size": [128, 128]}, expert_dtype="fp4") == {
        bits(4, group=32, scale=8)
    }


APART = [
    (
        "hf_quant_config.json",
        {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}},
        METHODS[10][1],
    ),
    ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": False}, METHODS[12][1]),
    ("quant_config.json", {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"}, METHODS[16][1]),
]


@pytest.mark.parametrize(("name", "fields", "expected"), APART)
def test_a_quantisation_that_lies_beside_the_config_counts(tmp_path, name, fields, expected):
    files = {name: json.dumps(fields), "config.json": json.dumps(CONFIG | {"dtype": "bfloat16"}), "a.npz": "x"}
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    for source in (tmp_path, tmp_path / "a.npz"):
        assert set(shape_beside(source, NONE)[0].expert_bytes) == {expected}


def test_gguf_types_and_mixes_are_those_of_a_phone():
    """Qwen3-30B-A3B in Q4_K_M, as a phone's engine states it layer by layer (BigMoeOnEdge, docs/bench-data)."""
    config = CONFIG | {"num_hidden_layers": 48, "hidden_size": 2048, "moe_intermediate_size": 768}
    found = shape_of(config, ShapeOverride(expert_size="Q4_K_M"))[0].expert_bytes
    more = {*range(6), *range(8, 42, 3), *range(42, 48)}
    assert found == tuple(3_059_712 if layer in more else 2_654_208 for layer in range(48))
    assert set(shape_of(config, ShapeOverride(expert_size="Q8_0"))[0].expert_bytes) == {3 * 2048 * 768 * 34 // 32}


UNKNOWN = [
    ({"quant_method": "hqq"}, "quant_method 'hqq' is unknown; give bytes or a GGUF type with --expert-size"),
    ({"bits": 4}, "quant_method 'none' is unknown"),
    ({"quant_method": "awq", "bits": 0.0001}, "bits is 0.0001, expected 1 to 16"),
    ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "quant_algo 'MIXED_PRECISION' is unknown"),
    ({"quant_method": "bitsandbytes"}, "neither load_in_4bit nor load_in_8bit"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size is 0"),
    (compressed(**INT4) | {"sparsity_config": {"format": "dense"}}, "sparse weights have no known size"),
    (compressed(type="int"), "num_bits is None"),
    (compressed(**INT4) | {"ignore": ["re:("]}, "is no regular expression"),
    ("fp8", "quantization_config is 'fp8', expected an object"),
]


@pytest.mark.parametrize(("method", "message"), UNKNOWN)
def test_what_is_not_known_is_refused_and_never_16_bits(method, message):
    refused(message, sizes, method)
    refused("dtype 'int3' is unknown", sizes, None, dtype="int3")
