"""Routers that run by themselves choose as in the model, and by other logits with their own weights."""

import numpy as np
import pytest
import torch

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.errors import InputError
from moe_beyond.live.next_gate import NextGate
from tests.capture.tiny_models import ARCHITECTURES, tiny_model


def gate_of(name):
    """A gate of a model's first MoE layer, hidden states, and the ids and weights that the layer gave for them."""
    model = tiny_model(name)
    layers, seen = moe_layers(model), []
    gate = NextGate(model, layers)
    hook = layers[0].experts.register_forward_pre_hook(lambda _module, args: seen.append(args))
    with torch.no_grad():
        model(torch.arange(3, 20)[None], use_cache=False)
    hook.remove()
    return gate, *seen[0]


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "phimoe"])
def test_logits_choose_and_own_logits_weigh(name):
    gate, hidden, ids, weights = gate_of(name)
    logits = []
    with torch.no_grad():
        same = gate.choice(hidden, 0, lambda values: logits.append(values) or values)
        others = gate.choice(hidden, 0, lambda values: np.where(np.arange(8) == ids[:, :1].numpy(), -np.inf, values))
    assert logits[0].shape == (len(hidden), 8)
    assert np.array_equal(same.experts_TK, ids.numpy())
    assert np.allclose(same.weights_TK, weights.numpy())
    # what was chosen first is ruled out, as far as the router reads logits
    assert not (others.experts_TK == ids[:, :1].numpy()).any()


def test_weights_of_another_choice_are_the_models_own():
    gate, hidden, _, _ = gate_of("olmoe")
    logits = []
    with torch.no_grad():
        choice = gate.choice(hidden, 0, lambda values: logits.append(values) or -values)
    # OLMoE weighs by a softmax over all experts and does not normalise again
    probabilities = torch.from_numpy(logits[0]).softmax(1).numpy()
    assert np.array_equal(np.sort(choice.experts_TK, axis=1), np.sort(probabilities.argsort(axis=1)[:, :3], axis=1))
    assert np.allclose(choice.weights_TK, np.take_along_axis(probabilities, choice.experts_TK, axis=1))


def test_a_router_without_a_top_k_is_named():
    gate, hidden, _, _ = gate_of("phimoe")
    with torch.no_grad(), pytest.raises(InputError, match="choice cannot be changed"):
        gate.choice(hidden, 0, lambda values: values)
