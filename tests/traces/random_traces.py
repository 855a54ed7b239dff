"""Traces of pure chance, and traces of given experts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_beyond.traces.schema import Trace, TraceMetadata, empty_experts, validate


def random_trace(lengths: list[int], layers: int = 2, experts: int = 8, top_k: int = 2, seed: int = 0) -> Trace:
    """Experts drawn evenly, without repetition in a token."""
    rng = np.random.default_rng(seed)
    shape = (sum(lengths), layers, experts)
    ids = rng.permuted(np.broadcast_to(np.arange(experts), shape), axis=2)[:, :, :top_k]
    return trace_of(ids, lengths, experts)


def trace_of(experts_TLK: npt.NDArray[np.integer], lengths: list[int], num_experts: int) -> Trace:
    """A valid trace of these experts, prompts of the given lengths; all tokens are prefill."""
    _, layers, top_k = experts_TLK.shape
    ids = empty_experts(experts_TLK.shape, num_experts)
    ids[...] = experts_TLK
    return validate(
        Trace(
            metadata=TraceMetadata(
                model_id="m",
                layer_numbers=tuple(range(1, layers + 1)),
                num_experts=num_experts,
                top_k=top_k,
                expert_bytes=(2**20,) * layers,
                source="s",
                licence="l",
            ),
            prompt_ids=tuple(f"p{i}" for i in range(len(lengths))),
            domains=("d",) * len(lengths),
            held_out_P=np.zeros(len(lengths), np.bool_),
            prompt_offsets=np.cumsum([0, *lengths]).astype(np.int64),
            num_prefill_P=np.array(lengths, np.int32),
            experts_TLK=ids,
        ),
        "test",
    )
