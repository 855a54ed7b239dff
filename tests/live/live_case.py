"""A tiny model of any architecture with its expert store, its captured trace, and what it computes in memory."""

from dataclasses import dataclass

import numpy as np
import torch

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.capture.generation import route_batch
from moe_beyond.capture.hooks import RoutingRecorder
from moe_beyond.capture.prompts import EncodedPrompt
from moe_beyond.capture.settings import ExtractSettings
from moe_beyond.live.decoding import Decoded, decode
from moe_beyond.live.packing import pack_model
from moe_beyond.live.session import metadata_of, offloaded
from moe_beyond.live.store import ExpertStore
from moe_beyond.traces.schema import Trace, trace_of, validate
from tests.capture.capture_case import tiny_tokenizer
from tests.capture.tiny_models import tiny_model

SETTINGS = ExtractSettings(decode_tokens=7)
SEED = 3
rng = np.random.default_rng(5)
PROMPTS = [EncodedPrompt(f"p{i}", "any", False, tuple(rng.integers(3, 64, 4 + 3 * i).tolist())) for i in range(3)]


@dataclass
class LiveCase:
    """One architecture.

    Attributes:
        name: Of `tiny_models.ARCHITECTURES`.
        kernels: The experts implementation of transformers.
        store: Of its experts.
        trace: Captured from the model in memory, a prompt at a time.
        decoded: What the model in memory decoded, with logits.
    """

    name: str
    kernels: str
    store: ExpertStore
    trace: Trace
    decoded: list[Decoded]

    @classmethod
    def of(cls, name, folder, kernels="grouped_mm"):
        model = cls.model_of(name, kernels)
        pack_model(model, folder, model_id=name, revision="random")
        store = ExpertStore.open(folder)
        captured = []
        with RoutingRecorder(moe_layers(model)) as recorder:
            for prompt in PROMPTS:
                captured += route_batch(model, recorder, [prompt], SETTINGS, SEED)
        trace = validate(trace_of(metadata_of(model, store), captured), name)
        whole = decode(model, tiny_tokenizer(), PROMPTS, None, SETTINGS, seed=SEED, keep_logits=True)
        return cls(name, kernels, store, trace, whole)

    @staticmethod
    def model_of(name, kernels):
        model = tiny_model(name)
        model.set_experts_implementation(kernels)
        return model

    def run(self, policy, capacity, *, online=None, **options):
        """Decode live; returns what was decoded, and what stood before the experts."""
        model, budget = self.model_of(self.name, self.kernels), policy.budget(self.trace.metadata, capacity)
        # nothing may come from the model's own experts
        for layer in moe_layers(model):
            for parameter in layer.experts.parameters():
                parameter.data.fill_(torch.nan)
        with offloaded(model, self.store, policy, budget, len(PROMPTS), online=online, **options) as experts:
            live = decode(model, tiny_tokenizer(), PROMPTS, experts, SETTINGS, seed=SEED, keep_logits=True)
        return live, experts

    def greatest_difference(self, live):
        """Of the logits of all passes from those of the model in memory."""
        assert [len(one.logits_TV) for one in live] == [len(one.logits_TV) for one in self.decoded]
        return max(
            float((ours - theirs).abs().max())
            for mine, whole in zip(live, self.decoded, strict=True)
            for ours, theirs in zip(mine.logits_TV, whole.logits_TV, strict=True)
        )
