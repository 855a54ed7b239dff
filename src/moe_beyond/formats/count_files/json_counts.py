"""Counts in JSON, by layer of the model: SGLang's `logical_count`, and mbolt's `heat`.

- `{"logical_count": [layers][experts]}`, or [passes][layers][experts], which are added up; rows of zeros have no
  experts
- `{"layers": [{"layer": number, "heat": [experts]}, ...], "k"}`, of mbolt's co-activation map; counts of decoded tokens
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.count_files.text_counts import without_empty
from moe_beyond.formats.counts import ExpertCounts
from moe_beyond.formats.importers.engine_log import whole
from moe_beyond.formats.importers.model_config import ShapeOverride
from moe_beyond.formats.importers.sources import read_json
from moe_beyond.formats.importers.torch_file import integers_of

_MOST = 2**40


def logical_count(data: bytes, where: str, override: ShapeOverride) -> ExpertCounts:
    """Counts of a `logical_count`. Raises InputError if there is none, or it is no rectangle of numbers from 0."""
    document = read_json(data, where)
    counts = document.get("logical_count") if isinstance(document, dict) else document
    if not isinstance(counts, list):
        raise InputError(f"{where}: no list 'logical_count'; check the format")
    return summed(integers_of(counts, f"{where}: logical_count"), "SGLang logical_count", where)


def summed(counts: npt.NDArray[np.int64], source: str, where: str) -> ExpertCounts:
    """Counts [layers, experts], those of passes [passes, layers, experts] added up.

    Raises:
        InputError: Another number of axes, or numbers that are no counts.
    """
    if counts.ndim not in (2, 3) or not counts.size or counts.shape[-1] < 2:
        raise InputError(
            f"{where}: counts of shape {counts.shape}, expected [layers, experts] or [passes, layers, experts]"
        )
    # so that no sum overflows
    if (counts < 0).any() or (counts > _MOST).any():
        raise InputError(f"{where}: a count below 0 or above {_MOST}")
    return without_empty(source, counts.sum(axis=0) if counts.ndim == 3 else counts, where)


def heat(data: bytes, where: str, override: ShapeOverride) -> ExpertCounts:
    """Counts of a co-activation map. Raises InputError naming the layer that breaks a rule."""
    document: Any = read_json(data, where)
    layers = document.get("layers") if isinstance(document, dict) else None
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers) or not layers:
        raise InputError(f"{where}: no list 'layers' of objects; check the format")
    found: dict[int, npt.NDArray[np.int64]] = {}
    for place, fields in enumerate(layers):
        number = whole(fields.get("layer", place), "layer", where)
        counts_E = integers_of(fields.get("heat", []), f"{where}: layer {number}: heat")
        if counts_E.ndim != 1 or len(counts_E) < 2 or number < 0 or number in found:
            raise InputError(f"{where}: layer {number} has no list 'heat' of its own; check the format")
        if (counts_E < 0).any() or (counts_E > _MOST).any():
            raise InputError(f"{where}: layer {number}: a count below 0 or above {_MOST}")
        found[number] = counts_E
    if len({len(counts_E) for counts_E in found.values()}) > 1:
        raise InputError(f"{where}: layers of several numbers of experts; expected one number")
    numbers = tuple(sorted(found))
    top_k = document.get("k")
    return ExpertCounts(
        str(document.get("model") or "unknown")[:200],
        numbers,
        np.stack([found[number] for number in numbers]),
        "mbolt co-activation map",
        None if top_k is None else whole(top_k, "k", where),
    )
