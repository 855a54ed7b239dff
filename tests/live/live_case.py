"""A tiny model run twice, whole and with its experts behind a cache, over the same tokens."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.capture.generation import route_batch
from moe_beyond.capture.hooks import RoutingRecorder
from moe_beyond.capture.prompts import EncodedPrompt
from moe_beyond.capture.settings import ExtractSettings
from moe_beyond.live.decoding import decode
from moe_beyond.live.packing import pack_model
from moe_beyond.live.session import metadata_of, offloaded
from moe_beyond.live.store import ExpertStore
from moe_beyond.traces.schema import trace_of, validate
from tests.capture.capture_case import tiny_tokenizer
from tests.capture.tiny_models import tiny_model

SETTINGS = ExtractSettings(decode_tokens=7)
SEED = 3


def live_prompts(count=3):
    rng = np.random.default_rng(5)
    return [EncodedPrompt(f"p{i}", "d", False, tuple(rng.integers(3, 64, 4 + 3 * i).tolist())) for i in range(count)]


@dataclass
class LiveCase:
    """`make` returns the model anew; its experts are packed under `folder`.

    Attributes:
        model: Whole.
        store: Of its experts.
        full: What the model decodes in memory, with logits.
        trace: Captured from it, a prompt at a time.
    """

    make: object
    folder: object

    @classmethod
    def of(cls, architecture, folder, kernels="grouped_mm", **changes):
        """A random model of `tiny_models`, with an experts implementation of transformers."""

        def make():
            model = tiny_model(architecture, **changes)
            model.set_experts_implementation(kernels)
            return model

        return cls(make, folder)

    def __post_init__(self):
        self.model, self.prompts, self.tokenizer = self.make(), live_prompts(), tiny_tokenizer()
        pack_model(self.model, self.folder / "store", model_id=self.model.config.model_type, revision="r")
        self.store = ExpertStore.open(self.folder / "store")
        self.meta = metadata_of(self.model, self.store)

    @cached_property
    def full(self):
        return decode(self.model, self.tokenizer, self.prompts, None, SETTINGS, seed=SEED, keep_logits=True)

    @property
    def given(self):
        return [decoded.token_ids_T.tolist()[:-1] for decoded in self.full]

    @cached_property
    def trace(self):
        with RoutingRecorder(moe_layers(self.model)) as recorder:
            captured = [route_batch(self.model, recorder, [prompt], SETTINGS, SEED)[0] for prompt in self.prompts]
        return validate(trace_of(self.meta, captured), "tiny")

    def run(self, policy, capacity, online=None, *, teacher_forced=True, **options):
        """What is decoded, by default of the whole model's text, and what stood before the experts."""
        model, budget = self.make(), policy.budget(self.meta, capacity)
        # nothing may come from the model's own experts
        for layer in moe_layers(model):
            for parameter in layer.experts.parameters():
                parameter.data.fill_(torch.nan)
        given = self.given if teacher_forced else None
        with offloaded(model, self.store, policy, budget, len(self.prompts), online=online, **options) as experts:
            found = decode(
                model, self.tokenizer, self.prompts, experts, SETTINGS, seed=SEED, keep_logits=True, given=given
            )
        return found, experts

    def difference(self, decoded):
        """Greatest difference of logits from the whole model's."""
        pairs = zip(self.full, decoded, strict=True)
        return max(float((torch.stack(a.logits_TV) - torch.stack(b.logits_TV)).abs().max()) for a, b in pairs)
