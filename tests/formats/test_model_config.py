"""Shapes of models from their config.json: the layers with experts, whoever built the model."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.errors import InputError
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride, read_shape
from tests.capture.tiny_models import ARCHITECTURES, tiny_model
from tests.formats.cases import CONFIG
from tests.traces.refusals import refused

# a model that transformers does not know
PLAIN = {key: value for key, value in CONFIG.items() if key not in ("first_k_dense_replace", "model_type")}


def shape_of(config, override=NONE):
    return read_shape(json.dumps(config).encode(), "c", override)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_config_says_what_the_loaded_model_has(name):
    """Layers, experts and bytes, of the model that live capture would hook."""
    model = tiny_model(name)
    shape, num_layers = shape_of(model.config.to_dict() | {"dtype": "float32"})
    layers = moe_layers(model)
    assert shape.layer_numbers == tuple(layer.number for layer in layers)
    assert shape.expert_bytes == tuple(layer.expert_bytes for layer in layers)
    assert (shape.num_experts, num_layers) == (layers[0].num_experts, model.config.num_hidden_layers)


SMALL = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 32, "num_experts_per_tok": 1}
LLAMA4 = SMALL | {"num_local_experts": 8, "interleave_moe_layer_step": 2}
KNOWN = [
    (LLAMA4 | {"model_type": "llama4_text"}, (1, 3)),
    ({"model_type": "llama4", "text_config": LLAMA4}, (1, 3)),
    (SMALL | {"model_type": "nemotron_h", "n_routed_experts": 8, "hybrid_override_pattern": "ME*E"}, (1, 3)),
]


@pytest.mark.parametrize(("config", "layers"), KNOWN)
def test_families_that_capture_cannot_hook_have_a_shape_too(config, layers):
    assert shape_of(config)[0].layer_numbers == layers


KEYS = [
    ({}, (0, 1, 2, 3)),
    ({"first_k_dense_replace": 0}, (0, 1, 2, 3)),
    ({"first_k_dense_replace": 1}, (1, 2, 3)),
    ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, (2,)),
    ({"num_dense_layers": 2}, (2, 3)),
    ({"mlp_only_layers": [1], "decoder_sparse_step": 1}, (0, 2, 3)),
    ({"decoder_sparse_step": 2}, (1, 3)),
    ({"interleave_moe_layer_step": 2}, (1, 3)),
    ({"moe_layers": [1, 3], "interleave_moe_layer_step": 1}, (1, 3)),
    ({"moe_layers_enum": "2,3"}, (2, 3)),
    ({"moe_layer_freq": [0, 1, 0, 1]}, (1, 3)),
    ({"is_moe_layer": [False, True, True, False]}, (1, 2)),
    ({"expert_layer_period": 2, "expert_layer_offset": 1}, (1, 3)),
    ({"moe_layer_start_index": 1, "moe_layer_end_index": 2, "moe_layer_interval": 1}, (1, 2)),
    ({"moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 2}, (1, 3)),
    ({"hybrid_override_pattern": "ME*E"}, (1, 3)),
    ({"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}, (1, 2, 3)),
    # kinds of attention
    ({"layers_block_type": ["mamba", "attention", "mamba", "mamba"]}, (0, 1, 2, 3)),
]


@pytest.mark.parametrize(("keys", "layers"), KEYS)
def test_without_transformers_the_keys_of_known_families_decide(keys, layers):
    shape, num_layers = shape_of(PLAIN | keys)
    assert (shape.layer_numbers, num_layers) == (layers, 4)
    # a model with vision keeps its language model's part apart
    assert shape_of({"text_config": PLAIN | keys, "vision_config": {"num_hidden_layers": 9}}) == (shape, 4)


def test_keys_decide_too_where_transformers_cannot_build_the_model():
    config = PLAIN | {"model_type": "glm4_moe", "first_k_dense_replace": 1, "num_attention_heads": 0}
    assert shape_of(config)[0].layer_numbers == (1, 2, 3)


NO_MOE = [
    (CONFIG | {"n_routed_experts": None}, "none of n_routed_experts, num_experts"),
    (CONFIG | {"n_routed_experts": "8"}, "n_routed_experts is '8'"),
    (CONFIG | {"num_experts_per_tok": 9}, "not a mixture of experts"),
    (PLAIN | {"first_k_dense_replace": 4}, "0 layers with 8 experts"),
    (PLAIN | {"moe_every_layers": 4}, "'moe_every_layers' seems to say which .* name them with --moe-layers"),
    (PLAIN | {"num_hidden_layers": 10**6}, "1000000 layers, expected at most 1000"),
    ([1], "expected an object, found list"),
]


@pytest.mark.parametrize(("config", "message"), NO_MOE)
def test_a_config_of_no_moe_is_one_line(config, message):
    refused(message, shape_of, config)


def test_a_person_can_name_the_layers_and_the_bytes():
    for config in (CONFIG, PLAIN | {"moe_every_layers": 4}):
        shape, _ = shape_of(config, ShapeOverride("0,2-3", "1000"))
        assert (shape.layer_numbers, shape.expert_bytes) == ((0, 2, 3), (1000,) * 3)
    for layers, message in (("1-", "expected numbers and ranges"), ("4", "layer 4 of 4"), ("3-1", "0 layers")):
        refused(message, shape_of, CONFIG, ShapeOverride(layers))
    refused("expected bytes of one expert, or a GGUF type", shape_of, CONFIG, ShapeOverride(None, "Q9"))


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": ' + "1" * 5000 + "}", '{"a": 1, "a": 2}'])
def test_what_is_no_json_is_one_line(text):
    refused("^c: ", read_shape, text.encode(), "c")


CHANGES = st.dictionaries(
    st.sampled_from([*CONFIG, "quantization_config", "text_config", "mlp_only_layers", "moe_layer_freq", "model_type"]),
    st.none()
    | st.booleans()
    | st.integers(-3, 10)
    | st.sampled_from([[], {}, "", "glm4_moe", [1], {"bits": 4}, 10**12]),
)


@given(changes=CHANGES, cut=st.none() | st.integers(0, 200))
def test_any_config_is_a_shape_or_one_line(changes, cut):
    data = json.dumps(CONFIG | changes).encode()[:cut]
    try:
        assert read_shape(data, "c")[0].num_layers > 0
    except InputError as error:
        assert len(str(error).splitlines()) == 1
