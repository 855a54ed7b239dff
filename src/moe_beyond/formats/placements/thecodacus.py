"""The profile of thecodacus' llama.cpp: CSV `pos,layer,id0,id1,...`, as `llama-moe-trace` writes it.

The engine counts ids over rows with pos >= 0 and keeps the N most frequent of each layer, of equal ones the lower id
(init_moe_expert_cache, src/llama-model.cpp@063c563c). So each kept expert stands in every row of its layer. Layers are
numbered as in the model. The engine takes anything: rows that it cannot parse are skipped, ids out of range dropped,
layers without rows left out, and a file without rows turns the cache off.
"""

from __future__ import annotations

from moe_beyond.errors import InputError
from moe_beyond.formats.placements.options import Options
from moe_beyond.formats.placements.placement import ModelShape, Placement
from moe_beyond.formats.placements.strict import distinct_experts, integer, lines_of

ROWS = 2
"""Rows of each layer: an unreadable one alone loses no expert."""
_LINE_BYTES = 4096


def said(placement: Placement, _options: Options) -> list[list[int]]:
    """Experts that stay of each MoE layer; raises InputError unless all have as many."""
    _ = placement.slots_of_each
    return placement.kept


def render(kept: list[list[int]], placement: Placement, _options: Options) -> bytes:
    """The file; raises InputError for rows longer than the engine's buffer."""
    layers = list(zip(placement.counts.layer_numbers, kept, strict=True))
    rows = [",".join(map(str, (pos, layer, *experts))) + "\n" for pos in range(ROWS) for layer, experts in layers]
    if max(map(len, rows)) >= _LINE_BYTES:
        raise InputError(f"{placement.slots_of_each} experts make a row longer than the engine's {_LINE_BYTES} bytes")
    return "".join(rows).encode()


def parse(data: bytes, model: ModelShape, _options: Options) -> list[list[int]]:
    """Experts of each MoE layer, as the first rows list them."""
    found: dict[tuple[int, int], list[int]] = {}
    for number, line in enumerate(lines_of(data), 1):
        where = f"line {number}"
        if len(line) + 1 >= _LINE_BYTES:
            raise InputError(f"{where}: longer than the engine's buffer of {_LINE_BYTES} bytes")
        pos, layer, *experts = _numbers(line, where)
        if pos < 0 or layer not in model.layer_numbers:
            raise InputError(f"{where}: position {pos} of layer {layer} counts for no layer with experts")
        distinct_experts(experts, model.num_experts, where)
        if found.setdefault((pos, layer), experts) is not experts:
            raise InputError(f"{where}: position {pos} of layer {layer} stands there twice")
    positions = sorted({pos for pos, _ in found})
    kept = [found.get((positions[0], layer), []) for layer in model.layer_numbers]
    for pos in positions:
        if kept != [found.get((pos, layer), []) for layer in model.layer_numbers]:
            raise InputError(f"position {pos} does not list the experts of position {positions[0]} in every layer")
    if len({len(experts) for experts in kept}) != 1 or not kept[0]:
        raise InputError("layers do not list equally many experts; the engine has one number of slots for all")
    return kept


def _numbers(line: str, where: str) -> list[int]:
    parts = line.split(",")
    if len(parts) < 3:
        raise InputError(f"{where}: expected pos,layer,id0,...; found {line[:40]!r}")
    return [integer(part, where) for part in parts]
