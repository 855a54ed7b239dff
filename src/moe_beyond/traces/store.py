"""Traces on disk: the published form (Parquet, what people exchange) and the working form (memory-mapped arrays).

Shape suffixes as in `schema`.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from moe_beyond.errors import InputError
from moe_beyond.files import replacing
from moe_beyond.traces.schema import (
    SCHEMA_VERSION,
    TokenTexts,
    Trace,
    TraceMetadata,
    concatenate,
    expert_dtype,
    validate,
)

METADATA_KEY = b"moe_beyond"
_ROW_GROUP_PROMPTS = 64
_ARRAYS = (
    "held_out_P",
    "prompt_offsets",
    "num_prefill_P",
    "experts_TLK",
    "weights_TLK",
    "token_ids_T",
    "predicted_TLK",
)


def write_parquet(trace: Trace, path: Path) -> None:
    """Write the published form: one Parquet file, a row a prompt, zstd, metadata as JSON under `moe_beyond`."""
    with replacing(path) as temporary:
        # dictionary encoding, not plain: Parquet stores plain uint8 as four bytes
        pq.write_table(
            _to_table(trace), temporary, compression="zstd", use_dictionary=True, row_group_size=_ROW_GROUP_PROMPTS
        )


def read_parquet(path: Path) -> Trace:
    """Read one Parquet file or every `*.parquet` of a directory, in order of name.

    Raises:
        InputError: A file is missing, truncated, of a newer schema version, or breaks a rule of the schema.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise InputError(f"{path}: no trace there; expected a .parquet file or a directory of them")
    trace = concatenate([_read_file(file) for file in files])
    return validate(trace, str(path))


def _to_table(trace: Trace) -> pa.Table:
    meta = trace.metadata
    offsets = trace.prompt_offsets

    def lists(flat: np.ndarray[Any, Any], per_token: int) -> pa.Array:
        return pa.LargeListArray.from_arrays(offsets * per_token, pa.array(flat.reshape(-1)))

    width = meta.num_layers * meta.top_k
    columns: dict[str, pa.Array] = {
        "prompt_id": pa.array(trace.prompt_ids, pa.string()),
        "domain": pa.array(trace.domains, pa.string()),
        "held_out": pa.array(trace.held_out_P),
        "num_prefill": pa.array(trace.num_prefill_P),
        "experts": lists(trace.experts_TLK, width),
    }
    if trace.weights_TLK is not None:
        columns["weights"] = lists(trace.weights_TLK, width)
    if trace.token_ids_T is not None:
        columns["token_ids"] = lists(trace.token_ids_T, 1)
    if trace.token_texts is not None:
        texts = trace.token_texts
        strings = pa.array(texts.vocabulary, pa.string()).take(pa.array(texts.codes_T))
        columns["token_texts"] = pa.LargeListArray.from_arrays(offsets, strings)
    if trace.predicted_TLK is not None:
        columns["predicted_experts"] = lists(trace.predicted_TLK, width)
    return pa.table(columns).replace_schema_metadata({METADATA_KEY: meta.model_dump_json()})


