"""SGLang's `--init-expert-location`, and the counts that KTransformers reads: tensors over all layers of the model.

JSON `{"logical_count": [L][E]}` or `{"physical_to_logical_map": [L][P]}` with P physical places, a multiple of the
ranks (compute_initial_expert_location_metadata, expert_location.py@01fec5c2); KTransformers ignores JSON with a warning
and reads `torch.save({"logical_count": tensor})`: [1, L, E] (kt_ep_wrapper.py@04653fa8), newer versions also [L, E],
which they refuse where a MoE layer has no counts. Dense layers are rows too: of zeros, and in a map of every place's
own expert.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from moe_beyond.errors import InputError, reason_of
from moe_beyond.formats.placements.options import Options
from moe_beyond.formats.placements.placement import ModelShape, Placement
from moe_beyond.formats.placements.strict import counts_of_layers, json_of, one_key, table_of

_COUNTS, _MAP = "logical_count", "physical_to_logical_map"


def said_counts(placement: Placement, _options: Options) -> list[list[int]]:
    """Counts of every layer of the model."""
    return placement.rows_of_model


def render_counts(counts: list[list[int]], _placement: Placement, _options: Options) -> bytes:
    """`logical_count` as JSON."""
    return json.dumps({_COUNTS: counts}).encode()


def parse_counts(data: bytes, model: ModelShape, _options: Options) -> list[list[int]]:
    """The counts of every layer of the model."""
    counts = table_of(one_key(json_of(data), _COUNTS), model.model_layers, model.num_experts, _COUNTS)
    counts_of_layers(counts, model.layer_numbers)
    return counts


def said_map(placement: Placement, options: Options) -> list[list[int]]:
    """Expert of each physical place: every expert once, and the slots of a layer once more for its most used ones.

    Copies are dealt to the ranks, the busiest first, each to the rank with the least to do that has a place left.
    """
    copies, ranks = placement.slots_of_each, options.expert_parallel
    num_experts = placement.counts.num_experts
    places = num_experts + copies
    if ranks < 1 or places % ranks:
        raise InputError(
            f"{num_experts} experts and {copies} copies do not divide by {ranks} ranks; choose another --slots"
        )
    plain = [place % num_experts for place in range(places)]
    rows = [plain] * placement.model_layers
    for layer, counts_E, order_E in zip(
        placement.counts.layer_numbers, placement.counts.counts_LE, placement.order_LE, strict=True
    ):
        copied_E = np.ones(num_experts, np.int64)
        copied_E[order_E[:copies]] = 2
        rows[layer] = _dealt(np.repeat(np.arange(num_experts), copied_E), counts_E / copied_E, ranks)
    return rows


def _dealt(experts: np.ndarray, load_E: np.ndarray, ranks: int) -> list[int]:
    held: list[list[int]] = [[] for _ in range(ranks)]
    work, room = [0.0] * ranks, len(experts) // ranks
    for expert in experts[np.argsort(-load_E[experts], kind="stable")].tolist():
        rank = min((rank for rank in range(ranks) if len(held[rank]) < room), key=lambda rank: work[rank])
        held[rank].append(expert)
        work[rank] += float(load_E[expert])
    return [expert for of_rank in held for expert in of_rank]


def render_map(rows: list[list[int]], _placement: Placement, _options: Options) -> bytes:
    """`physical_to_logical_map` as JSON."""
    return json.dumps({_MAP: rows}).encode()


def parse_map(data: bytes, model: ModelShape, options: Options) -> list[list[int]]:
    """The map of every layer of the model."""
    rows = table_of(one_key(json_of(data), _MAP), model.model_layers, None, _MAP)
    for layer, row in enumerate(rows):
        if set(row) != set(range(model.num_experts)):
            raise InputError(f"{_MAP}: layer {layer} does not name each of {model.num_experts} experts, and no other")
    if options.expert_parallel < 1 or len(rows[0]) % options.expert_parallel:
        raise InputError(f"{_MAP}: {len(rows[0])} places do not divide by {options.expert_parallel} ranks")
    return rows


def render_tensor(counts: list[list[int]], *, steps: bool) -> bytes:
    """`logical_count` as torch saves it: [L, E], or with `steps` [1, L, E]."""
    import torch  # noqa: PLC0415 - seconds; two formats of many need it

    tensor = torch.tensor(counts, dtype=torch.int64)
    buffer = io.BytesIO()
    torch.save({_COUNTS: tensor[None] if steps else tensor}, buffer)
    return buffer.getvalue()


def parse_tensor(data: bytes, model: ModelShape, *, steps: bool) -> list[list[int]]:
    """The counts of every layer of the model; only tensors are loaded, never other objects."""
    import torch  # noqa: PLC0415

    try:
        document: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises for damage is said nowhere
        raise InputError(f"no file of tensors alone: {reason_of(error)}") from error
    counts = one_key(document, _COUNTS)
    expected = (1,) * steps + (model.model_layers, model.num_experts)
    if not isinstance(counts, torch.Tensor) or tuple(counts.shape) != expected or counts.dtype != torch.int64:
        shape = (tuple(counts.shape), counts.dtype) if isinstance(counts, torch.Tensor) else type(counts).__name__
        raise InputError(f"{_COUNTS}: {shape}, expected whole numbers (int64) of shape {expected}")
    rows: list[list[int]] = counts.reshape(expected[-2:]).tolist()
    counts_of_layers(rows, model.layer_numbers)
    return rows
