"""Route logs of vLLM loggers: JSON Lines, a `meta` object, then a `route` object a token and layer.

`{"type": "route", "req_id", "token_idx", "layer", "topk_ids", "topk_weights"}`. The first rows are the engine's own
profile pass, dummy tokens that are all routed alike: a leading run of at least 16 equal rows of a layer is left out.
Loggers that write one `req_id` for all requests do not say where a prompt begins, and their batches mix requests: such
a log is no trace. Its counts are read as such (`moe-beyond assess`). Only the layers of `layers_logged` are there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.engine_log import (
    Table,
    json_lines,
    number_list,
    read_logs,
    whole,
    whole_list,
)
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride
from moe_beyond.formats.importers.rows import Rows
from moe_beyond.traces.schema import Trace

PROFILE_ROWS = 16
"""Leading rows of a layer that are equal, from which on they are taken for the engine's profile pass."""


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the `.jsonl` files of a folder or archive, or one file, whose requests have ids of their own.

    Raises:
        InputError: One id for all tokens; and as `read_logs`.
    """
    return read_logs(source, domain, override, suffix=".jsonl", parse=_parse, origin="vLLM route log")


def _parse(data: bytes, where: str) -> Rows:
    rows, _ = parse_log(data, where)
    if len(rows.names) < 2:
        raise InputError(
            f"{where}: one req_id, {rows.names[0]!r:.40}, for all {len(rows.token_R)} rows: prompts cannot be told "
            "apart, and none are invented; as counts `moe-beyond assess` reads it, or log an id for each request"
        )
    return rows


def parse_log(data: bytes, where: str) -> tuple[Rows, dict[str, Any]]:
    """The rows behind the profile pass, and the fields of the `meta` object.

    Raises:
        InputError: A line that is neither, or no rows behind the profile pass.
    """
    meta: dict[str, Any] = {}
    places, ids, weights = Table(where), Table(where), Table(where, "f")
    place: dict[str, int] = {}
    for number, fields in json_lines(data, where):
        at = f"{where}: line {number}"
        if fields.get("type") == "meta":
            meta = fields
            continue
        if fields.get("type") != "route":
            raise InputError(f"{at}: type is {fields.get('type')!r:.40}, expected meta or route")
        request = place.setdefault(str(fields.get("req_id"))[:200], len(place))
        token, layer = (whole(fields.get(name), name, at) for name in ("token_idx", "layer"))
        places.add([number, request, token, layer], number)
        ids.add(whole_list(fields.get("topk_ids"), "topk_ids", at), number)
        weights.add(number_list(fields.get("topk_weights"), "topk_weights", at), number)
    ids_RK = ids.array()
    number_R, request_R, token_R, layer_R = places.array().T
    kept = np.flatnonzero(~_profile_pass(ids_RK, layer_R))
    if not len(kept):
        raise InputError(f"{where}: no routes behind the engine's profile pass; log requests")
    # requests whose every row was the profile pass's are none
    requests, prompt_R = np.unique(request_R[kept], return_inverse=True)
    names = list(place)
    rows = Rows(
        where,
        lambda row: f"{where}: line {number_R[kept[row]]}",
        token_R[kept],
        layer_R[kept],
        ids_RK[kept],
        weights.array()[kept],
        prompt_R=prompt_R,
        names=[names[request] for request in requests.tolist()],
    )
    return rows, meta


def _profile_pass(ids_RK: Any, layer_R: Any) -> Any:
    """True for the leading rows of each layer that are equal, where there are `PROFILE_ROWS` or more."""
    profile_R = np.zeros(len(layer_R), np.bool_)
    for layer in np.unique(layer_R):
        rows = np.flatnonzero(layer_R == layer)
        differs = (ids_RK[rows] != ids_RK[rows[0]]).any(axis=1)
        run = int(np.argmax(differs)) if differs.any() else len(rows)
        if run >= PROFILE_ROWS:
            profile_R[rows[:run]] = True
    return profile_R
