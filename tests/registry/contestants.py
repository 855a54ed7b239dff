"""Scores drawn from a seed, for the gate: what a contestant costs and hits on each prompt of two splits."""

import numpy as np

from moe_beyond.intervals import Ratio
from moe_beyond.predictor.latency import Latency
from moe_beyond.registry.contest import Score


def drawn_score(name="challenger", *, faster=0.0, hits=0.5, latency_ms=0.1, worse_abroad=0.0, prompts=40, seed=3):
    """Milliseconds vary by prompt, the same for every contestant of a seed, and `faster` takes a share of them off."""
    splits = {}
    for number, split in enumerate(("gate_in_domain", "gate_out_of_domain")):
        rng = np.random.default_rng(seed + number)
        tokens_P = rng.integers(5, 30, prompts).astype(float)
        rate = hits - worse_abroad * number
        splits[split] = {
            "ms_per_token": Ratio(tokens_P * rng.normal(10, 2, prompts) * (1 - faster), tokens_P),
            "hit_rate": Ratio(rate * tokens_P, tokens_P),
            "recall_at_k": Ratio(0.8 * tokens_P, tokens_P),
            "layer_recall_at_k": Ratio(0.85 * tokens_P, tokens_P),
        }
    return Score(name, None, Latency(latency_ms, latency_ms / 20, 0.01), splits)
