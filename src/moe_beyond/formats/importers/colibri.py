"""colibri's ROUTE_TRACE: a line of text a token and layer, `call row layer id:gate ...`.

A call is a layer of a batch, a row a token of it. Layers are those of the model; the layer after the last is the draft
head's (MTP) and left out. Gates, as applied, become weights. Layout: JustVugg/colibri, c/route_trace.h.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.engine_log import Table, lines_of, read_logs, whole
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride
from moe_beyond.formats.importers.passes import Passes
from moe_beyond.traces.schema import Trace


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the `.txt` files of a folder or archive, or one file. Raises InputError as `read_logs`."""
    return read_logs(source, domain, override, suffix=".txt", parse=_parse, origin="colibri ROUTE_TRACE")


def _parse(data: bytes, where: str) -> Passes:
    places, ids, gates = Table(where), Table(where), Table(where, "f")
    for number, line in lines_of(data, where):
        at, cells = f"{where}: line {number}", line.split()
        pairs = [cell.partition(":") for cell in cells[3:]]
        if not pairs:
            raise InputError(f"{at}: {line!r:.60}, expected 'call row layer id:gate ...'")
        call, row, layer = (whole(cell, name, at) for cell, name in zip(cells, ("call", "row", "layer"), strict=False))
        places.add([number, call, row, layer], number)
        ids.add([whole(expert, "an expert", at) for expert, _, _ in pairs], number)
        try:
            gates.add([float(gate) for _, _, gate in pairs], number)
        except ValueError:
            raise InputError(f"{at}: {line!r:.60}, expected 'call row layer id:gate ...' with numbers") from None
    number_R, call_R, row_R, layer_R = places.array().T
    begins_R = np.concatenate([[True], np.diff(call_R) != 0])
    firsts = np.flatnonzero(begins_R)
    wrong = row_R != np.arange(len(row_R)) - np.repeat(firsts, np.diff([*firsts, len(row_R)]))
    wrong |= ~begins_R & np.concatenate([[False], np.diff(layer_R) != 0])
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"{where}: line {number_R[row]}: call {call_R[row]}, row {row_R[row]}, layer {layer_R[row]}; expected the "
            "rows of a call from 0, all of one layer"
        )
    return Passes(
        where,
        layer_R[firsts],
        np.diff([*firsts, len(row_R)]),
        ids.array(),
        gates.array(),
        what="line",
        number_R=number_R[firsts],
        extra_layer=True,
    )
