"""lattice's JSON Lines: an object a token and layer, `{"layer_idx", "token_idx", "selected_ids", "gate_weights"}`.

Layers are read as those of the model; `--moe-layers` names others. Prefill is not marked.
"""

from __future__ import annotations

from pathlib import Path

from moe_beyond.formats.importers.engine_log import Table, json_lines, number_list, read_logs, whole, whole_list
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride
from moe_beyond.formats.importers.rows import Rows
from moe_beyond.traces.schema import Trace


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the `.jsonl` files of a folder or archive, or one file. Raises InputError as `read_logs`."""
    return read_logs(source, domain, override, suffix=".jsonl", parse=_parse, origin="lattice routing trace")


def _parse(data: bytes, where: str) -> Rows:
    return json_rows(data, where, ("token_idx", "layer_idx", "selected_ids", "gate_weights"))


def json_rows(data: bytes, where: str, names: tuple[str, str, str, str | None]) -> Rows:
    """Objects that name token, layer, experts and perhaps weights by these keys."""
    token, layer, experts, gates = names
    places, ids, weights = Table(where), Table(where), Table(where, "f")
    for number, fields in json_lines(data, where):
        at = f"{where}: line {number}"
        places.add([number, whole(fields.get(token), token, at), whole(fields.get(layer), layer, at)], number)
        ids.add(whole_list(fields.get(experts), experts, at), number)
        if gates is not None:
            weights.add(number_list(fields.get(gates), gates, at), number)
    number_R, token_R, layer_R = places.array().T
    return Rows(
        where,
        lambda row: f"{where}: line {number_R[row]}",
        token_R,
        layer_R,
        ids.array(),
        None if gates is None else weights.array(),
    )
