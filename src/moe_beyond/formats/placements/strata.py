"""Strata's expert profile: STRP, and the JSON that other engines read in its place.

STRP, little-endian: "STRP", u32 version, layers, experts, slots and number of ranked pairs; the pairs (u16 layer, u16
expert), the most used first; then a float32 of each expert, its share of all uses, which the engine skips. Layers are
counted from 0 and all have experts. The reader, `read_expert_profile` of Niko1221/Strata src/core/expert_cache.cpp,
refuses pairs out of range and more pairs than slots; it checks neither version nor duplicates.

The JSON, `{"layers": [[ids, the most used first], ...]}`, has a list for each MoE layer and none for dense ones.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.formats.placements.options import Options
from moe_beyond.formats.placements.placement import ModelShape, Placement
from moe_beyond.formats.placements.strict import distinct_experts, json_of, one_key, table_of

_HEADER = struct.Struct("<4s5I")
_MAGIC, _VERSION = b"STRP", 1


def said(placement: Placement, _options: Options) -> dict[str, Any]:
    """Slots, pairs and shares."""
    counts_LE = placement.counts.counts_LE
    shares = (counts_LE / counts_LE.sum()).astype(np.float32)
    return {"slots": placement.num_kept, "pairs": placement.ranked, "shares": shares.tolist()}


def render(what: dict[str, Any], placement: Placement, _options: Options) -> bytes:
    """The file; raises InputError for a model with dense layers."""
    model = placement.model
    model.require_no_dense_layers("STRP")
    pairs = np.asarray(what["pairs"], "<u2")
    head = (_MAGIC, _VERSION, model.model_layers, model.num_experts, what["slots"], len(pairs))
    return _HEADER.pack(*head) + pairs.tobytes() + np.asarray(what["shares"], "<f4").tobytes()


def parse(data: bytes, model: ModelShape, _options: Options) -> dict[str, Any]:
    """What stands in a file for this model; raises InputError for what the engine refuses, and for what it does not."""
    model.require_no_dense_layers("STRP")
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise InputError("no STRP: the header is short or begins otherwise")
    _, version, layers, experts, slots, ranked = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise InputError(f"STRP version {version}, expected {_VERSION}; the engine would not notice")
    if (layers, experts) != (model.model_layers, model.num_experts):
        raise InputError(
            f"{layers} layers of {experts} experts, the model has {model.model_layers} of {model.num_experts}"
        )
    if ranked > slots:
        raise InputError(f"{ranked} ranked experts for {slots} slots")
    if len(data) != _HEADER.size + 4 * ranked + 4 * layers * experts:
        raise InputError(f"{len(data)} bytes do not hold {ranked} pairs and a number for each expert, and no more")
    pairs = np.frombuffer(data, "<u2", 2 * ranked, _HEADER.size).reshape(-1, 2).tolist()
    for layer, expert in pairs:
        if layer >= layers or expert >= experts:
            raise InputError(f"layer {layer}, expert {expert}: the model has none such")
    if len({tuple(pair) for pair in pairs}) != ranked:
        raise InputError("a pair of layer and expert stands there twice; the engine would not notice")
    shares = np.frombuffer(data, "<f4", layers * experts, _HEADER.size + 4 * ranked)
    if not (np.isfinite(shares) & (shares >= 0)).all():
        raise InputError("the shares are not all numbers from 0 up; a file that an engine saved holds ranks instead")
    return {"slots": slots, "pairs": [tuple(pair) for pair in pairs], "shares": shares.reshape(layers, -1).tolist()}


def said_json(placement: Placement, _options: Options) -> list[list[int]]:
    """Every expert of each MoE layer, the most used first."""
    return [order_E.tolist() for order_E in placement.order_LE]


def render_json(orders: list[list[int]], _placement: Placement, _options: Options) -> bytes:
    """The JSON twin."""
    return json.dumps({"layers": orders}).encode()


def parse_json(data: bytes, model: ModelShape, _options: Options) -> list[list[int]]:
    """What stands in the JSON twin; refuses lists with experts twice or missing, which engines take."""
    rows = table_of(one_key(json_of(data), "layers"), len(model.layer_numbers), model.num_experts, "layers")
    for layer, row in enumerate(rows):
        distinct_experts(row, model.num_experts, f"list {layer}")
    return rows
