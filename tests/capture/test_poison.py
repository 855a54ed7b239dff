"""The proof that captured ids are the experts that computed: poison one expert, and exactly its tokens turn to NaN.

An expert of the last layer gets NaN weights. A token's logits are then NaN if and only if that expert worked on it,
whatever the architecture's router does, because nothing after the last layer mixes tokens.
"""

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.capture.generation import route_batch
from moe_beyond.capture.hooks import RoutingRecorder
from moe_beyond.capture.prompts import EncodedPrompt, pad
from moe_beyond.capture.settings import ExtractSettings
from tests.capture.tiny_models import ARCHITECTURES, tiny_model

LENGTHS = (5, 9, 2)
RNG = np.random.default_rng(3)
PROMPTS = [EncodedPrompt(f"p{n}", "test", False, tuple(RNG.integers(3, 64, n).tolist())) for n in LENGTHS]
DECODED = 5


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def poison(model):
    """Give an expert of the last MoE layer NaN weights; they are restored afterwards."""
    weights = list(moe_layers(model)[-1].experts.parameters())[-1]
    healthy = weights.detach().clone()

    def poison_one(expert):
        with torch.no_grad():
            weights.copy_(healthy)
            weights[expert] = torch.nan

    yield poison_one
    with torch.no_grad():
        weights.copy_(healthy)


@pytest.mark.parametrize("side", ["left", "right"])
def test_prefill_names_the_experts_that_computed(model, poison, side):
    layers = moe_layers(model)
    batch = pad(PROMPTS, 0, side)
    inputs = {"input_ids": batch.ids_BC, "attention_mask": batch.mask_BC}
    with torch.inference_mode(), RoutingRecorder(layers) as recorder:
        assert torch.isfinite(model(**inputs).logits).all()
        captured_BCK = recorder.take(len(PROMPTS)).experts_BCLK[:, :, -1]
    real_BC = batch.mask_BC.bool()
    for expert in range(layers[0].num_experts):
        poison(expert)
        with torch.inference_mode():
            poisoned_BC = model(**inputs).logits.isnan().any(-1)
        expected_BC = (captured_BCK == expert).any(-1)
        assert torch.equal(poisoned_BC & real_BC, expected_BC & real_BC), f"expert {expert}"


class Replay(LogitsProcessor):
    """Makes generate() follow given sequences and records which rows' logits are NaN at each step."""

    def __init__(self, sequences):
        self.sequences, self.nan_steps = sequences, []

    def __call__(self, input_ids, scores):
        following = torch.tensor([[sequence[len(self.nan_steps)]] for sequence in self.sequences])
        self.nan_steps.append(scores.isnan().any(-1))
        return torch.full_like(scores, -torch.inf).scatter_(1, following, 0.0)


def test_decode_names_the_experts_that_computed(model, poison, monkeypatch):
    for config in (model.generation_config, model.config):
        monkeypatch.setattr(config, "eos_token_id", None)
    routed = route(model, DECODED)
    decoded = [one.token_ids_T[length:].tolist() for one, length in zip(routed, LENGTHS, strict=True)]
    assert [len(tokens) for tokens in decoded] == [DECODED] * len(PROMPTS)
    batch = pad(PROMPTS, 0, "left")
    for expert in range(moe_layers(model)[0].num_experts):
        poison(expert)
        # one token more than was routed, so that the last routed one gives logits too
        replay = Replay([[*tokens, 3] for tokens in decoded])
        inputs = {"input_ids": batch.ids_BC, "attention_mask": batch.mask_BC, "max_new_tokens": DECODED + 1}
        model.generate(**inputs, do_sample=False, logits_processor=LogitsProcessorList([replay]))
        # the first logits are those of the prompt's last token
        poisoned = torch.stack(replay.nan_steps).T.numpy()
        for row, (one, length) in enumerate(zip(routed, LENGTHS, strict=True)):
            expected = (one.experts_TLK[length - 1 :, -1] == expert).any(-1)
            np.testing.assert_array_equal(poisoned[row], expected, err_msg=f"expert {expert}, prompt {row}")


def route(model, decode_tokens, prompts=PROMPTS):
    with RoutingRecorder(moe_layers(model), "all", model=model) as recorder:
        return route_batch(model, recorder, prompts, ExtractSettings(decode_tokens=decode_tokens), seed=1)


def test_decoding_routes_as_one_pass_over_the_same_text_whatever_the_neighbours(model):
    decoded = route(model, DECODED)
    texts = [EncodedPrompt(one.prompt_id, "test", False, tuple(one.token_ids_T.tolist())) for one in decoded]
    for one, forced in zip(decoded, route(model, 0, texts), strict=True):
        np.testing.assert_array_equal(one.experts_TLK, forced.experts_TLK)
        np.testing.assert_allclose(one.weights_TLK, forced.weights_TLK, atol=1e-4, rtol=1e-4)
        for name in ("gate_inputs_SYD", "layer_inputs_SYD", "final_states_SD"):
            expected = getattr(forced.hidden, name)
            np.testing.assert_allclose(getattr(one.hidden, name), expected, atol=2e-2, rtol=2e-2, err_msg=name)
    for one, prompt in zip(decoded, PROMPTS, strict=True):
        (alone,) = route(model, DECODED, [prompt])
        np.testing.assert_array_equal(one.token_ids_T, alone.token_ids_T)
        np.testing.assert_array_equal(one.experts_TLK, alone.experts_TLK)
