"""A tiny model with its tokenizer on disk, and a capture of it, for tests that start processes."""

import numpy as np

from moe_beyond.capture.models import ModelSource
from moe_beyond.capture.prompts import EncodedPrompt
from moe_beyond.capture.reference.corpus import Document
from moe_beyond.capture.reference.model import train_tokenizer
from moe_beyond.capture.settings import ExtractSettings
from moe_beyond.capture.shards import CaptureJob, capture
from tests.capture.tiny_models import tiny_model

NUM_PROMPTS = 24
DEFAULTS = {"decode_tokens": 6, "batch_prompts": 2, "shard_prompts": 2, "hidden_states": "all", "hidden_share": 0.6}


def tiny_tokenizer():
    return train_tokenizer([Document("text", "a few words to learn from, and a few more words " * 3)], 300)


def save_tiny_model(folder, architecture="deepseek_v2", **config):
    """A model and a tokenizer; with the default vocabulary of 64, give the model ids and no text."""
    tiny_model(architecture, **config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def case_prompts(count=NUM_PROMPTS):
    rng = np.random.default_rng(5)
    return [
        EncodedPrompt(f"p{row:02d}", f"domain{row % 2}", row % 3 == 0, tuple(rng.integers(3, 64, 3 + row % 4).tolist()))
        for row in range(count)
    ]


def case_job(model, **settings):
    extract = ExtractSettings.model_validate(DEFAULTS | settings)
    return CaptureJob(ModelSource(str(model)), "tiny", "random", "none", extract, seed=3, threads=1)


def file_bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if not path.is_dir()}


def run_case(model, root, output):
    capture(case_job(model), case_prompts(), root, output)
