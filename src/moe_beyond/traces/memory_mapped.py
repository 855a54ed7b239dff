"""The working form of a trace: memory-mapped arrays, what training and replay read.

A directory with `<field>.npy` for each array, `trace.json` for the rest, and `hidden` for hidden states. Shape suffixes
as in `schema`.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from moe_beyond.errors import DAMAGE_ERRORS, InputError, first_line_of
from moe_beyond.files import replacing
from moe_beyond.traces.hidden import open_hidden, write_hidden
from moe_beyond.traces.schema import TokenTexts, Trace, TraceMetadata

_ARRAYS = (
    "held_out_P",
    "prompt_offsets",
    "num_prefill_P",
    "experts_TLK",
    "weights_TLK",
    "token_ids_T",
    "predicted_TLK",
)
HIDDEN = "hidden"
_REQUIRED = ("held_out_P", "prompt_offsets", "num_prefill_P", "experts_TLK")


def write_working(trace: Trace, directory: Path) -> None:
    """Write the working form, replacing `directory`."""
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
            np.save(temporary / "token_codes_T.npy", trace.token_texts.codes_T, allow_pickle=False)
            rest["vocabulary"] = trace.token_texts.vocabulary
        if trace.hidden is not None:
            write_hidden(trace.hidden, temporary / HIDDEN)
        (temporary / "trace.json").write_text(json.dumps(rest), encoding="utf-8")


def has_working(directory: Path) -> bool:
    """True if a working trace lies there; a split that a trace cannot fill is an empty directory."""
    return (directory / "trace.json").is_file()


def open_working(directory: Path) -> Trace:
    """Open the working form; arrays are memory-mapped, read-only. Contents are trusted, sizes are checked.

    Raises:
        InputError: The directory is not a working trace, or one of its files is cut short.
    """
    try:
        rest = json.loads((directory / "trace.json").read_text(encoding="utf-8"))
        metadata = TraceMetadata.model_validate(rest["metadata"])
        vocabulary = tuple(rest["vocabulary"]) if "vocabulary" in rest else None
        prompt_ids, domains = tuple(rest["prompt_ids"]), tuple(rest["domains"])
    except FileNotFoundError as error:
        raise InputError(f"{directory}: no working trace there; run the split stage first") from error
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError, KeyError, TypeError) as error:
        raise InputError(f"{directory / 'trace.json'}: damaged; run the split stage again") from error
    paths = {name: directory / f"{name}.npy" for name in _ARRAYS}
    arrays = {name: _map(path) for name, path in paths.items() if name in _REQUIRED or path.exists()}
    texts = None if vocabulary is None else TokenTexts(_map(directory / "token_codes_T.npy"), vocabulary)
    tokens = len(arrays["experts_TLK"])
    hidden = open_hidden(directory / HIDDEN, tokens)
    trace = Trace(metadata=metadata, prompt_ids=prompt_ids, domains=domains, token_texts=texts, hidden=hidden, **arrays)
    for name in ("weights_TLK", "predicted_TLK", "token_ids_T"):
        if name in arrays and len(arrays[name]) != tokens:
            raise InputError(f"{directory / name}.npy has {len(arrays[name])} tokens, experts_TLK has {tokens}")
    if trace.num_tokens != tokens or not len(prompt_ids) == len(domains) == len(trace.prompt_offsets) - 1:
        raise InputError(f"{directory}: files of different traces; run the split stage again")
    return trace


def _map(path: Path) -> npt.NDArray[Any]:
    try:
        mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGE_ERRORS as error:
        raise InputError(f"{path}: not a readable array ({first_line_of(error)}); run the split stage again") from error
    return mapped


assert set(_ARRAYS) <= {field.name for field in fields(Trace)}  # noqa: S101 - the working form follows the schema
