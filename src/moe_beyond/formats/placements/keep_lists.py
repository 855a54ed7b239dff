"""0xBakeer's `coverage.json`: counts from which its engine keeps the most used experts of each layer, and no others.

`{"per_layer": {"0": {"used", "cov", "counts"}, ...}}`: experts that were used, the share of uses that the n most used
hold for every n, and the uses of each. The engine keeps ceil(PRUNE_KEEP * E) of each layer; what is not kept cannot be
chosen, so that the model's outputs change (docs/keep-sets.md@1b9613c6). Its reader was not seen: the keys are those of
results/keepsets/topics/coverage.json@0070a3ce. All of its model's layers have experts.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.formats.placements.options import Options
from moe_beyond.formats.placements.placement import ModelShape, Placement
from moe_beyond.formats.placements.strict import counts_of_layers, json_of, one_key, table_of


def said(placement: Placement, _options: Options) -> list[list[int]]:
    """Counts of each layer."""
    return placement.rows_of_model


def render(counts: list[list[int]], placement: Placement, _options: Options) -> bytes:
    """The file; raises InputError for a model with dense layers."""
    placement.model.require_no_dense_layers("coverage.json")
    _ = placement.slots_of_each
    per_layer = {str(layer): _facts(row) for layer, row in enumerate(counts)}
    return json.dumps({"per_layer": per_layer}).encode()


def parse(data: bytes, model: ModelShape, _options: Options) -> list[list[int]]:
    """The counts of each layer; refuses facts that do not follow from them."""
    model.require_no_dense_layers("coverage.json")
    per_layer = one_key(json_of(data), "per_layer")
    names = [str(layer) for layer in range(model.model_layers)]
    if not isinstance(per_layer, dict) or list(per_layer) != names:
        raise InputError(f"per_layer: expected layers 0 to {model.model_layers - 1} in order")
    entries = [entry if isinstance(entry, dict) else {} for entry in per_layer.values()]
    counts = table_of([entry.get("counts") for entry in entries], len(names), model.num_experts, "counts")
    counts_of_layers(counts, model.layer_numbers)
    for name, entry, row in zip(names, entries, counts, strict=True):
        if entry != _facts(row):
            raise InputError(f"layer {name}: 'used' and 'cov' do not follow from 'counts', or there are other keys")
    return counts


def _facts(counts: list[int]) -> dict[str, Any]:
    ordered = np.sort(np.asarray(counts, np.int64))[::-1]
    covered = np.cumsum(ordered) / ordered.sum()
    return {"used": int((ordered > 0).sum()), "cov": covered.tolist(), "counts": counts}
