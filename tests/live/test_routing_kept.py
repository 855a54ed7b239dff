"""Routers that select by one score and weigh by another: capture and live have what the experts' outputs are
multiplied with (as in AdaMoE, where selection is apart from weighting, and in Phi's sparsemixer, GRIN)."""

import numpy as np
import pytest
import torch

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.capture.hooks import RoutingRecorder
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.capture.tiny_models import tiny_model
from tests.live.live_case import LiveCase

BIASED = ["deepseek_v3", "dots1", "minimax_m2", "glm4_moe"]


def model_of(name):
    """With biases that decide much of the selection and must not weigh."""
    model, generator = tiny_model(name), torch.Generator().manual_seed(1)
    for module in model.modules():
        bias = getattr(module, "e_score_correction_bias", None)
        if isinstance(bias, torch.Tensor):
            bias.data.copy_(torch.randn(bias.shape, generator=generator))
    return model


def weighted_sum(experts, hidden, ids, weights):
    """Each chosen expert's output, computed apart from the model's kernels, times its captured weight."""
    out = torch.zeros_like(hidden)
    for token, (chosen, shares) in enumerate(zip(ids, weights, strict=True)):
        for expert, weight in zip(chosen.tolist(), shares, strict=True):
            gate, up = (experts.gate_up_proj[expert] @ hidden[token]).chunk(2)
            out[token] += weight * (experts.down_proj[expert] @ (experts.act_fn(gate) * up))
    return out


@pytest.mark.parametrize("name", [*BIASED, "phimoe"])
def test_captured_weights_are_those_of_the_outputs(name):
    model = model_of(name)
    layers, seen = moe_layers(model), []
    hook = layers[0].experts.register_forward_hook(lambda _module, args, out: seen.append((args[0].clone(), out)))
    with torch.no_grad(), RoutingRecorder(layers) as recorder:
        model(torch.arange(3, 30)[None], use_cache=False)
        routing = recorder.take(1)
        hook.remove()
        ids, weights = routing.experts_BCLK[0, :, 0], routing.weights_BCLK[0, :, 0]
        hidden, out = seen[0]
        assert torch.allclose(weighted_sum(layers[0].experts, hidden, ids, weights), out, atol=1e-5)


@pytest.mark.parametrize("name", BIASED)
def test_biases_select_and_do_not_weigh(name):
    model, seen = model_of(name), []
    layer = moe_layers(model)[0]
    layer.experts.register_forward_pre_hook(lambda _module, args: seen.append(args))
    with torch.no_grad():
        model(torch.arange(3, 30)[None], use_cache=False)
    hidden, ids, weights = seen[0]
    block = model.get_submodule(layer.name.rpartition(".")[0])
    scores = (hidden @ block.gate.weight.T).sigmoid()
    own = scores.gather(1, ids)
    assert torch.allclose(weights / weights.sum(1, keepdim=True), own / own.sum(1, keepdim=True), atol=1e-5)
    heaviest = scores.topk(ids.shape[1]).indices
    assert (heaviest.sort().values != ids.sort().values).any()


@pytest.mark.parametrize("name", [*BIASED, "phimoe"])
def test_live_computes_and_counts_alike(name, tmp_path):
    case = LiveCase(lambda: model_of(name), tmp_path)
    decoded, experts = case.run(Lru(), 6)
    assert case.difference(decoded) < 1e-5
    assert np.array_equal(
        experts.cache.result().counts_PFC, replay(events_of(case.trace), Lru(), Lru().budget(case.meta, 6)).counts_PFC
    )
