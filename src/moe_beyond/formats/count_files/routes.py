"""Counts of a vLLM route log, whose prompts cannot be told apart; the engine's profile pass is left out."""

from __future__ import annotations

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.formats.count_files.text_counts import require_size
from moe_beyond.formats.counts import ExpertCounts
from moe_beyond.formats.importers.engine_log import whole
from moe_beyond.formats.importers.model_config import ShapeOverride
from moe_beyond.formats.importers.vllm_routes import parse_log


def route_log(data: bytes, where: str, override: ShapeOverride) -> ExpertCounts:
    """Counts of the layers that were logged. Raises InputError naming the line that breaks a rule."""
    rows, meta = parse_log(data, where)
    num_experts = override.num_experts or meta.get("num_experts")
    if num_experts is None:
        raise InputError(f"{where}: its meta line has no num_experts; give --num-experts")
    num_experts = whole(num_experts, "num_experts", where)
    layers, layer_R = np.unique(rows.layer_R, return_inverse=True)
    require_size(len(layers), num_experts, where)
    wrong = ((rows.experts_RK < 0) | (rows.experts_RK >= num_experts)).any(axis=1)
    if wrong.any():
        raise InputError(
            f"{rows.at(int(np.argmax(wrong)))}: an expert outside 0 to {num_experts - 1}; check num_experts"
        )
    counts_LE = np.zeros((len(layers), num_experts), np.int64)
    np.add.at(counts_LE, (layer_R[:, None], rows.experts_RK), 1)
    model = str(meta.get("model_id") or "unknown")[:200]
    return ExpertCounts(model, tuple(layers.tolist()), counts_LE, "vLLM route log", rows.experts_RK.shape[1])
