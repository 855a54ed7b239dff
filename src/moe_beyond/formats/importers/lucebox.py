"""lucebox's `--collect-routing`: a binary record a token and layer, with the router's input.

Little-endian, without a header: i32 layer, i32 k, hidden x f32 input, k x i32 id. The file does not say how wide the
input is: config.json or `--hidden-size` does. Layers are those of the model. A trace has no place for the input, which
`--hidden-states` writes beside it. Prefill is not marked. Layout: Luce-Org/lucebox, moe_routing_collector.h.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.engine_log import fixed_records, read_logs, routed_logs
from moe_beyond.formats.importers.layer_keys import integer
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride, config_beside
from moe_beyond.formats.importers.passes import Passes
from moe_beyond.formats.importers.routed import half, joined_hidden
from moe_beyond.traces.schema import Trace

_WIDEST = 2**20


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the `.bin` files of a folder or archive, or one file.

    Raises:
        InputError: Neither config nor option says the width of the hidden states; and as `read_logs`.
    """
    parse = partial(_parse, hidden=_hidden(source, override), keep=False)
    return read_logs(source, domain, override, suffix=".bin", parse=parse, origin="lucebox --collect-routing")


def hidden_states(source: Path, override: ShapeOverride = NONE) -> npt.NDArray[np.float16]:
    """Routers' inputs, float16 [T, L, width], T as in the trace. Raises InputError as `read`, and as `half`."""
    parse = partial(_parse, hidden=_hidden(source, override), keep=True)
    _, files = routed_logs(source, override, ".bin", parse)
    return joined_hidden([routed for _, _, found in files for routed in found], str(source))


def _hidden(source: Path, override: ShapeOverride) -> int:
    config = config_beside(source)
    if not override.hidden_size and not config:
        raise InputError(f"{source}: holds hidden states; give --hidden-size, or the model's config.json")
    hidden = override.hidden_size or integer(config, ("hidden_size",), str(source))
    if not 1 <= hidden <= _WIDEST:
        raise InputError(f"hidden size {hidden}: expected 1 to {_WIDEST}")
    return hidden


def _parse(data: bytes, where: str, *, hidden: int, keep: bool) -> Passes:
    fields = [("layer", "<i4"), ("k", "<i4"), ("input", "<f4", (hidden,))]
    records = fixed_records(data, lambda k: [*fields, ("ids", "<i4", (k,))], where)
    return Passes(
        where,
        records["layer"].astype(np.int64),
        np.ones(len(records), np.int64),
        records["ids"],
        hidden_AD=half(records["input"], where) if keep else None,
        whole_layers=False,
        unmarked=True,
    )
