"""mbolt's MBLT trace: a binary record a layer of a batch.

Little-endian: "MBLT", i32 version 1, i32 experts of a layer; then records of i32 layer, i32 k, i32 tokens and tokens x
k i32 ids, token after token. Layers are numbered as they come in the graph, from 0. A batch of one token in all layers
is decode; in prefill the last layer routes only the last token. Layout: doramirdor/mbolt, mbolt/trace.py.
"""

from __future__ import annotations

from pathlib import Path
from struct import Struct

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.engine_log import layer_records, read_logs, unpack_header
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride
from moe_beyond.formats.importers.passes import Passes
from moe_beyond.traces.schema import Trace

MAGIC = b"MBLT"
_HEADER = Struct("<4sii")


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the `.mblt` files of a folder or archive, or one file. Raises InputError as `read_logs`."""
    return read_logs(source, domain, override, suffix=".mblt", parse=_parse, origin="mbolt MBLT trace")


def _parse(data: bytes, where: str) -> Passes:
    version, num_experts = unpack_header(data, MAGIC, _HEADER, where)
    if version != 1 or not 2 <= num_experts <= 65536:
        raise InputError(f"{where}: version {version}, {num_experts} experts; expected version 1, 2 to 65536 experts")
    heads, ids_AK = layer_records(data, where, head="<iii", fields=("layer", "k", "tokens"), start=_HEADER.size)
    return Passes(where, heads[:, 0], heads[:, 2], ids_AK, num_experts=num_experts, by_order=True)
