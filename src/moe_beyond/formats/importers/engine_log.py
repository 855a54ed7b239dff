"""How the files of engines become a trace, and the readers that these formats share: binary records and lines.

Sizes that a file names are compared with its length before anything is allocated. Shape suffixes as in `passes`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from struct import Struct
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError, reason_of
from moe_beyond.formats.importers.model_config import NAME, ShapeOverride, shape_beside
from moe_beyond.formats.importers.passes import Passes, routed_passes
from moe_beyond.formats.importers.routed import Routed, data_set, routed_prompts
from moe_beyond.formats.importers.rows import Rows, routed_rows
from moe_beyond.formats.importers.sources import decode_utf8, is_single_file, read_each, read_json
from moe_beyond.traces.schema import Decoding, Trace, TraceMetadata, trace_of

MAX_TOP_K = 4096
"""Experts per token that a record may name; more is another format."""
Parse = Callable[[bytes, str], Passes | Rows]


def read_logs(
    source: Path,
    domain: str | None,
    override: ShapeOverride,
    *,
    suffix: str | tuple[str, ...],
    parse: Parse,
    origin: str,
    decoding: Decoding = "unknown",
) -> Trace:
    """Read the files of a folder or archive, or a single file of any name, as a trace.

    Args:
        source: The folder, archive or file.
        domain: Name of the data set.
        override: What a person says of model and prefill.
        suffix: How the names of the files end in a folder or archive.
        parse: Makes a file's bytes into its routing.
        origin: What wrote the files, for the trace's metadata.
        decoding: As in the trace's metadata.

    Raises:
        InputError: As `parse`, and as the readers of passes, rows and the model's shape.
    """
    domain, prompts = data_set(source, domain), []
    shape, files = routed_logs(source, override, suffix, parse)
    for name, where, routed in files:
        prompts += routed_prompts(routed, name, where, domain, override.prefill_tokens)
    return trace_of(shape.model_copy(update={"source": origin, "decoding": decoding}), prompts)


def routed_logs(
    source: Path, override: ShapeOverride, suffix: str | tuple[str, ...], parse: Parse
) -> tuple[TraceMetadata, list[tuple[str, str, list[Routed]]]]:
    """The model's shape; and of each file its name, its name in messages, and its prompts. As `read_logs`."""

    def read_file(stream: IO[bytes], name: str, where: str) -> tuple[str, Passes | Rows] | None:
        return None if name.rpartition("/")[2] == NAME else (name, parse(stream.read(), where))

    found = read_each(source, "" if is_single_file(source) else suffix, read_file)
    logs = [log for log in found if log is not None]
    if not logs:
        raise InputError(f"{source}: holds no file but {NAME}; check the path and the format")
    first = logs[0][1]
    experts = first.experts_AK if isinstance(first, Passes) else first.experts_RK
    # where the format cuts a person's number of experts off, it says none itself
    shape, num_layers = shape_beside(source, override, first.num_experts, override.top_k or experts.shape[1])
    files = []
    for name, log in logs:
        if log.num_experts not in (None, shape.num_experts):
            raise InputError(
                f"{log.where}: {log.num_experts} experts, the model has {shape.num_experts}; use one model"
            )
        if isinstance(log, Passes):
            routed = routed_passes(said_of(log, override), shape, num_layers)
        else:
            routed = routed_rows(log, shape)
        files.append((name, log.where, routed))
    return shape, files


def said_of(log: Passes, override: ShapeOverride) -> Passes:
    """The log, as one prompt where a person gives the length of its prefill."""
    return log if override.prefill_tokens in (None, "0", "all") else replace(log, unmarked=True)


def fixed_records(
    data: bytes, fields: Callable[[int], list[Any]], where: str, *, head: str = "<ii", k_field: str = "k"
) -> npt.NDArray[Any]:
    """Records of one size, whose number of experts stands in the first one.

    Args:
        data: The records.
        fields: The fields of a record by that number, as of a NumPy dtype; one of them is `k_field`.
        where: Names the file in messages.
        head: How a record begins; its second number is the number of experts.
        k_field: Name of the field that holds the number of experts.

    Raises:
        InputError: No whole number of records, or another number of experts in one of them.
    """
    start = Struct(head)
    if len(data) < start.size:
        raise InputError(f"{where}: {len(data)} bytes, less than one record; the file is cut short")
    top_k = start.unpack_from(data)[1]
    if not 1 <= top_k <= MAX_TOP_K:
        raise InputError(f"{where}: record 0: {top_k} experts, expected 1 to {MAX_TOP_K}; check the format")
    dtype = np.dtype(fields(top_k))
    whole, rest = divmod(len(data), dtype.itemsize)
    records = np.frombuffer(data, dtype, whole)
    wrong = records[k_field] != top_k
    if wrong.any():
        record = int(np.argmax(wrong))
        raise InputError(
            f"{where}: record {record}: {records[k_field][record]} experts, record 0 has {top_k}; is it cut short, or "
            "another format?"
        )
    if rest:
        raise InputError(
            f"{where}: {rest} bytes behind record {whole - 1}, a record has {dtype.itemsize}; the file is cut short"
        )
    return records


def unpack_header(data: bytes, magic: bytes, header: Struct, where: str) -> tuple[int, ...]:
    """The numbers of a binary log's header after its magic word. Raises InputError if it does not begin so."""
    if len(data) < header.size or not data.startswith(magic):
        raise InputError(f"{where}: does not begin with {magic.decode()!r} and its header; check the format")
    return header.unpack_from(data)[1:]


