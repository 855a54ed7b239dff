"""A tiny model, the store of its experts, and texts of chance."""

from types import SimpleNamespace

import numpy as np

from moe_beyond.capture.prompts import EncodedPrompt
from moe_beyond.live.packing import pack_model
from moe_beyond.live.store import ExpertStore
from tests.capture.capture_case import tiny_tokenizer
from tests.capture.tiny_models import tiny_model


def live_case(folder, architecture="mixtral", num_texts=3, length=14):
    model = tiny_model(architecture)
    pack_model(model, folder, model_id=architecture, revision="r")
    rng = np.random.default_rng(5)
    texts = [EncodedPrompt(f"t{i}", "d", False, tuple(rng.integers(3, 64, length).tolist())) for i in range(num_texts)]
    return SimpleNamespace(model=model, store=ExpertStore.open(folder), tokenizer=tiny_tokenizer(), texts=texts)
