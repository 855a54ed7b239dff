"""Traces of pure chance, and traces of given experts."""

import numpy as np

from moe_beyond.traces import schema
from moe_beyond.traces.schema import RoutedPrompt, TraceMetadata, validate


def random_trace(lengths, layers=2, experts=8, top_k=2, seed=0):
    """Experts drawn evenly, without repetition in a token."""
    return trace_of(random_experts((sum(lengths), layers), experts, top_k, seed), lengths, experts)


def random_experts(shape, experts, top_k, seed=0):
    """Distinct experts, [*shape, top_k]."""
    every = np.broadcast_to(np.arange(experts), (*shape, experts))
    return np.random.default_rng(seed).permuted(every, axis=-1)[..., :top_k]


def trace_of(experts_TLK, lengths, num_experts):
    """A valid trace of these experts, prompts of the given lengths; all tokens are prefill."""
    _, layers, top_k = experts_TLK.shape
    shape = {"layer_numbers": tuple(range(1, layers + 1)), "num_experts": num_experts, "top_k": top_k}
    names = {"model_id": "m", "source": "s", "licence": "l"}
    metadata = TraceMetadata(**shape, **names, expert_bytes=(2**20,) * layers)
    parts = np.split(experts_TLK, np.cumsum(lengths)[:-1])
    prompts = [RoutedPrompt(f"p{i}", "d", len(part), part) for i, part in enumerate(parts)]
    return validate(schema.trace_of(metadata, prompts), "test")
