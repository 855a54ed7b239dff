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
from moe_beyond.formats.importers.engine_log import json_lines, read_logs, rectangle, whole, whole_list
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride
from moe_beyond.formats.importers.passes import Passes
from moe_beyond.traces.schema import Trace


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the `.jsonl` files of a folder or archive, or one file. Raises InputError as `read_logs`."""
    return read_logs(source, domain, override, suffix=".jsonl", parse=_parse, origin="flash-moe trace")


def _parse(data: bytes, where: str) -> Passes:
    numbers: list[int] = []
    layers, ids, starts, begins = [], [], [], True
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
        numbers.append(number)
        layers.append(layer)
        ids.append(experts)
        starts.append(begins)
        begins = False
    if not numbers:
        raise InputError(f"{where}: no decoded tokens: of a batch the format keeps no token's experts; record decoding")
    ones = np.ones(len(numbers), np.int64)
    return Passes(
        where,
        np.array(layers),
        ones,
        rectangle(ids, numbers, where, np.int64),
        what="line",
        number_R=np.array(numbers),
        prefill_R=np.zeros(len(numbers), np.bool_),
        starts_R=np.array(starts),
    )
