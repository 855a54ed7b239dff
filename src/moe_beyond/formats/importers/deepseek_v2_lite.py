"""The shape of DeepSeek-V2-Lite, for formats that say nothing about the model."""

from __future__ import annotations

from moe_beyond.traces.schema import TraceMetadata

NUM_EXPERTS, TOP_K = 64, 6
LAYER_NUMBERS = tuple(range(1, 27))


def metadata(model_id: str, bytes_per_weight: int, source: str, licence: str) -> TraceMetadata:
    """Metadata of a trace of given texts, all MoE layers of the model."""
    # gate, up and down projection of a routed expert, hidden size 2048 x expert width 1408
    expert_bytes = bytes_per_weight * 3 * 2048 * 1408
    return TraceMetadata(
        model_id=model_id,
        layer_numbers=LAYER_NUMBERS,
        num_experts=NUM_EXPERTS,
        top_k=TOP_K,
        expert_bytes=(expert_bytes,) * len(LAYER_NUMBERS),
        decoding="teacher-forced",
        source=source,
        licence=licence,
    )
