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
    json_lines,
    number_list,
    read_logs,
    rectangle,
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
    numbers: list[int] = []
    requests, tokens, layers, ids, weights = [], [], [], [], []
    for number, fields in json_lines(data, where):
        at = f"{where}: line {number}"
        if fields.get("type") == "meta":
            meta = fields
            continue
        if fields.get("type") != "route":
            raise InputError(f"{at}: type is {fields.get('type')!r:.40}, expected meta or route")
        numbers.append(number)
        requests.append(str(fields.get("req_id"))[:200])
        tokens.append(whole(fields.get("token_idx"), "token_idx", at))
        layers.append(whole(fields.get("layer"), "layer", at))
        ids.append(whole_list(fields.get("topk_ids"), "topk_ids", at))
        weights.append(number_list(fields.get("topk_weights"), "topk_weights", at))
    ids_RK = rectangle(ids, numbers, where, np.int64)
    layer_R = np.array(layers, np.int64)
    kept = np.flatnonzero(~_profile_pass(ids_RK, layer_R))
    if not len(kept):
        raise InputError(f"{where}: no routes behind the engine's profile pass; log requests")
    names = list(dict.fromkeys(requests[row] for row in kept.tolist()))
    place = {name: number for number, name in enumerate(names)}
    weights_RK = rectangle(weights, numbers, where, np.float64)
    rows = Rows(
        where,
        lambda row: f"{where}: line {numbers[int(kept[row])]}",
        np.array(tokens, np.int64)[kept],
        layer_R[kept],
        ids_RK[kept],
        weights_RK[kept],
        prompt_R=np.array([place[requests[row]] for row in kept.tolist()]),
        names=names,
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
