"""lucebox's hotness table (`DFLASH_<ARCH>_HOTNESS`, `<model>.gguf.spark.csv`): a row of counts for every layer.

`# hotness table: n_layer=L n_expert=E n_expert_used=k`, then L rows of E whole numbers; layers are numbered as in the
model, dense ones are rows of zeros (moe_hybrid_routing_stats.cpp@62880e20). Without the header the engine takes the
first row's width and k = 8.
"""

from __future__ import annotations

from moe_beyond.errors import InputError
from moe_beyond.formats.placements.options import Options
from moe_beyond.formats.placements.placement import ModelShape, Placement
from moe_beyond.formats.placements.strict import counts_of_layers, integer, lines_of


def said(placement: Placement, _options: Options) -> list[list[int]]:
    """Counts of every layer of the model."""
    return placement.rows_of_model


def render(counts: list[list[int]], placement: Placement, _options: Options) -> bytes:
    """The file."""
    lines = [
        _header(placement.model),
        "# format: one row per layer, columns are expert activation counts (expert 0..N-1)",
        *(",".join(map(str, row)) for row in counts),
    ]
    return ("\n".join(lines) + "\n").encode()


def parse(data: bytes, model: ModelShape, _options: Options) -> list[list[int]]:
    """The counts of every layer of the model."""
    first, *rest = lines_of(data)
    if first != _header(model):
        raise InputError(f"line 1: {first[:80]!r}, expected {_header(model)!r}")
    lines = [line for line in rest if not line.startswith("#")]
    if len(lines) != model.model_layers:
        raise InputError(f"{len(lines)} rows, the model has {model.model_layers} layers")
    counts = [[integer(part, f"row {row}") for part in line.split(",")] for row, line in enumerate(lines)]
    for row, values in enumerate(counts):
        if len(values) != model.num_experts:
            raise InputError(f"row {row}: {len(values)} counts, the model has {model.num_experts} experts")
    counts_of_layers(counts, model.layer_numbers)
    return counts


def _header(model: ModelShape) -> str:
    used = model.require_top_k("the hotness table")
    return f"# hotness table: n_layer={model.model_layers} n_expert={model.num_experts} n_expert_used={used}"
