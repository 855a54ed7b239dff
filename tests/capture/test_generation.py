"""What the recorder notes, what discovery finds, and which tokens of a generation are kept."""

import copy
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.capture.generation import SeededSampler, real_columns, route_batch
from moe_beyond.capture.hooks import RoutingRecorder, by_falling_weight
from moe_beyond.capture.prompts import EncodedPrompt, pad
from moe_beyond.capture.settings import ExtractSettings
from tests.capture.tiny_models import tiny_model
from tests.traces.refusals import refused


@pytest.fixture(scope="module")
def deepseek():
    return tiny_model("deepseek_v2")


def prompt(name, *ids):
    return EncodedPrompt(name, "test", False, ids)


PROMPTS = [prompt("a", 5, 9, 12, 40), prompt("b", 7), prompt("c", 33, 21)]


def routed(model, prompts=PROMPTS, seed=1, **settings):
    with RoutingRecorder(moe_layers(model)) as recorder:
        return route_batch(model, recorder, prompts, ExtractSettings(**settings), seed)


def test_experts_are_ordered_by_weight_and_equal_weights_by_id():
    ids, weights = by_falling_weight(torch.tensor([[7, 3, 5, 1]]), torch.tensor([[0.2, 0.4, 0.2, 0.2]]))
    assert ids.tolist() == [[3, 1, 5, 7]]
    torch.testing.assert_close(weights, torch.tensor([[0.4, 0.2, 0.2, 0.2]]))


def test_layers_are_numbered_as_in_the_model_and_measured_in_bytes(deepseek):
    layers = moe_layers(deepseek)
    # layer 0 is dense; an expert has gate, up and down projections of 32 x 16 floats
    found = [(layer.number, layer.num_experts, layer.expert_bytes) for layer in layers]
    assert found == [(number, 8, 3 * 32 * 16 * 4) for number in (1, 2)]
    assert moe_layers(tiny_model("deepseek_v2", torch.bfloat16))[0].expert_bytes == 3 * 32 * 16 * 2


