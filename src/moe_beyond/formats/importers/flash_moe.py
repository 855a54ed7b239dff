"""flash-moe's JSON Lines (`LLAMA_FLASH_MOE_TRACE_OUTPUT`): an object a layer of a batch.

`{"layer", "n_tokens", "n_experts", "expert_ids", ...}`, where `n_experts` counts the ids of this call. For a batch of
several tokens they are the union of what its tokens use: which token used which is lost, so a prompt's prefill is left
out, and a trace holds decoded tokens alone, prompts divided by such batches. `{"label": ...}` is not read. Layers are
those of the model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.engine_log import Table, json_lines, read_logs, whole, whole_list
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride
from moe_beyond.formats.importers.passes import Passes
from moe_beyond.traces.schema import Trace


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the `.jsonl` files of a folder or archive, or one file. Raises InputError as `read_logs`."""
    return read_logs(source, domain, override, suffix=".jsonl", parse=_parse, origin="flash-moe trace")


def _parse(data: bytes, where: str) -> Passes:
    places, ids, begins = Table(where), Table(where), True
    for number, fields in json_lines(data, where):
        at = f"{where}: line {number}"
        if "label" in fields:
            continue
        layer, tokens = (whole(fields.get(name), name, at) for name in ("layer", "n_tokens"))
        experts = whole_list(fields.get("expert_ids"), "expert_ids", at)
        if tokens < 1 or whole(fields.get("n_experts"), "n_experts", at) != len(experts):
            raise InputError(f"{at}: {tokens} tokens, {len(experts)} expert_ids; n_experts must be their number")
        if tokens > 1:
            begins = True
            continue
        places.add([number, layer, begins], number)
        ids.add(experts, number)
        begins = False
    if begins:
        raise InputError(f"{where}: no decoded tokens at its end: of a batch the format keeps no token's experts")
    number_R, layer_R, begins_R = places.array().T
    return Passes(
        where,
        layer_R,
        np.ones(len(number_R), np.int64),
        ids.array(),
        what="line",
        number_R=number_R,
        prefill_R=np.zeros(len(number_R), np.bool_),
        starts_R=begins_R > 0,
    )
