"""lucebox's `--collect-routing`: a binary record a token and layer, with the router's input.

Little-endian, without a header: i32 layer, i32 k, hidden x f32 input, k x i32 id. The file does not say how wide the
input is: config.json or `--hidden-size` does. Layers are those of the model. The trace keeps the inputs as gate inputs.
Prefill is not marked. Layout: Luce-Org/lucebox, moe_routing_collector.h; no file that the engine wrote was at hand.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.engine_log import fixed_records, read_logs
from moe_beyond.formats.importers.layer_keys import integer
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride, config_beside
from moe_beyond.formats.importers.passes import Passes
from moe_beyond.formats.importers.routed import half
from moe_beyond.traces.schema import Trace

_WIDEST = 2**20


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the `.bin` files of a folder or archive, or one file.

    Raises:
        InputError: Neither config nor option says the width of the hidden states; and as `half` and `read_logs`.
    """
    parse = partial(_parse, hidden=_hidden(source, override))
    return read_logs(source, domain, override, suffix=".bin", parse=parse, origin="lucebox --collect-routing")


def _hidden(source: Path, override: ShapeOverride) -> int:
    config = config_beside(source)
    if not override.hidden_size and not config:
        raise InputError(f"{source}: holds hidden states; give --hidden-size, or the model's config.json")
    hidden = override.hidden_size or integer(config, ("hidden_size",), str(source))
    if not 1 <= hidden <= _WIDEST:
        raise InputError(f"hidden size {hidden}: expected 1 to {_WIDEST}")
    return hidden


def _parse(data: bytes, where: str, *, hidden: int) -> Passes:
    fields = [("layer", "<i4"), ("k", "<i4"), ("input", "<f4", (hidden,))]
    records = fixed_records(data, lambda k: [*fields, ("ids", "<i4", (k,))], where)
    return Passes(
        where,
        records["layer"].astype(np.int64),
        np.ones(len(records), np.int64),
        records["ids"],
        hidden_AD=half(records["input"], where),
        whole_layers=False,
        unmarked=True,
    )
