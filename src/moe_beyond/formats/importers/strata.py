"""Strata's `--dump-routing`: a binary record a token and layer, with combine weights.

Little-endian, without a header: i32 layer, i32 k, k x i32 id, k x f32 weight. Layers are those of the model. Written
while decoding; a variant for all positions puts a prompt's tokens of a layer one after another.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moe_beyond.formats.importers.engine_log import fixed_records, read_logs
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride
from moe_beyond.formats.importers.passes import Passes
from moe_beyond.traces.schema import Trace


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the `.bin` files of a folder or archive, or one file. Raises InputError as `read_logs`."""
    return read_logs(source, domain, override, suffix=".bin", parse=_parse, origin="Strata --dump-routing")


def _parse(data: bytes, where: str) -> Passes:
    fields = [("layer", "<i4"), ("k", "<i4")]
    records = fixed_records(data, lambda k: [*fields, ("ids", "<i4", (k,)), ("weights", "<f4", (k,))], where)
    ones = np.ones(len(records), np.int64)
    return Passes(
        where, records["layer"].astype(np.int64), ones, records["ids"], records["weights"], whole_layers=False
    )