def test_a_dense_model_is_refused():
    config = AutoConfig.for_model("llama", vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    refused("no experts found in a model of type 'llama'", moe_layers, AutoModelForCausalLM.from_config(config))


def test_the_last_token_is_chosen_but_not_routed(deepseek):
    for given, one in zip(PROMPTS, routed(deepseek, decode_tokens=4), strict=True):
        assert one.experts_TLK.shape == (len(given.token_ids) + 4, 2, 3)
        assert (np.diff(one.weights_TLK, axis=-1) <= 0).all()
        assert tuple(one.token_ids_T[: one.num_prefill]) == given.token_ids


def test_hooks_are_gone_afterwards(deepseek):
    with (recorder := RoutingRecorder(moe_layers(deepseek))):
        pass
    deepseek(torch.tensor([[5, 6]]))
    with recorder:
        deepseek(torch.tensor([[5, 6, 7]]))
        assert recorder.take(1).experts_BCLK.shape == (1, 3, 2, 3)


def test_a_row_that_ends_early_is_cut_at_its_end_and_the_others_go_on(deepseek, monkeypatch):
    before = routed(deepseek, decode_tokens=6)
    # the end is now a token that the first row drew in the middle
    end = before[0].token_ids_T[before[0].num_prefill + 3]
    monkeypatch.setattr(deepseek.generation_config, "eos_token_id", int(end))
    lengths = []
    for one, other in zip(before, routed(deepseek, decode_tokens=6), strict=True):
        tokens = one.token_ids_T[one.num_prefill :].tolist()
        lengths.append(tokens.index(end) if end in tokens else len(tokens))
        kept = one.num_prefill + lengths[-1]
        np.testing.assert_array_equal(other.token_ids_T, one.token_ids_T[:kept])
        np.testing.assert_array_equal(other.experts_TLK, one.experts_TLK[:kept])
    assert lengths[0] < max(lengths) == 6, "no row went on; the test shows nothing"


def test_columns_of_a_padded_batch():
    prompts = [prompt("a", 4, 5), prompt("b", 6)]
    right, left = pad(prompts, 0, "right"), pad(prompts, 0, "left")
    assert (right.ids_BC.tolist(), right.mask_BC.tolist()) == ([[4, 5], [6, 0]], [[1, 1], [1, 0]])
    assert (left.ids_BC.tolist(), left.mask_BC.tolist()) == ([[4, 5], [0, 6]], [[1, 1], [0, 1]])
    sequences = torch.tensor([[4, 5, 8, 1, 0], [0, 6, 9, 8, 7]])
    assert [columns.tolist() for columns in real_columns(left, sequences, [1])] == [[0, 1, 2], [1, 2, 3]]


@pytest.mark.parametrize(("top_p", "kept"), [(1.0, 5), (0.7, 2)])
def test_sampling_follows_the_distribution_and_top_p_drops_its_tail(top_p, kept):
    # 4000 prompts draw one token each from the same logits
    sampler = SeededSampler([str(number) for number in range(4000)], seed=1, temperature=1.0, top_p=top_p)
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    scores = sampler(torch.zeros(4000, 1), probabilities.log().expand(4000, -1))
    drawn = torch.bincount(scores.argmax(-1), minlength=5) / 4000
    probabilities[kept:] = 0
    # four standard deviations of the commonest token's share
    torch.testing.assert_close(drawn, probabilities / probabilities.sum(), atol=4 * (0.25 / 4000) ** 0.5, rtol=0)
    assert torch.isfinite(scores).sum(-1).eq(1).all()


def test_seed_and_prompt_decide_what_is_sampled(deepseek):
    first, again, other = (
        [one.token_ids_T.tolist() for one in routed(deepseek, seed=seed, decode_tokens=12)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_greedy_takes_the_likeliest_token(deepseek):
    one = routed(deepseek, decode_tokens=3, decoding="greedy")[0]
    with torch.inference_mode():
        logits = deepseek(torch.tensor([one.token_ids_T.tolist()])).logits[0]
    start = one.num_prefill
    assert one.token_ids_T[start:].tolist() == logits[start - 1 : -1].argmax(-1).tolist()


class ListedBlock(nn.Module):
    """A block as models with their own code write it: experts in a list, called one by one."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(4))
        self.gate = nn.Linear(8, 4, bias=False)
        self.gate.register_forward_hook(lambda _gate, _hidden, logits: tuple(logits.softmax(-1).topk(2)))

    def forward(self, hidden):
        weights, ids = self.gate(hidden)
        out = torch.zeros_like(hidden)
        for expert, module in enumerate(self.experts):
            rows, slots = torch.where(ids == expert)
            out[rows] += weights[rows, slots, None] * module(hidden[rows])
        return out


@pytest.fixture
def listed():
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(layers=nn.Sequential(ListedBlock(), ListedBlock())))
    model.config = SimpleNamespace()
    return model


def test_experts_in_a_list_are_read_from_their_router(listed):
    layers = moe_layers(listed)
    assert [(layer.number, layer.num_experts, layer.expert_bytes) for layer in layers] == [(0, 4, 256), (1, 4, 256)]
    hidden = torch.randn(6, 8)
    with torch.no_grad(), RoutingRecorder(layers) as recorder:
        listed(hidden)
        captured = recorder.take(1).experts_BCLK[0, :, 1]
    for expert in range(4):
        poisoned = copy.deepcopy(listed)
        with torch.no_grad():
            poisoned.layers[1].experts[expert].weight.fill_(torch.nan)
            assert torch.equal(poisoned(hidden).isnan().any(-1), (captured == expert).any(-1))


def test_a_router_that_gives_weights_alone_is_refused(listed):
    listed.layers[0].gate.register_forward_hook(lambda _module, _hidden, returned: returned[0])
    with RoutingRecorder(moe_layers(listed)):
        refused(r"layers\.0\.experts returns no expert ids", listed, torch.randn(2, 8))