def _read_file(path: Path) -> Trace:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable Parquet file ({reason}); write it again") from error
    meta = _read_metadata(table.schema.metadata or {}, path)
    missing = {"prompt_id", "domain", "held_out", "num_prefill", "experts"} - set(table.column_names)
    if missing:
        raise InputError(f"{path}: column {sorted(missing)[0]!r} is missing; write the file with `moe-beyond import`")
    table = table.combine_chunks()

    def column(name: str) -> pa.Array:
        chunked = table.column(name)
        return chunked.chunk(0) if chunked.num_chunks else pa.array([], chunked.type)

    width = meta.num_layers * meta.top_k
    experts = column("experts")
    lengths = np.diff(experts.offsets.to_numpy())
    uneven = np.nonzero(lengths % width)[0]
    if len(uneven):
        name = table.column("prompt_id")[int(uneven[0])].as_py()
        raise InputError(
            f"{path}: prompt {name!r} has {lengths[uneven[0]]} expert ids, not a multiple of "
            f"{meta.num_layers} layers x top-{meta.top_k}; every token needs top_k experts in every layer"
        )

    def flat(name: str, dtype: Any, per_token: int) -> np.ndarray[Any, Any] | None:
        if name not in table.column_names:
            return None
        array = column(name)
        if not np.array_equal(np.diff(array.offsets.to_numpy()) * width, lengths * per_token):
            raise InputError(f"{path}: column {name!r} does not have {per_token} values a token as 'experts' says")
        values: np.ndarray[Any, Any] = array.flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=False)
        return values.reshape(-1, meta.num_layers, meta.top_k) if per_token == width else values

    ids = expert_dtype(meta.num_experts)
    texts = None
    if "token_texts" in table.column_names:
        encoded = column("token_texts").flatten().dictionary_encode()
        texts = TokenTexts(encoded.indices.to_numpy().astype(np.int32), tuple(encoded.dictionary.to_pylist()))
    experts_TLK = flat("experts", ids, width)
    assert experts_TLK is not None  # noqa: S101 - its presence was checked above
    return Trace(
        metadata=meta,
        prompt_ids=tuple(table.column("prompt_id").to_pylist()),
        domains=tuple(table.column("domain").to_pylist()),
        held_out_P=column("held_out").to_numpy(zero_copy_only=False).astype(bool),
        prompt_offsets=np.concatenate([[0], np.cumsum(lengths // width)]).astype(np.int64),
        num_prefill_P=column("num_prefill").to_numpy().astype(np.int32),
        experts_TLK=experts_TLK,
        weights_TLK=flat("weights", np.float16, width),
        token_ids_T=flat("token_ids", np.int32, 1),
        token_texts=texts,
        predicted_TLK=flat("predicted_experts", ids, width),
    )


def _read_metadata(metadata: dict[bytes, bytes], path: Path) -> TraceMetadata:
    if METADATA_KEY not in metadata:
        raise InputError(f"{path}: no {METADATA_KEY.decode()!r} metadata; this Parquet file is not a routing trace")
    raw = json.loads(metadata[METADATA_KEY])
    version = raw.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise InputError(f"{path}: schema version {version}; this release reads up to {SCHEMA_VERSION}, upgrade it")
    try:
        return TraceMetadata.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: metadata {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def write_working(trace: Trace, directory: Path) -> None:
    """Write the working form: `<field>.npy` for each array, `trace.json` for the rest. Replaces `directory`."""
    with replacing(directory) as temporary:
        temporary.mkdir()
        for name in _ARRAYS:
            array = getattr(trace, name)
            if array is not None:
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        rest: dict[str, Any] = {
            "metadata": trace.metadata.model_dump(),
            "prompt_ids": trace.prompt_ids,
            "domains": trace.domains,
        }
        if trace.token_texts is not None:
            np.save(temporary / "token_codes_T.npy", trace.token_texts.codes_T)
            rest["vocabulary"] = trace.token_texts.vocabulary
        (temporary / "trace.json").write_text(json.dumps(rest, ensure_ascii=False), encoding="utf-8")


def has_working(directory: Path) -> bool:
    """True if a working trace lies there; a split that a trace cannot fill is an empty directory."""
    return (directory / "trace.json").is_file()


def open_working(directory: Path) -> Trace:
    """Open the working form; arrays are memory-mapped, read-only.

    Raises:
        InputError: The directory is not a working trace.
    """
    try:
        rest = json.loads((directory / "trace.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{directory}: no working trace there; run the split stage first") from error
    arrays = {
        name: np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in _ARRAYS
        if (directory / f"{name}.npy").exists()
    }
    texts = None
    if "vocabulary" in rest:
        codes = np.load(directory / "token_codes_T.npy", mmap_mode="r", allow_pickle=False)
        texts = TokenTexts(codes, tuple(rest["vocabulary"]))
    return Trace(
        metadata=TraceMetadata.model_validate(rest["metadata"]),
        prompt_ids=tuple(rest["prompt_ids"]),
        domains=tuple(rest["domains"]),
        token_texts=texts,
        **arrays,
    )


assert set(_ARRAYS) <= {field.name for field in fields(Trace)}  # noqa: S101 - the working form follows the schema
