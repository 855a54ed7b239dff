"""Models that compute with other experts than their routers chose do so exactly as the policy says."""

import numpy as np
import pytest
import torch

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.live.decoding import decode
from moe_beyond.live.likeness import measured_substitution
from moe_beyond.simulator.policies.fewer_experts import CachePrior, MoBile
from moe_beyond.simulator.policies.online_choices import OnlineCachePrior
from moe_beyond.simulator.policies.pre_gated import PreGated, PreGatedLru
from moe_beyond.simulator.policies.prompt_sets import PreMoe
from moe_beyond.simulator.policies.substitution import Substitution
from tests.capture.tiny_models import tiny_model
from tests.live.live_case import SETTINGS, LiveCase, live_prompts


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


def decoded_by_hand(case, change):
    """What the model decodes whose decode steps compute with `change(layer index, hidden, ids, weights)`."""
    model = case.make()

    def wrapped(index, forward):
        return lambda hidden, ids, weights: forward(
            hidden, *(change(index, hidden, ids, weights) if len(hidden) == 1 else (ids, weights))
        )

    for index, layer in enumerate(moe_layers(model)):
        layer.experts.forward = wrapped(index, layer.experts.forward)
    options = {"seed": 3, "keep_logits": True, "given": case.given}
    return decode(model, case.tokenizer, case.prompts, None, SETTINGS, **options)


def assert_changed_alike(case, live, want):
    for a, b in zip(want, live, strict=True):
        assert torch.allclose(torch.stack(a.logits_TV), torch.stack(b.logits_TV), atol=1e-5)
    assert case.difference(live) > 1e-2


@pytest.mark.parametrize("kind", [PreGated, PreGatedLru])
def test_pre_gated_is_the_model_with_its_gates_a_layer_earlier(tmp_path, kind):
    case = LiveCase(lambda: tiny_model("olmoe"), tmp_path)
    gates = [case.model.get_submodule(layer.name.rpartition(".")[0]).gate for layer in moe_layers(case.model)]
    guess = []

    def earlier(index, hidden, ids, weights):
        weights, ids = guess[0] if index else (weights, ids)
        guess[:] = [gate(hidden)[1:] for gate in gates[index + 1 : index + 2]]
        return ids, weights

    live, experts = case.run(kind(), 12)
    assert_changed_alike(case, live, decoded_by_hand(case, earlier))
    assert experts.cache.result().decode.prefetches > 0


def test_mobile_computes_the_heavier_half(tmp_path):
    case = LiveCase(lambda: tiny_model("olmoe"), tmp_path)

    def halved(index, _hidden, ids, weights):
        lightest = weights == weights.min(dim=1, keepdim=True).values
        return ids, weights.masked_fill(lightest, 0) if index else weights

    live, experts = case.run(MoBile(upper_half_share=0), case.meta.num_model_experts)
    assert_changed_alike(case, live, decoded_by_hand(case, halved))
    # of three experts two are kept, from the second layer on
    assert experts.cache.result().decode.skipped == experts.cache.result().decode.tokens * (case.meta.num_layers - 1)


def test_a_replacement_of_equal_outputs_changes_nothing(tmp_path):
    def twins():
        model = tiny_model("olmoe")
        for layer in moe_layers(model):
            for parameter in layer.experts.parameters():
                parameter.data[1::2] = parameter.data[::2]
        return model

    case = LiveCase(twins, tmp_path)
    nearest_alone = measured_substitution(case.model, live_prompts()).nearest_ME[:, :1]
    assert nearest_alone.ravel().tolist() == [expert ^ 1 for expert in range(case.meta.num_model_experts)]
    live, experts = case.run(Substitution(nearest_alone), 12)
    assert experts.cache.result().decode.substituted > 0
    assert case.difference(live) < 1e-5


def test_cache_prior_uses_residents_and_without_a_prior_changes_nothing(tmp_path):
    case = LiveCase(lambda: tiny_model("qwen3_moe"), tmp_path)
    same, before = case.run(CachePrior(), 12, OnlineCachePrior(case.meta.num_layers, 0.0, 2))
    assert case.difference(same) < 1e-5
    case = LiveCase(lambda: tiny_model("olmoe"), tmp_path / "olmoe")
    _, before = case.run(CachePrior(), 12, OnlineCachePrior(case.meta.num_layers, 0.0, 2))
    _, after = case.run(CachePrior(), 12, OnlineCachePrior(case.meta.num_layers, 0.5, 1))
    assert after.cache.result().decode.hits > before.cache.result().decode.hits
    assert after.cache.result().decode.accesses == before.cache.result().decode.accesses
    assert after.cache.result().decode.substituted == 0


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
