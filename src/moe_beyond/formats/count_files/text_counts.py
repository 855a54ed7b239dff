"""Counts in text: colibri's `.coli_usage` and lucebox's hotness CSV. Both number the model's layers.

- `.coli_usage`: lines of three numbers; `-1 layers experts`, `-2 1 hash`, then `layer expert count`, in any order.
  Layers without lines have no experts; the layer after the last is the draft head's (MTP) and left out.
  Layout: JustVugg/colibri, c/route_trace.h.
- hotness CSV: `# hotness table: n_layer=L n_expert=E n_expert_used=k`, further `#` lines, then L rows of E counts; a
  row of zeros is a layer without experts. Layout: Luce-Org/lucebox, moe_hybrid_routing_stats.cpp.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.counts import ExpertCounts
from moe_beyond.formats.importers.engine_log import lines_of
from moe_beyond.formats.importers.model_config import ShapeOverride

_MOST = 2**24
"""Experts of a whole model that a header may name."""


def coli_usage(data: bytes, where: str, override: ShapeOverride) -> ExpertCounts:
    """Counts of a `.coli_usage`. Raises InputError naming the line that breaks a rule."""
    sizes: set[tuple[int, int]] = set()
    counts: dict[tuple[int, int], int] = {}
    for number, line in lines_of(data, where):
        at = f"{where}: line {number}"
        if not re.fullmatch(r"[ \t]*-?[0-9]{1,18}([ \t]+[0-9]{1,18}){2}[ \t]*", line):
            raise InputError(f"{at}: {line!r:.60}, expected three whole numbers")
        layer, second, third = (int(cell) for cell in line.split())
        if layer == -1:
            sizes.add((second, third))
        elif layer < -2 or (layer == -2 and second != 1) or (layer, second) in counts:
            raise InputError(f"{at}: {line!r:.60}, expected version 1, layers from 0, and each expert of a layer once")
        elif layer >= 0:
            counts[layer, second] = third
    if not sizes and override.num_experts:
        sizes.add((max((layer for layer, _ in counts), default=0) + 1, override.num_experts))
    if len(sizes) != 1:
        raise InputError(f"{where}: {len(sizes)} lines '-1 layers experts', expected one; without, give --num-experts")
    ((num_layers, num_experts),) = sizes
    require_size(num_layers, num_experts, where)
    counts_LE = np.zeros((num_layers + 1, num_experts), np.int64)
    for (layer, expert), count in counts.items():
        if expert >= num_experts or layer > num_layers:
            raise InputError(f"{where}: layer {layer}, expert {expert}; the model has {num_layers} of {num_experts}")
        counts_LE[layer, expert] = count
    return without_empty("colibri .coli_usage", counts_LE[:num_layers], where)


def hotness(data: bytes, where: str, override: ShapeOverride) -> ExpertCounts:
    """Counts of a hotness CSV. Raises InputError naming the line that breaks a rule."""
    lines = list(lines_of(data, where))
    header = re.search(
        r"n_layer=([0-9]{1,6}) n_expert=([0-9]{1,6})(?: n_expert_used=([0-9]{1,6}))?", lines[0][1] if lines else ""
    )
    if header is None or not lines[0][1].startswith("#"):
        raise InputError(f"{where}: line 1: expected '# hotness table: n_layer=L n_expert=E n_expert_used=k'")
    num_layers, num_experts = int(header[1]), int(header[2])
    require_size(num_layers, num_experts, where)
    rows = []
    for number, line in lines:
        if line.startswith("#"):
            continue
        cells = line.split(",")
        if len(cells) != num_experts or not all(re.fullmatch(r"[ \t]*[0-9]{1,18}[ \t]*", cell) for cell in cells):
            raise InputError(f"{where}: line {number}: {len(cells)} fields, expected {num_experts} whole numbers")
        rows.append([int(cell) for cell in cells])
    if len(rows) != num_layers:
        raise InputError(f"{where}: {len(rows)} rows, the header says {num_layers}")
    return without_empty("lucebox hotness table", np.array(rows), where, int(header[3]) if header[3] else None)


def require_size(num_layers: int, num_experts: int, where: str) -> None:
    """Raise InputError unless a model can be of this size."""
    # before anything of that shape is allocated
    if num_layers < 1 or not 2 <= num_experts <= 65536 or num_layers * num_experts > _MOST:
        raise InputError(f"{where}: {num_layers} layers of {num_experts} experts: not a mixture of experts")


def without_empty(
    source: str, counts_LE: npt.NDArray[np.int64], where: str, top_k: int | None = None, model_id: str = "unknown"
) -> ExpertCounts:
    """Counts of the layers that have any; the others have no experts. Raises InputError if none has."""
    layers = np.flatnonzero(counts_LE.sum(axis=1))
    if not len(layers):
        raise InputError(f"{where}: no counts but zeros; nothing was recorded")
    return ExpertCounts(model_id, tuple(layers.tolist()), counts_LE[layers], source, top_k)
