"""fitz's RTRACE01: the router's whole softmax, a binary record a token and layer.

Little-endian: "RTRACE01", i32 experts E, i32 0; then records of i32 token, i32 layer, E x f32 probabilities. Layers are
those of the model; one without experts has NaN. A trace keeps the k most probable experts, k by config.json or
`--top-k`, with their probabilities among all E as weights (they add up to less than 1). Prefill is not marked. Layout:
wheel fitz_tec 0.1.1, tools/_trace_format.py.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.engine_log import read_logs
from moe_beyond.formats.importers.layer_keys import integer
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride, config_beside
from moe_beyond.formats.importers.moe_structure import TOP_K
from moe_beyond.formats.importers.rows import Rows
from moe_beyond.traces.schema import Trace

MAGIC = b"RTRACE01"
_HEADER_BYTES = 16


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the `.rtrace` files of a folder or archive, or one file.

    Raises:
        InputError: Neither config nor option says the number of experts per token; and as `read_logs`.
    """
    config = config_beside(source)
    if not override.top_k and not config:
        raise InputError(f"{source}: holds probabilities of all experts; give --top-k, or the model's config.json")
    top_k = override.top_k or integer(config, TOP_K, str(source))
    parse = partial(_parse, top_k=top_k)
    return read_logs(source, domain, override, suffix=".rtrace", parse=parse, origin="fitz RTRACE01")


def _parse(data: bytes, where: str, *, top_k: int) -> Rows:
    if len(data) < _HEADER_BYTES or data[:8] != MAGIC:
        raise InputError(f"{where}: does not begin with 'RTRACE01' and its header; check the format")
    num_experts = int.from_bytes(data[8:12], "little", signed=True)
    if not 2 <= num_experts <= 65536 or top_k > num_experts:
        raise InputError(f"{where}: {num_experts} experts, top-{top_k}; expected 2 to 65536, and no larger top-k")
    dtype = np.dtype([("token", "<i4"), ("layer", "<i4"), ("probabilities", "<f4", (num_experts,))])
    count, rest = divmod(len(data) - _HEADER_BYTES, dtype.itemsize)
    if rest or not count:
        raise InputError(f"{where}: {rest} bytes behind {count} records of {dtype.itemsize}; the file is cut short")
    records = np.frombuffer(data, dtype, count, _HEADER_BYTES)
    number_R = np.flatnonzero(~np.isnan(records["probabilities"]).all(axis=1))
    records = records[number_R]
    wrong = ~((records["probabilities"] >= 0) & (records["probabilities"] <= 1.001)).all(axis=1)
    if wrong.any():
        record = int(np.argmax(wrong))
        raise InputError(f"{where}: record {number_R[record]}: probabilities that are none; expected 0 to 1")
    ids_RK = np.argsort(-records["probabilities"], axis=1, kind="stable")[:, :top_k]
    return Rows(
        where,
        lambda row: f"{where}: record {number_R[row]}",
        records["token"].astype(np.int64),
        records["layer"].astype(np.int64),
        ids_RK,
        np.take_along_axis(records["probabilities"], ids_RK, axis=1),
        num_experts,
    )
