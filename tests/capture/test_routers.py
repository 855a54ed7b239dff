"""Routers that are found in a model choose the experts that were recorded, or are not kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.capture.generation import route_batch
from moe_beyond.capture.hooks import RoutingRecorder
from moe_beyond.capture.prompts import EncodedPrompt
from moe_beyond.capture.routers import LEAST_AGREEMENT, agreement, confirmed_routers, possible_routers
from moe_beyond.capture.settings import ExtractSettings
from moe_beyond.traces.schema import TraceMetadata, trace_of
from tests.capture.tiny_models import ARCHITECTURES, tiny_model

RNG = np.random.default_rng(3)
PROMPTS = [EncodedPrompt(f"p{row}", "test", False, tuple(RNG.integers(3, 64, 40).tolist())) for row in range(8)]


def traced(model, kept="gates"):
    layers = moe_layers(model)
    with RoutingRecorder(layers, kept, model=model) as recorder:
        prompts = route_batch(model, recorder, PROMPTS, ExtractSettings(decode_tokens=0), seed=1)
    metadata = TraceMetadata(
        model_id="m",
        layer_numbers=tuple(layer.number for layer in layers),
        num_experts=layers[0].num_experts,
        top_k=prompts[0].experts_TLK.shape[-1],
        expert_bytes=(1,) * len(layers),
        source="s",
        licence="l",
    )
    return trace_of(metadata, prompts), layers


def with_biases(model):
    """Biases are zero in a new model: give those of routers values that change what is chosen."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("e_score_correction_bias", "router.bias", "gate.bias")):
                tensor.copy_(torch.randn_like(tensor) * 0.3)
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_routers_of_every_architecture_choose_what_was_recorded(name):
    model = with_biases(tiny_model(name))
    trace, layers = traced(model)
    routers, reason = confirmed_routers(model, layers, lambda: [trace])
    assert reason == ""
    found = agreement(routers, trace)
    assert found.compared == trace.num_tokens * len(layers)
    assert found.share >= LEAST_AGREEMENT


KINDS = {
    "deepseek_v2": (False, False, 1, 1, "best"),
    "deepseek_v2-groups": (False, False, 4, 2, "best"),
    "deepseek_v3": (False, True, 2, 1, "two_best"),
    "gpt_oss": (True, False, 1, 1, "best"),
    "mixtral": (False, False, 1, 1, "best"),
    "qwen3_moe": (False, False, 1, 1, "best"),
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_biases_and_groups_are_found(name, kind):
    model = with_biases(tiny_model(name))
    trace, layers = traced(model)
    routers, _ = confirmed_routers(model, layers, lambda: [trace])
    biases = (routers.logit_bias_LE is not None, routers.choice_bias_LE is not None)
    assert (*biases, routers.num_groups, routers.top_groups, routers.group_score) == kind
    assert routers.scoring == ("sigmoid" if name == "deepseek_v3" else "softmax")
    # without what was found, other experts would be chosen
    plain = replace(routers, logit_bias_LE=None, choice_bias_LE=None, num_groups=1)
    assert (agreement(plain, trace).share >= LEAST_AGREEMENT) == (kind == KINDS["mixtral"])


def test_routers_that_choose_other_experts_are_not_kept_and_the_user_is_told():
    model = tiny_model("qwen3_moe")
    trace, layers = traced(model)
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight.normal_()
    routers, reason = confirmed_routers(model, layers, lambda: [trace])
    assert routers is None
    assert "of 960 recorded choices (6" in reason
    assert "\n" not in reason
    nothing = replace(trace, hidden=trace.hidden.take(np.arange(0)))
    assert "no hidden states were kept" in confirmed_routers(model, layers, lambda: [nothing])[1]


def test_a_model_whose_router_has_no_matrix_has_none():
    model = tiny_model("qwen3_moe")
    layers = moe_layers(model)
    model.model.layers[0].mlp.gate.weight = torch.nn.Parameter(torch.zeros(3, 32))
    assert list(possible_routers(model, layers)) == []
    assert "no router's weights found" in confirmed_routers(model, layers, list)[1]


def test_values_beyond_half_precision_are_cut_to_its_range():
    model = tiny_model("mixtral")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e7)
    trace, _ = traced(model, "all")
    assert np.isfinite(trace.hidden.layer_inputs_SYD).all()
    assert np.abs(trace.hidden.layer_inputs_SYD).max() == np.finfo(np.float16).max
