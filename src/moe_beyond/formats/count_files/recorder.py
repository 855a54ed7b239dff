"""Counts in a `.pt`: SGLang's recorder in the mode `stat`, and KTransformers' activation frequencies.

`{"logical_count": int32 [passes, layers, experts]}`, or a tensor of counts [layers, experts]. Layers are all of the
model, rows of zeros have no experts; passes that were not used are zeros.
"""

from __future__ import annotations

from moe_beyond.errors import InputError
from moe_beyond.formats.count_files.json_counts import summed
from moe_beyond.formats.counts import ExpertCounts
from moe_beyond.formats.importers.model_config import ShapeOverride
from moe_beyond.formats.importers.torch_file import integers_of, load_pt


def logical_count(data: bytes, where: str, override: ShapeOverride) -> ExpertCounts:
    """Counts of a recorder's dump. Raises InputError if it is none, or holds anything but tensors and plain values."""
    document = load_pt(data, where)
    if isinstance(document, dict):
        if "logical_count" not in document:
            raise InputError(f"{where}: no 'logical_count'; the recorder's mode per_token is a trace: import it")
        document = document["logical_count"]
    return summed(integers_of(document, f"{where}: logical_count"), "SGLang expert distribution recorder", where)
