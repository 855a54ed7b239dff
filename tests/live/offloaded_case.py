"""A tiny model run twice, whole and with its experts behind a cache, over the same tokens."""

from dataclasses import dataclass

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

SETTINGS = ExtractSettings(decode_tokens=8)


def live_prompts(count=3):
    rng = np.random.default_rng(5)
    return [EncodedPrompt(f"p{i}", "d", False, tuple(rng.integers(3, 64, 6 + 2 * i).tolist())) for i in range(count)]


@dataclass
class LiveCase:
    """`make` returns the model anew; its experts are packed under `folder`."""

    make: object
    folder: object

    def __post_init__(self):
        self.model, self.prompts, self.tokenizer = self.make(), live_prompts(), tiny_tokenizer()
        pack_model(self.model, self.folder / "store", model_id="tiny", revision="r")
        self.store = ExpertStore.open(self.folder / "store")
        self.meta = metadata_of(self.model, self.store)
        self.full = decode(self.model, self.tokenizer, self.prompts, None, SETTINGS, seed=3, keep_logits=True)
        self.given = [decoded.token_ids_T.tolist()[:-1] for decoded in self.full]

    def trace(self):
        with RoutingRecorder(moe_layers(self.model)) as recorder:
            captured = [route_batch(self.model, recorder, [prompt], SETTINGS, 3)[0] for prompt in self.prompts]
        return validate(trace_of(self.meta, captured), "tiny")

    def run(self, policy, capacity, online=None):
        """What is decoded, teacher-forced by the whole model's text, and what the cache counted."""
        model, budget = self.make(), policy.budget(self.meta, capacity)
        with offloaded(model, self.store, policy, budget, len(self.prompts), online=online) as experts:
            options = {"seed": 3, "keep_logits": True, "given": self.given}
            return decode(model, self.tokenizer, self.prompts, experts, SETTINGS, **options), experts.cache.result()

    def difference(self, decoded):
        """Greatest difference of logits from the whole model's."""
        pairs = zip(self.full, decoded, strict=True)
        return max(float((torch.stack(a.logits_TV) - torch.stack(b.logits_TV)).abs().max()) for a, b in pairs)
