"""Counts of experts that engines write, read into `ExpertCounts`.

How often each expert was chosen, without the order of the tokens. Not traces: what needs order (LRU, Belady's bound,
predictors, times) cannot be had from them. A format is a function that makes a file's bytes into counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from moe_beyond.documents import require_plain
from moe_beyond.errors import InputError
from moe_beyond.formats.count_files import imatrix, json_counts, recorder, routes, text_counts
from moe_beyond.formats.counts import ExpertCounts, checked_counts
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride, shape_of_layers
from moe_beyond.formats.importers.sources import is_single_file, locate, members

_READERS: dict[str, Callable[[bytes, str, ShapeOverride], ExpertCounts]] = {
    "coli-usage": text_counts.coli_usage,
    "logical-count-json": json_counts.logical_count,
    "logical-count-pt": recorder.logical_count,
    "lucebox-hotness": text_counts.hotness,
    "mbolt-heat": json_counts.heat,
    "vllm-routes": routes.route_log,
}
COUNT_FORMATS = ("imatrix", *_READERS)
"""Names of the formats."""


def read_counts(format: str, source: Path, shape: ShapeOverride = NONE) -> ExpertCounts:  # noqa: A002 - as in `importers`
    """Read the counts in a file, also `.gz` or `.xz`.

    Args:
        format: One of `COUNT_FORMATS`.
        source: The file; an imatrix is not packed. A config.json beside it gives model, top-k and bytes.
        shape: What is said of the model where neither file nor config.json can say it.

    Raises:
        InputError: An unknown format, no single file, or the first rule that is broken; names file and place.
    """
    if format not in COUNT_FORMATS:
        raise InputError(f"unknown format of counts {format!r}; expected one of {', '.join(COUNT_FORMATS)}")
    if not is_single_file(require_plain(source)):
        raise InputError(f"{source}: no such file, or a folder or archive; give one file of counts")
    # an imatrix may be larger than what the others read at once
    counts = checked_counts(imatrix.imatrix(source), str(source)) if format == "imatrix" else None
    for name, stream in members(source, "") if counts is None else ():
        where = locate(source, name)
        counts = checked_counts(_READERS[format](stream.read(), where, shape), where)
    if counts is None:
        raise InputError(f"{source}: the file is empty; fetch it again")
    known = shape_of_layers(source, shape, counts.layer_numbers, counts.num_experts)
    if known is None:
        return checked_counts(replace(counts, top_k=shape.top_k or counts.top_k), str(source))
    model_id, top_k, expert_bytes = known
    return checked_counts(
        replace(counts, model_id=model_id or counts.model_id, top_k=top_k or counts.top_k, expert_bytes=expert_bytes),
        str(source),
    )