def layer_records(
    data: bytes,
    where: str,
    *,
    head: str,
    fields: tuple[str, ...],
    start: int = 0,
    id_type: str = "<i4",
    top_k: int | None = None,
    may_be_cut: bool = False,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Records of all tokens of a layer: a head, then tokens x k ids.

    Args:
        data: The file.
        where: Names it in messages.
        head: How a record begins.
        fields: What the numbers of the head are; `tokens` is one, and `k` unless `top_k` is given.
        start: Where the first record begins.
        id_type: dtype of an id.
        top_k: Experts per token, where the file says it once.
        may_be_cut: A last record that is not whole is left out.

    Returns:
        The numbers of the heads [records, fields], and the ids [tokens of all records, k].

    Raises:
        InputError: A record is cut short, of no tokens, or has another number of experts than the first.
    """
    begins, width = Struct(head), np.dtype(id_type).itemsize
    # flat, without an object a record: there may be millions
    heads, ids, count = array("q"), bytearray(), 0
    while start < len(data):
        at = f"{where}: record {count}"
        if start + begins.size > len(data):
            if may_be_cut:
                break
            raise InputError(
                f"{at}: {len(data) - start} bytes, its head alone has {begins.size}; the file is cut short"
            )
        numbers = begins.unpack_from(data, start)
        named = dict(zip(fields, numbers, strict=True))
        tokens, k = named["tokens"], named.get("k") or top_k or 0
        if tokens < 1 or not 1 <= k <= MAX_TOP_K or k != (top_k := top_k or k):
            raise InputError(f"{at}: {tokens} tokens of {k} experts, expected 1 and more of {top_k}; check the format")
        size = tokens * k * width
        if start + begins.size + size > len(data):
            if may_be_cut:
                break
            raise InputError(
                f"{at}: {tokens} tokens of {k} experts need {size} bytes, {len(data) - start - begins.size} are left; "
                "the file is cut short"
            )
        heads.extend(numbers)
        count += 1
        ids += data[start + begins.size : start + begins.size + size]
        start += begins.size + size
    if not count:
        raise InputError(f"{where}: no records; remove the file")
    ids_AK = np.frombuffer(ids, id_type).reshape(-1, top_k or 1)
    return np.frombuffer(heads, np.int64).reshape(count, -1), ids_AK


def lines_of(data: bytes, where: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, and their numbers from 1. Raises InputError if the file is not UTF-8."""
    for number, line in enumerate(BytesIO(data), start=1):
        text = decode_utf8(line, f"{where}: line {number}").strip("\r\n")
        if text.strip():
            yield number, text


def json_lines(data: bytes, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file, and the numbers of their lines. Raises InputError if a line is none."""
    for number, line in lines_of(data, where):
        fields = read_json(line.encode(), f"{where}: line {number}")
        if not isinstance(fields, dict):
            raise InputError(f"{where}: line {number}: expected an object, found {type(fields).__name__}")
        yield number, fields


def _shown(value: Any) -> str:
    """A value in a message: one short line, whatever it is."""
    return reason_of(repr(value))[:40]


def whole(value: Any, name: str, at: str) -> int:
    """A whole number of 32 bits from JSON or text. Raises InputError if it is none."""
    if isinstance(value, str) and len(value) <= 10 and value.isascii() and value.removeprefix("-").isdecimal():
        value = int(value)
    if type(value) is not int or not -(2**31) <= value < 2**31:
        raise InputError(f"{at}: {name} is {_shown(value)}, expected a whole number")
    return value


def whole_list(value: Any, name: str, at: str) -> list[int]:
    """A list of whole numbers, at least one. Raises InputError if it is none."""
    if not isinstance(value, list) or not value:
        raise InputError(f"{at}: {name} is {_shown(value)}, expected a list of whole numbers")
    return [whole(item, name, at) for item in value]


def number_list(value: Any, name: str, at: str) -> list[float]:
    """A list of numbers. Raises InputError if it is none."""
    if not isinstance(value, list) or not all(type(item) in (int, float) and abs(item) < 1e30 for item in value):
        raise InputError(f"{at}: {name} is {_shown(value)}, expected a list of numbers")
    return [float(item) for item in value]


class Table:
    """Lists of numbers of one length, kept without an object a number while lines are read."""

    def __init__(self, where: str, code: str = "i") -> None:
        self._where = where
        self._numbers = array(code)
        self._width = 0
        self._first = 0

    def add(self, items: Sequence[float], line: int) -> None:
        """Add a list of a line. Raises InputError if its length is another than that of the lists before."""
        if not self._width:
            self._width, self._first = len(items), line
        if len(items) != self._width:
            raise InputError(
                f"{self._where}: line {line}: {len(items)} numbers, line {self._first} has {self._width}; a router "
                "chooses as many experts for every token"
            )
        self._numbers.extend(items)  # type: ignore[arg-type]  # an array of integers is given integers

    def array(self) -> npt.NDArray[Any]:
        """All lists, [lines, length]; int64 or float32. Raises InputError if there are none."""
        if not self._width:
            raise InputError(f"{self._where}: no rows; remove the file")
        flat = np.frombuffer(self._numbers, self._numbers.typecode).reshape(-1, self._width)
        return flat.astype(np.int64) if self._numbers.typecode == "i" else flat
