import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.model_config import read_shape
from tests.formats.cases import CONFIG
from tests.traces.refusals import refused

PLAIN = {key: value for key, value in CONFIG.items() if key != "first_k_dense_replace"}


def shape_of(config):
    return read_shape(json.dumps(config).encode(), "c")


FAMILIES = [
    (CONFIG, (1, 2, 3), 384),
    (CONFIG | {"moe_layer_freq": 2}, (2,), 384),
    (PLAIN | {"first_k_dense_replace": 0}, (0, 1, 2, 3), 384),
    (PLAIN | {"mlp_only_layers": [1], "decoder_sparse_step": 1}, (0, 2, 3), 384),
    (PLAIN | {"decoder_sparse_step": 2}, (1, 3), 384),
    (PLAIN | {"quantization_config": {"quant_method": "fp8"}}, (0, 1, 2, 3), 192),
    (PLAIN | {"quantization_config": {"quant_method": "mxfp4"}}, (0, 1, 2, 3), 102),
    (PLAIN | {"quantization_config": {"quant_method": "awq", "bits": 4}}, (0, 1, 2, 3), 96),
    (PLAIN | {"dtype": "float32"}, (0, 1, 2, 3), 768),
    # a model with vision keeps its language model's part apart
    ({"text_config": CONFIG}, (1, 2, 3), 384),
]


@pytest.mark.parametrize(("config", "layers", "expert_bytes"), FAMILIES)
def test_families_and_precisions(config, layers, expert_bytes):
    shape, num_layers = shape_of(config)
    assert (shape.num_experts, shape.top_k, num_layers) == (8, 2, 4)
    assert (shape.layer_numbers, set(shape.expert_bytes)) == (layers, {expert_bytes})


NO_MOE = [
    (CONFIG | {"n_routed_experts": None}, "none of n_routed_experts, num_experts"),
    (CONFIG | {"n_routed_experts": "8"}, "n_routed_experts is '8'"),
    (CONFIG | {"num_experts_per_tok": 9}, "not a mixture of experts"),
    (CONFIG | {"first_k_dense_replace": 4}, "0 layers with 8 experts"),
    ([1], "expected an object, found list"),
]


@pytest.mark.parametrize(("config", "message"), NO_MOE)
def test_a_config_of_no_moe_is_one_line(config, message):
    refused(message, shape_of, config)


CONFIGS = st.dictionaries(st.sampled_from(list(CONFIG)), st.integers() | st.text() | st.none())


@given(st.binary(max_size=100) | CONFIGS.map(lambda config: json.dumps(config).encode()))
def test_any_bytes_are_a_shape_or_an_input_error(data):
    try:
        read_shape(data, "c")
    except InputError as error:
        assert len(str(error).splitlines()) == 1
