"""A trace in numbers: for the command line, for dataset cards, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moe_beyond.traces.schema import Trace
from moe_beyond.traces.store import read_parquet

_OPTIONAL = {
    "weights_TLK": "weights",
    "token_ids_T": "token_ids",
    "token_texts": "token_texts",
    "predicted_TLK": "predicted_experts",
}


def describe(trace: Trace) -> dict[str, Any]:
    """What a trace holds, ready for JSON: the model's shape, counts by phase and domain, optional columns, origin."""
    meta = trace.metadata
    lengths = np.diff(trace.prompt_offsets)
    prefill = int(trace.num_prefill_P.sum())
    domains: dict[str, dict[str, Any]] = {}
    for domain, tokens, held_out in zip(trace.domains, lengths.tolist(), trace.held_out_P.tolist(), strict=True):
        entry = domains.setdefault(domain, {"prompts": 0, "tokens": 0, "held_out": False})
        entry["prompts"] += 1
        entry["tokens"] += tokens
        entry["held_out"] |= held_out
    return {
        "model_id": meta.model_id,
        "model_revision": meta.model_revision,
        "moe_layers": list(meta.layer_numbers),
        "num_experts": meta.num_experts,
        "top_k": meta.top_k,
        "model_experts": meta.num_model_experts,
        "token_cycle_experts": meta.token_cycle,
        "expert_bytes_min": min(meta.expert_bytes),
        "expert_bytes_max": max(meta.expert_bytes),
        "experts_mib": sum(meta.expert_bytes) * meta.num_experts / 2**20,
        "prompts": trace.num_prompts,
        "tokens": trace.num_tokens,
        "prefill_tokens": prefill,
        "decode_tokens": trace.num_tokens - prefill,
        "prompt_tokens_median": float(np.median(lengths)),
        "prompt_tokens_max": int(lengths.max()),
        "activations": int(trace.experts_TLK.size),
        "columns": [name for field, name in _OPTIONAL.items() if getattr(trace, field) is not None],
        "domains": domains,
        "decoding": meta.decoding,
        "source": meta.source,
        "licence": meta.licence,
        "schema_version": meta.schema_version,
    }


def describe_path(path: Path) -> dict[str, Any]:
    """As `describe`, for a Parquet file or a directory of them, with its size.

    Raises:
        InputError: As `store.read_parquet`.
    """
    description = describe(read_parquet(path))
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    return description | {
        "files": len(files),
        "file_bytes": size,
        "bytes_per_activation": size / description["activations"],
    }
