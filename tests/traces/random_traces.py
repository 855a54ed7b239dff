"""Traces of pure chance, and traces of given experts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_beyond.traces import schema
from moe_beyond.traces.schema import RoutedPrompt, Trace, TraceMetadata, validate


def random_trace(lengths: list[int], layers: int = 2, experts: int = 8, top_k: int = 2, seed: int = 0) -> Trace:
    """Experts drawn evenly, without repetition in a token."""
    return trace_of(random_experts((sum(lengths), layers), experts, top_k, seed), lengths, experts)


def random_experts(shape: tuple[int, ...], experts: int, top_k: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Distinct experts, [*shape, top_k]."""
    every = np.broadcast_to(np.arange(experts), (*shape, experts))
    return np.random.default_rng(seed).permuted(every, axis=-1)[..., :top_k]


def trace_of(experts_TLK: npt.NDArray[np.integer], lengths: list[int], num_experts: int) -> Trace:
    """A valid trace of these experts, prompts of the given lengths; all tokens are prefill."""
    _, layers, top_k = experts_TLK.shape
    metadata = TraceMetadata(
        model_id="m",
        layer_numbers=tuple(range(1, layers + 1)),
        num_experts=num_experts,
        top_k=top_k,
        expert_bytes=(2**20,) * layers,
        source="s",
        licence="l",
    )
    parts = np.split(experts_TLK, np.cumsum(lengths)[:-1])
    prompts = [RoutedPrompt(f"p{i}", "d", len(part), part) for i, part in enumerate(parts)]
    return validate(schema.trace_of(metadata, prompts), "test")
