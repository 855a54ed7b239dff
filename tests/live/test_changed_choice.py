"""Models that compute with other experts than their routers chose do so exactly as the policy says."""

import numpy as np
import torch

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.live.decoding import decode
from moe_beyond.live.likeness import measured_substitution
from moe_beyond.simulator.policies.fewer_experts import CachePrior
from moe_beyond.simulator.policies.online_choices import OnlineCachePrior
from moe_beyond.simulator.policies.pre_gated import PreGated
from moe_beyond.simulator.policies.prompt_sets import PreMoe
from tests.capture.tiny_models import tiny_model
from tests.live.offloaded_case import SETTINGS, LiveCase, live_prompts


def spied(online):
    """The decisions, and the model-wide ids of every decode event that was computed."""
    members, keep = [], online.keep

    def seen(routing):
        kept = keep(routing)
        if routing.decodes:
            members.append(routing.members_I if kept is None else routing.members_I[kept])
        return kept

    online.keep = seen
    return online, members


def pre_gated_by_hand(model):
    """OLMoE whose later layers compute with what their gate gives for the hidden states of the layer before."""
    layers, guess = moe_layers(model), []
    gates = [model.get_submodule(layer.name.rpartition(".")[0]).gate for layer in layers]

    def wrapped(index, forward):
        def run(hidden, ids, weights):
            if len(hidden) == 1:
                if index:
                    weights, ids = guess[0]
                guess[:] = [gates[index + 1](hidden)[1:]] if index + 1 < len(layers) else []
            return forward(hidden, ids, weights)

        return run

    for index, layer in enumerate(layers):
        layer.experts.forward = wrapped(index, layer.experts.forward)
    return model


def test_pre_gated_is_the_model_with_its_gates_a_layer_earlier(tmp_path):
    case = LiveCase(lambda: tiny_model("olmoe"), tmp_path)
    live, counted = case.run(PreGated(), 12)
    changed, options = pre_gated_by_hand(case.make()), {"seed": 3, "keep_logits": True, "given": case.given}
    want = decode(changed, case.tokenizer, case.prompts, None, SETTINGS, **options)
    for a, b in zip(want, live, strict=True):
        assert torch.allclose(torch.stack(a.logits_TV), torch.stack(b.logits_TV), atol=1e-5)
    assert case.difference(live) > 1e-2
    assert counted.decode.prefetches > 0


def test_cache_prior_uses_residents_and_without_a_prior_changes_nothing(tmp_path):
    case = LiveCase(lambda: tiny_model("qwen3_moe"), tmp_path)
    same, before = case.run(CachePrior(), 12, OnlineCachePrior(case.meta.num_layers, 0.0, 2))
    assert case.difference(same) < 1e-5
    case = LiveCase(lambda: tiny_model("olmoe"), tmp_path / "olmoe")
    _, before = case.run(CachePrior(), 12, OnlineCachePrior(case.meta.num_layers, 0.0, 2))
    _, after = case.run(CachePrior(), 12, OnlineCachePrior(case.meta.num_layers, 0.5, 1))
    assert after.decode.hits > before.decode.hits
    assert after.decode.accesses == before.decode.accesses
    assert after.decode.substituted == 0


def test_pre_moe_computes_its_subset_alone(tmp_path):
    case = LiveCase(lambda: tiny_model("deepseek_v3"), tmp_path)
    patterns = np.random.default_rng(1).random((1, case.meta.num_model_experts)).astype(np.float32)
    policy = PreMoe(patterns, patterns[0])
    online, members = spied(policy.online(case.meta))
    decoded, _ = case.run(policy, 8, online)
    subset = np.argsort(-patterns.reshape(case.meta.num_layers, -1), axis=1)[:, :4]
    allowed = {layer * 8 + expert for layer, experts in enumerate(subset.tolist()) for expert in experts}
    assert {expert for event in members for expert in event.tolist()} <= allowed
    assert case.difference(decoded) > 1e-3


def test_experts_of_equal_outputs_are_most_alike():
    model = tiny_model("mixtral")
    for layer in moe_layers(model):
        for parameter in layer.experts.parameters():
            parameter.data[5] = parameter.data[2]
    nearest = measured_substitution(model, live_prompts()).nearest_ME.reshape(3, 8, 7)
    assert (nearest[:, 2, 0] == [5, 13, 21]).all()
    assert (nearest[:, 5, 0] == [2, 10, 18]).all()
