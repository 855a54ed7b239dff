"""Flash-next-ssd's MSTR trace: a binary record a layer of a batch, with a mark for batches of several tokens.

Little-endian: "MSTR", u32 version 1, u32 k, u32 layers of the model; then records of u8 layer, u32 tokens, u8 kind (0
one token, 1 several) and tokens x k i16 ids. Layers are those of the model. The writer leaves warm-up out, and may be
stopped in the middle of a record: an unfinished end is left out. Layout: skeggsguy/Flash-next-ssd,
llama-moe-stream-trace.cpp.
"""

from __future__ import annotations

from pathlib import Path
from struct import Struct

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.engine_log import MAX_TOP_K, layer_records, read_logs, unpack_header
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride
from moe_beyond.formats.importers.passes import Passes
from moe_beyond.traces.schema import Trace

MAGIC = b"MSTR"
_HEADER = Struct("<4sIII")


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the `.mstr` files of a folder or archive, or one file. Raises InputError as `read_logs`."""
    return read_logs(source, domain, override, suffix=".mstr", parse=_parse, origin="Flash-next-ssd MSTR trace")


def _parse(data: bytes, where: str) -> Passes:
    version, top_k, num_layers = unpack_header(data, MAGIC, _HEADER, where)
    if version != 1 or not 1 <= top_k <= MAX_TOP_K:
        raise InputError(f"{where}: version {version}, top-{top_k}; expected version 1, top-1 to top-{MAX_TOP_K}")
    fields = ("layer", "tokens", "kind")
    heads, ids_AK = layer_records(
        data, where, head="<BIB", fields=fields, start=_HEADER.size, id_type="<i2", top_k=top_k, may_be_cut=True
    )
    layer_R, tokens_R, kind_R = heads.T
    wrong = (kind_R > 1) | ((kind_R == 0) & (tokens_R > 1)) | (layer_R >= num_layers)
    if wrong.any():
        record = int(np.argmax(wrong))
        raise InputError(
            f"{where}: record {record}: layer {layer_R[record]} of {num_layers}, {tokens_R[record]} tokens of kind "
            f"{kind_R[record]}; expected kind 0 for one token, 1 for several"
        )
    return Passes(where, layer_R, tokens_R, ids_AK, prefill_R=_prefill(layer_R, kind_R), may_be_cut=True)


def _prefill(layer_R: npt.NDArray[np.int64], kind_R: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """True for all records of a batch that has several tokens in any layer: the last may have one alone."""
    batch_R = np.cumsum(np.concatenate([[True], np.diff(layer_R) < 0])) - 1
    prefill_R: npt.NDArray[np.bool_] = (np.bincount(batch_R, kind_R) > 0)[batch_R]
    return prefill_R
