"""Strict parsing that the readers of placements share: what engines take silently is refused here."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from moe_beyond.errors import InputError, reason_of

_INTEGER = re.compile(r"-?[0-9]{1,18}")


def lines_of(data: bytes) -> list[str]:
    """Lines of a text; raises InputError for what is no UTF-8, is empty, or ends within a line."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"no UTF-8 text: {reason_of(error)}") from error
    if not text.endswith("\n"):
        raise InputError("the file is empty or its last line is cut off")
    return text[:-1].split("\n")


def integer(text: str, where: str) -> int:
    """A whole number in decimal digits and nothing else; `where` names its place."""
    if not _INTEGER.fullmatch(text):
        raise InputError(f"{where}: {text[:40]!r} is no whole number")
    return int(text)


def json_of(data: bytes) -> Any:
    """A JSON document; raises InputError for what is none, repeats a key or holds NaN."""
    try:
        return json.loads(data, object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"no JSON: {reason_of(error)}") from error


def one_key(document: Any, key: str) -> Any:
    """The value of an object that has this key and no other."""
    if not isinstance(document, dict) or list(document) != [key]:
        found = sorted(map(str, document)) if isinstance(document, dict) else type(document).__name__
        raise InputError(f"expected an object with the one key {key!r}, found {found}")
    return document[key]


def table_of(value: Any, rows: int, columns: int | None, what: str) -> list[list[int]]:
    """Rows of whole numbers.

    Args:
        value: From JSON.
        rows: How many there must be.
        columns: How long each must be; None: as long as the first.
        what: Names the table.
    """
    if not isinstance(value, list) or len(value) != rows:
        found = len(value) if isinstance(value, list) else type(value).__name__
        raise InputError(f"{what}: {found} rows, expected {rows}")
    for number, row in enumerate(value):
        width = len(value[0]) if columns is None and isinstance(value[0], list) else columns
        if not isinstance(row, list) or len(row) != width or not all(type(entry) is int for entry in row):
            raise InputError(f"{what}: row {number} must hold {width} whole numbers")
    return value


def distinct_experts(experts: Sequence[int], num_experts: int, where: str) -> None:
    """Raise InputError for an id that the model does not have, or one that stands there twice."""
    wrong = next((expert for expert in experts if not 0 <= expert < num_experts), None)
    if wrong is not None:
        raise InputError(f"{where}: expert {wrong}, the model has experts 0 to {num_experts - 1}")
    if len(set(experts)) != len(experts):
        twice = next(expert for expert in experts if experts.count(expert) > 1)
        raise InputError(f"{where}: expert {twice} stands there twice")


def counts_of_layers(counts: Sequence[Sequence[int]], layer_numbers: Sequence[int]) -> None:
    """Raise InputError for a negative count, a dense layer with counts, or a MoE layer without any."""
    for layer, row in enumerate(counts):
        if min(row) < 0:
            raise InputError(f"layer {layer}: a count is negative")
        if any(row) != (layer in layer_numbers):
            state = "is dense and has counts" if any(row) else "has experts and no counts"
            raise InputError(f"layer {layer} {state}: layers are numbered as in the model, dense ones included")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")
