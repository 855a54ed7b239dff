"""colibri's `.coli_usage`, read with `PIN=<file>`: triples of whole numbers, a line each.

`-1 layers experts`, `-2 1 hash` (FNV-1a of 32 bits over the engine's name), then `layer expert count` of every expert
that was used. Layers are numbered as in the model, dense ones have no lines (rt_read_ex, c/route_trace.h@003a0b9b). The
engine drops lines of layers and experts that it does not have, takes a file without header unchecked, and stops
silently at the first word that is no number.
"""

from __future__ import annotations

from moe_beyond.errors import InputError
from moe_beyond.formats.placements.options import Options
from moe_beyond.formats.placements.placement import ModelShape, Placement
from moe_beyond.formats.placements.strict import counts_of_layers, integer, lines_of

_VERSION = 1


def engine_hash(options: Options) -> int:
    """FNV-1a of the engine's name; raises InputError where none is given."""
    if not options.engine:
        raise InputError("a .coli_usage names colibri's engine for the model; give it, as --engine olmoe")
    value = 0x811C9DC5
    for byte in options.engine.encode():
        value = (value ^ byte) * 0x01000193 % 2**32
    return value


def said(placement: Placement, _options: Options) -> list[list[int]]:
    """Counts of every layer of the model."""
    return placement.rows_of_model


def render(counts: list[list[int]], placement: Placement, options: Options) -> bytes:
    """The file."""
    triples = [(-1, placement.model_layers, placement.model.num_experts), (-2, _VERSION, engine_hash(options))]
    triples += [(layer, expert, n) for layer, row in enumerate(counts) for expert, n in enumerate(row) if n]
    return "".join(f"{a} {b} {c}\n" for a, b, c in triples).encode()


def parse(data: bytes, model: ModelShape, options: Options) -> list[list[int]]:
    """The counts of every layer of the model."""
    rows = []
    for number, line in enumerate(lines_of(data), 1):
        parts = line.split(" ")
        if len(parts) != 3:
            raise InputError(f"line {number}: {len(parts)} words, expected three; the engine would stop here silently")
        rows.append([integer(part, f"line {number}") for part in parts])
    head = [[-1, model.model_layers, model.num_experts], [-2, _VERSION, engine_hash(options)]]
    if rows[:2] != head:
        raise InputError(f"begins {rows[:2]}; for this model and engine {options.engine!r} it must begin {head}")
    counts = [[0] * model.num_experts for _ in range(model.model_layers)]
    for number, (layer, expert, count) in enumerate(rows[2:], 3):
        if not (0 <= layer < model.model_layers and 0 <= expert < model.num_experts and count > 0):
            raise InputError(f"line {number}: layer {layer}, expert {expert}, count {count}: the engine would drop it")
        if counts[layer][expert]:
            raise InputError(f"line {number}: layer {layer}, expert {expert} stands there twice")
        counts[layer][expert] = count
    counts_of_layers(counts, model.layer_numbers)
    return counts
