"""The published form of a trace: Parquet, what people exchange. The only module that knows Parquet.

A row a prompt, so that a token never loses its neighbours; lists of ids in token, layer, router order.
`docs/trace-format.md` is the specification. The working form lies in `memory_mapped`. Shape suffixes as in `schema`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from moe_beyond.documents import load_json, require_plain, require_unpacked
from moe_beyond.errors import InputError, reason_of
from moe_beyond.files import replacing
from moe_beyond.traces.arrow_columns import ArrowColumns
from moe_beyond.traces.columns import most_choices
from moe_beyond.traces.hidden import beside, holds_hidden, open_hidden, write_hidden
from moe_beyond.traces.memory_mapped import has_working, open_working, write_working
from moe_beyond.traces.schema import (
    SCHEMA_VERSION,
    Trace,
    TraceMetadata,
    concatenate,
    expert_dtype,
    offsets_of,
    validate,
    validate_hidden,
)

__all__ = [
    "has_working",
    "iterate_parquet",
    "open_working",
    "read_parquet",
    "read_parts",
    "write_parquet",
    "write_working",
]

METADATA_KEY = b"moe_beyond"
_ROW_GROUP_PROMPTS = 64
# how pyarrow says that bytes are damaged
_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)


def write_parquet(trace: Trace, path: Path) -> None:
    """Write one Parquet file, whole or not at all: a row a prompt, zstd, metadata as JSON under `moe_beyond`.

    Hidden states go into a folder beside it, ahead of it; those of a file that stood there before are removed.

    Raises:
        InputError: A folder that holds something else stands where the hidden states go.
    """
    if trace.hidden is not None:
        write_hidden(trace.hidden, beside(path), _digest(trace))
    elif holds_hidden(beside(path)):
        shutil.rmtree(beside(path))
    # dictionary encoding, not plain: Parquet stores plain uint8 as four bytes
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": True, "write_page_checksum": True}
    schema = _to_table(trace, slice(0, 0)).schema
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        for prompts in _row_groups(trace):
            writer.write_table(_to_table(trace, prompts), row_group_size=_ROW_GROUP_PROMPTS)
            trace.forget()


def is_trace_file(path: Path) -> bool:
    """Whether it is a Parquet file that `write_parquet` wrote."""
    try:
        return METADATA_KEY in (pq.read_schema(path).metadata or {})
    except _UNREADABLE:
        return False


def read_parquet(path: Path, *, hidden: bool = True) -> Trace:
    """Read one Parquet file or every `*.parquet` of a directory, in order of name, as one trace.

    Args:
        path: File or directory.
        hidden: Also the hidden states beside a file, memory-mapped; those of several files are copied.

    Raises:
        InputError: A file is missing, truncated, damaged, of a newer schema version, or breaks a rule of the schema;
            hidden states beside it are damaged, or another trace's.
    """
    parts = read_parts(path, hidden=hidden)
    return parts[0] if len(parts) == 1 else concatenate(parts)


def read_parts(path: Path, *, hidden: bool = True) -> list[Trace]:
    """As `read_parquet`, but a trace a file: a column that one file lacks stays in the others.

    Raises:
        InputError: As `read_parquet`; also if two files hold a prompt of one name, or are of different models.
    """
    files = _files(path)
    parts = [_with_hidden(concatenate(_batches(file)), file, hidden=hidden) for file in files]
    seen: dict[str, Path] = {}
    for file, part in zip(files, parts, strict=True):
        parts[0].metadata.require_same_model(part.metadata, str(file))
        for name in part.prompt_ids:
            if seen.setdefault(name, file) != file:
                raise InputError(f"{file}: prompt {name!r} also stands in {seen[name]}; give it another prompt_id")
    return parts


def iterate_parquet(path: Path) -> Iterator[Trace]:
    """Stream a file or directory: traces of some prompts, in order, so that memory does not grow with the file.

    They are without hidden states.

    Raises:
        InputError: As `read_parquet`, but prompts of one name are only found within a batch.
    """
    for file in _files(path):
        for batch in _batches(file):
            yield validate(batch, str(file))


def _with_hidden(trace: Trace, file: Path, *, hidden: bool) -> Trace:
    """The trace of a file with the hidden states beside it, validated."""
    validate(trace, str(file))
    if not hidden or not holds_hidden(beside(file)):
        return trace
    trace = replace(trace, hidden=open_hidden(beside(file), trace.num_tokens, _digest(trace)))
    return validate_hidden(trace, str(beside(file)))


def _digest(trace: Trace) -> str:
    """Names the trace that hidden states belong to, by its prompts and its routing."""
    digest = hashlib.blake2b(json.dumps([trace.prompt_ids, trace.prompt_offsets.tolist()]).encode(), digest_size=16)
    for _, part_TLK in trace.parts():
        digest.update(np.ascontiguousarray(part_TLK).data)
    return digest.hexdigest()


def _batches(file: Path) -> Iterator[Trace]:
    """The prompts of a file, some at a time and at least once, not validated."""
    try:
        reader, values = _opened(file)
        schema, rows = reader.schema_arrow, max(1, reader.metadata.num_rows)
        most = max(1, min(_ROW_GROUP_PROMPTS, most_choices() * rows // max(1, values)))
        empty = True
        # threads of Arrow's might decode the whole file ahead of a slow reader
        for batch in reader.iter_batches(batch_size=most, use_threads=False):
            empty = False
            yield _to_trace(pa.Table.from_batches([batch]).replace_schema_metadata(schema.metadata), file)
        if empty:
            yield _to_trace(schema.empty_table(), file)
    except _UNREADABLE as error:
        raise _unreadable(file, error) from error


def _row_groups(trace: Trace) -> Iterator[slice]:
    """Consecutive prompts: at most 64, and with several at most as many expert choices as may be worked on at once."""
    most_tokens = most_choices() // trace.metadata.token_cycle
    start = 0
    while start < trace.num_prompts:
        end = int(np.searchsorted(trace.prompt_offsets, trace.prompt_offsets[start] + most_tokens, side="right")) - 1
        end = min(max(end, start + 1), start + _ROW_GROUP_PROMPTS)
        yield slice(start, end)
        start = end


def _opened(file: Path) -> tuple[pq.ParquetFile, int]:
    """The file, and the values of its largest columns."""
    # without a buffer of whole row groups
    reader = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
    with file.open("rb") as stream:
        return reader, sum(max(values, default=0) for values in require_unpacked(stream, str(file)))


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise InputError(f"{path}: no trace there; expected a .parquet file or a directory of them")
    return [require_plain(file) for file in files]


def _to_table(trace: Trace, prompts: slice) -> pa.Table:
    """Consecutive prompts as rows."""
    meta, offsets = trace.metadata, np.asarray(trace.prompt_offsets)[prompts.start : prompts.stop + 1]
    width, tokens = meta.num_layers * meta.top_k, slice(offsets[0], offsets[-1])
    offsets = offsets - offsets[0]

    def lists(column: npt.NDArray[Any], per_token: int) -> pa.Array:
        return pa.LargeListArray.from_arrays(offsets * per_token, pa.array(np.asarray(column[tokens]).reshape(-1)))

    columns: dict[str, pa.Array] = {
        "prompt_id": pa.array(trace.prompt_ids[prompts], pa.string()),
        "domain": pa.array(trace.domains[prompts], pa.string()),
        "held_out": pa.array(np.asarray(trace.held_out_P[prompts])),
        "num_prefill": pa.array(np.asarray(trace.num_prefill_P[prompts])),
        "experts": lists(trace.experts_TLK, width),
    }
    if trace.weights_TLK is not None:
        columns["weights"] = lists(trace.weights_TLK, width)
    if trace.token_ids_T is not None:
        columns["token_ids"] = lists(trace.token_ids_T, 1)
    if trace.token_texts is not None:
        used, codes = np.unique(trace.token_texts.codes_T[tokens], return_inverse=True)
        vocabulary = [trace.token_texts.vocabulary[code] for code in used.tolist()]
        columns["token_texts"] = pa.LargeListArray.from_arrays(
            offsets, pa.array(vocabulary, pa.string()).take(pa.array(codes.reshape(-1)))
        )
    if trace.predicted_TLK is not None:
        columns["predicted_experts"] = lists(trace.predicted_TLK, width)
    return pa.table(columns).replace_schema_metadata({METADATA_KEY: meta.model_dump_json()})


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: not a readable Parquet file ({reason_of(error)}); fetch or write it again")


def _to_trace(table: pa.Table, path: Path) -> Trace:
    meta = _parse_metadata(table.schema.metadata or {}, path)
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise InputError(f"{path}: column {twice[0]!r} is there twice; write the file again")
    columns, ids = ArrowColumns(table, str(path)), expert_dtype(meta.num_experts)
    width = meta.num_layers * meta.top_k
    experts, num_ids_P = columns.integer_lists("experts", ids)
    lengths_P, rest_P = np.divmod(num_ids_P, width)
    prompt_ids = columns.strings("prompt_id")
    if rest_P.any():
        prompt = int(np.argmax(rest_P > 0))
        raise InputError(
            f"{path}: prompt {prompt_ids[prompt]!r} has {num_ids_P[prompt]} expert ids, not a multiple of "
            f"{meta.num_layers} layers x top-{meta.top_k}; every token needs top_k experts in every layer"
        )

    def optional(name: str, read: Callable[[str], tuple[Any, npt.NDArray[np.int64]]], per_token: int = 1) -> Any:
        """A column with so many values for each token, or None."""
        if name not in columns:
            return None
        values, found_P = read(name)
        if not np.array_equal(found_P, lengths_P * per_token):
            prompt = int(np.argmax(found_P != lengths_P * per_token))
            raise InputError(
                f"{path}: prompt {prompt_ids[prompt]!r} has {found_P[prompt]} values in column {name!r}, expected "
                f"{lengths_P[prompt] * per_token}: {per_token} for each token of column 'experts'"
            )
        return values

    shape = (-1, meta.num_layers, meta.top_k)
    weights = optional("weights", columns.half_lists, width)
    predicted = optional("predicted_experts", partial(columns.integer_lists, dtype=ids), width)
    return Trace(
        metadata=meta,
        prompt_ids=prompt_ids,
        domains=columns.strings("domain"),
        held_out_P=columns.booleans("held_out"),
        prompt_offsets=offsets_of(lengths_P),
        num_prefill_P=columns.integers("num_prefill", np.int32),
        experts_TLK=experts.reshape(shape),
        weights_TLK=None if weights is None else weights.reshape(shape),
        token_ids_T=optional("token_ids", partial(columns.integer_lists, dtype=np.int32)),
        token_texts=optional("token_texts", columns.text_lists),
        predicted_TLK=None if predicted is None else predicted.reshape(shape),
    )


def _parse_metadata(metadata: dict[bytes, bytes], path: Path) -> TraceMetadata:
    if METADATA_KEY not in metadata:
        raise InputError(f"{path}: no {METADATA_KEY.decode()!r} metadata; this Parquet file is not a routing trace")
    try:
        raw = load_json(metadata[METADATA_KEY].decode(), str(path))
        version = raw.get("schema_version")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: the {METADATA_KEY.decode()!r} metadata are damaged; write the file again") from error
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise InputError(f"{path}: schema version {version!r}; this release reads 1 to {SCHEMA_VERSION}, upgrade it")
    try:
        return TraceMetadata.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: metadata {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
