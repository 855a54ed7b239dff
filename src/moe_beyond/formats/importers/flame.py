"""FLAME-MoE's routing traces: Parquet, a file a layer of a training checkpoint.

`actives/iter_<N>/layer_<NN>.parquet` with `indices` and `scores` (lists of k ids and of their softmax), a row a token;
row i belongs to row i of `samples/<NNN>.parquet` (`token_id`), read in order. Give one model's folder with one
checkpoint. Each file of samples becomes a prompt, all prefill: the traces do not say where a text begins. Where fewer
samples than routed tokens are there, those are read: a published checkpoint has 52 million tokens, more than fits a
trace.

Layers bear the numbers of the files, which count from 1. The experts' number is 64, as published. Layout: the card of
CMU-FLAME/FLAME-MoE-Traces. Shape suffixes as in `schema`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.documents import require_unpacked
from moe_beyond.errors import InputError, reason_of
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride, shape_beside
from moe_beyond.formats.importers.routed import Routed, data_set, placed, require_experts, routed_prompts
from moe_beyond.formats.importers.sources import natural_order, require_inside
from moe_beyond.traces.schema import Trace, trace_of

NUM_EXPERTS = 64
_MOST_BYTES = 768 << 20
_ID_BYTES, _SCORE_BYTES = 4, 4


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read a folder with `samples/` and one `actives/iter_<N>/`.

    Raises:
        InputError: Files are missing, of another layout, damaged, or more than fits into memory.
    """
    layers: dict[int, Path] = {}
    for path in sorted(source.glob("actives/*/layer_*.parquet")):
        if found := re.fullmatch(r"layer_([0-9]{1,4})\.parquet", path.name):
            other = layers.setdefault(int(found[1]), path)
            if other.parent == path.parent and other != path:
                raise InputError(f"{path}: a second file for layer {int(found[1])}, as {other.name}; remove one")
    samples = sorted(source.glob("samples/*.parquet"), key=lambda path: natural_order(path.name))
    checkpoints = {path.parent for path in layers.values()} | set(source.glob("actives/*"))
    if not layers or not samples or len(checkpoints) != 1:
        raise InputError(
            f"{source}: {len(samples)} files in samples/, {len(checkpoints)} checkpoints in actives/; give a folder "
            "with samples and one checkpoint"
        )
    for path in (*layers.values(), *samples):
        require_inside(path, source)
    tokens = [_rows(path) for path in samples]
    if min(tokens) < 1:
        raise InputError(f"{samples[tokens.index(0)]}: no rows; remove it or fetch it again")
    first = _row_list(layers[min(layers)], "indices", 1)
    if len(first) != 1:
        raise InputError(f"{layers[min(layers)]}: no rows; fetch it again")
    said = ShapeOverride(**{**vars(override), "moe_layers": override.moe_layers or ",".join(map(str, sorted(layers)))})
    shape, _ = shape_beside(source, said, NUM_EXPERTS, override.top_k or first.shape[1])
    if tuple(sorted(layers)) != shape.layer_numbers:
        raise InputError(f"{source}: layers {sorted(layers)!s:.60}, expected {list(shape.layer_numbers)!s:.60}")
    total, top_k = sum(tokens), shape.top_k
    if total * top_k * shape.num_layers * (_ID_BYTES + _SCORE_BYTES) > _MOST_BYTES:
        most = _MOST_BYTES // (top_k * shape.num_layers * (_ID_BYTES + _SCORE_BYTES))
        raise InputError(f"{source}: {total} tokens in samples/, at most {most} fit; leave files of samples out")
    token_T = np.concatenate([_column(path, "token_id", count) for path, count in zip(samples, tokens, strict=True)])
    experts_TLK = np.zeros((total, shape.num_layers, top_k), np.int32)
    weights_TLK = np.zeros(experts_TLK.shape, np.float32)
    for place, layer in enumerate(sorted(layers)):
        path = layers[layer]
        ids_TK, weights_TK = _row_list(path, "indices", total), _row_list(path, "scores", total)
        if len(ids_TK) != total or len(weights_TK) != total or ids_TK.dtype.kind != "i":
            raise InputError(
                f"{path}: {len(ids_TK)} rows of {ids_TK.dtype}, samples/ has {total} tokens; fetch it again"
            )
        require_experts(ids_TK, weights_TK, shape, placed(str(path)))
        experts_TLK[:, place], weights_TLK[:, place] = ids_TK, weights_TK
    routed: list[Routed] = []
    start = 0
    for path, count in zip(samples, tokens, strict=True):
        part = slice(start, start + count)
        routed.append(Routed(experts_TLK[part], weights_TLK[part], count, path.stem, token_T[part]))
        start += count
    prompts = routed_prompts(routed, "", str(source), data_set(source, domain), override.prefill_tokens)
    origin = {"source": "CMU-FLAME/FLAME-MoE-Traces", "licence": "Apache-2.0", "decoding": "teacher-forced"}
    return trace_of(shape.model_copy(update=origin), prompts)


def _open(path: Path) -> Any:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        file = pq.ParquetFile(path)
        with path.open("rb") as stream:
            require_unpacked(stream, str(path))
        return file
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({reason_of(error)[:120]}); fetch it again") from error


def _rows(path: Path) -> int:
    return int(_open(path).metadata.num_rows)


def _column(path: Path, name: str, rows: int) -> npt.NDArray[Any]:
    """The first so many values of a column of numbers."""
    return _numbers(path, name, rows, 0)[:, 0]


def _row_list(path: Path, name: str, rows: int) -> npt.NDArray[Any]:
    """The first so many lists of a column, [rows, k]."""
    return _numbers(path, name, rows, 1)


def _numbers(path: Path, name: str, rows: int, axes: int) -> npt.NDArray[Any]:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.compute as pc  # noqa: PLC0415

    file, parts, left = _open(path), [], rows
    if file.schema_arrow.names.count(name) != 1:
        raise InputError(f"{path}: no one column {name!r}; found {file.schema_arrow.names!s:.60}")
    try:
        for batch in file.iter_batches(min(65536, max(1, rows)), columns=[name]):
            column = batch.column(0).slice(0, left)
            if column.null_count or pa.types.is_nested(column.type) != bool(axes):
                raise InputError(f"{path}: column {name} has gaps or is {column.type}; fetch it again")
            flat = column.flatten() if axes else column
            values = flat.to_numpy(zero_copy_only=False)
            if flat.null_count or values.dtype.kind not in "if" or (len(column) and len(values) % len(column)):
                raise InputError(
                    f"{path}: column {name} of {column.type} with lists of several lengths; fetch it again"
                )
            if axes and len(column) and (pc.list_value_length(column).to_numpy() != len(values) // len(column)).any():
                raise InputError(f"{path}: column {name} has lists of several lengths; fetch it again")
            parts.append(values.reshape(len(column), -1) if len(column) else values.reshape(0, 1))
            left -= len(column)
            if left <= 0:
                break
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.int64)
    except (pa.ArrowException, OSError, ValueError, MemoryError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: column {name} cannot be read ({reason_of(error)[:120]}); fetch it again") from error
