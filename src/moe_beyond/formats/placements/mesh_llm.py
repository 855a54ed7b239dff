"""mesh-llm's ranking (`moe plan --ranking-file`): one row an expert id, over all layers, the heaviest first.

CSV `expert_id,total_mass,mass_fraction,selection_count`; mass is the router's weight, here each token's experts weigh
the same: counts say no more (moe.rs@08092523). The engine wants each id once; its cache skips rows that it cannot
parse.
"""

from __future__ import annotations

import math

from moe_beyond.errors import InputError
from moe_beyond.formats.placements.options import Options
from moe_beyond.formats.placements.placement import ModelShape, Placement
from moe_beyond.formats.placements.strict import integer, lines_of

_HEADER = "expert_id,total_mass,mass_fraction,selection_count"
Row = tuple[int, float, float, int]


def said(placement: Placement, _options: Options) -> list[Row]:
    """Id, mass, share of all mass and uses of each expert, as many digits as the file has."""
    uses_E = placement.counts.counts_LE.sum(axis=0).tolist()
    top_k = placement.model.require_top_k("the ranking")
    rows = [(expert, round(n / top_k, 6), round(n / sum(uses_E), 6), n) for expert, n in enumerate(uses_E)]
    return sorted(rows, key=lambda row: (-row[3], row[0]))


def render(rows: list[Row], _placement: Placement, _options: Options) -> bytes:
    """The file."""
    lines = (f"{expert},{mass:.6f},{share:.6f},{n}" for expert, mass, share, n in rows)
    return ("\n".join([_HEADER, *lines]) + "\n").encode()


def parse(data: bytes, model: ModelShape, _options: Options) -> list[Row]:
    """The rows; refuses an order that is not by mass, and masses that are not the uses over top-k."""
    header, *lines = lines_of(data)
    if header != _HEADER:
        raise InputError(f"line 1: {header[:60]!r}, expected {_HEADER!r}")
    rows = [_row(line, f"line {number}") for number, line in enumerate(lines, 2)]
    if sorted(row[0] for row in rows) != list(range(model.num_experts)):
        raise InputError(f"{len(rows)} rows do not name each of {model.num_experts} experts once")
    total = sum(row[3] for row in rows)
    if total <= 0 or rows != sorted(rows, key=lambda row: (-row[1], row[0])):
        raise InputError("rows are not in the order of their mass, or nothing was used")
    top_k = model.require_top_k("the ranking")
    for expert, mass, share, n in rows:
        if not (math.isclose(mass, n / top_k, abs_tol=1e-6) and math.isclose(share, n / total, abs_tol=1e-6)):
            raise InputError(f"expert {expert}: mass {mass} and share {share} do not belong to {n} of {total} uses")
    return rows


def _row(line: str, where: str) -> Row:
    parts = line.split(",")
    if len(parts) != 4:
        raise InputError(f"{where}: {len(parts)} columns, expected four")
    try:
        mass, share = float(parts[1]), float(parts[2])
    except ValueError as error:
        raise InputError(f"{where}: {parts[1][:40]!r} or {parts[2][:40]!r} is no number") from error
    count = integer(parts[3], where)
    if count < 0:
        raise InputError(f"{where}: the count is negative")
    return integer(parts[0], where), mass, share, count
