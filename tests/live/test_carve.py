"""Experts carved out of a dense model compute what it computes, are traced, and run behind a cache."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from moe_beyond.errors import InputError
from moe_beyond.live.carve import _grouped, carve
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.capture.tiny_models import tiny_model
from tests.live.live_case import LiveCase, live_prompts

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "pad_token_id": 0}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 1}


def dense(kind="llama", **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, initializer_range=0.2, **SHAPE | changes)
        ).eval()


def carved(top_k, kind="llama"):
    model = dense(kind)
    carve(model, live_prompts(), routed=8, shared=2, top_k=top_k, active=6)
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_with_all_experts_active_it_is_the_dense_model(kind):
    ids = torch.tensor([live_prompts()[2].token_ids])
    with torch.no_grad():
        want, whole, sparse = dense(kind)(ids).logits, carved(8, kind)(ids).logits, carved(2, kind)(ids).logits
    assert torch.allclose(whole, want, atol=1e-5)
    assert not torch.allclose(sparse, want, atol=1e-2)


def test_shared_neurons_are_the_most_active_ones_and_groups_share_their_tokens():
    # neurons 0 and 1 are active for all tokens, the others in two groups for one half of them each
    active = np.zeros((8, 6), np.float32)
    active[:, :2] = active[:4, [2, 5]] = active[4:, [3, 4]] = 1
    always, experts, typical = _grouped(active, routed=2, shared=1)
    assert sorted(always) == [0, 1]
    assert sorted(map(sorted, experts.tolist())) == [[2, 5], [3, 4]]
    assert all(neuron in members for neuron, members in zip(typical, experts, strict=True))


def test_it_is_traced_and_runs_live(tmp_path):
    case = LiveCase(lambda: carved(2), tmp_path)
    trace = case.trace
    assert (trace.metadata.num_layers, trace.metadata.num_experts, trace.metadata.top_k) == (2, 8, 2)
    assert np.all(trace.weights_TLK == 1)
    decoded, experts = case.run(Lru(), 6)
    assert case.difference(decoded) < 1e-5
    want = replay(events_of(trace), Lru(), Lru().budget(case.meta, 6))
    assert np.array_equal(experts.cache.result().counts_PFC, want.counts_PFC)


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        (lambda: tiny_model("mixtral"), (8, 2, 2), "no dense model with gated feed-forward layers"),
        (lambda: dense(mlp_bias=True), (8, 2, 2), "has biases"),
        (dense, (7, 2, 2), "40 neurons; they cannot be carved into 2 shared and 7 routed"),
        (dense, (8, 2, 9), "9 for a token"),
    ],
)
def test_what_cannot_be_carved_is_named(model, sizes, message):
    routed, shared, top_k = sizes
    with pytest.raises(InputError, match=message):
        carve(model(), live_prompts(), routed=routed, shared=shared, top_k=top_k)
