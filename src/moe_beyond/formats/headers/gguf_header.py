"""The header of a GGUF file: its fields and what it says of its tensors, from the first bytes alone.

`gguf.GGUFReader` builds views of tensors' data and needs the whole file; here numbers of types, their sizes and the
names of keys are the package's. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, Keys

from moe_beyond.documents import require_plain
from moe_beyond.errors import InputError
from moe_beyond.formats.headers.model_sizes import ModelSizes, Part, Tensor, sizes_of

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# more than any model has; a damaged count would be walked through for minutes
_MOST_FIELDS, _MOST_TENSORS, _MOST_STRINGS = 8192, 1_000_000, 2**24
_LONGEST_KEY, _LONGEST_TEXT = 65_535, 1024
_MOST_BYTES = 2**50
_SCALARS = {
    **{GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h"},
    **{GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f", GGUFValueType.BOOL: "?"},
    **{GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d"},
}
SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf$")
# experts of a layer in one tensor, or a tensor each as converters wrote Mixtral until 2024
_EXPERTS = re.compile(r"ffn_(?:gate|up|down|gate_up)(?:_(?:ch)?exps|\.(?P<expert>[0-9]{1,5}))\.")
_LAYER = re.compile(r"^blk\.([0-9]{1,5})\.")
# of these tables a token reads a row
_TABLES = ("token_embd.weight", "per_layer_token_embd.weight")


@dataclass(frozen=True)
class Header:
    """Scalar and string fields of a file, without its arrays, and its tensors."""

    fields: dict[str, Any]
    tensors: list[Tensor]


def read_gguf(path: Path) -> ModelSizes:
    """Sizes of the model in a GGUF file, and in the other shards beside it where it is split.

    Raises:
        InputError: Damaged, cut short within a header, of no mixture of experts, or shards are missing.
    """
    first = read_header(path)
    headers, count = [first], first.fields.get(Keys.Split.LLM_KV_SPLIT_COUNT, 0)
    if count > 1:
        headers = [read_header(shard) for shard in _shards(path, count)]
        promised = first.fields.get(Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT)
        found = sum(len(header.tensors) for header in headers)
        if promised not in (None, found):
            raise InputError(f"{path}: its shards hold {found} tensors, promised are {promised}; fetch them again")
    fields, where = headers[0].fields, str(path)
    architecture = fields.get(Keys.General.ARCHITECTURE)
    if not isinstance(architecture, str):
        raise InputError(
            f"{path}: {Keys.General.ARCHITECTURE} is missing; give a model's file, the first of its shards"
        )
    tensors = [tensor for header in headers for tensor in header.tensors]
    names = {tensor.name for tensor in tensors}
    if len(names) < len(tensors):
        raise InputError(f"{path}: two tensors have one name; fetch it again")

    def number(key: str, default: int | None = None) -> int:
        value = fields.get(key.format(arch=architecture), default)
        if type(value) is not int or not 0 <= value < 2**31:
            raise InputError(
                f"{path}: {key.format(arch=architecture)} is {'missing' if value is None else repr(value)[:40]}; "
                "expected the header of a mixture of experts"
            )
        return value

    _same_in_every_layer(names, path)
    has_head = "output.weight" in names

    def part_of(tensor: Tensor) -> Part:
        found, layer = _EXPERTS.search(tensor.name), _LAYER.match(tensor.name)
        expert = None if found is None or found["expert"] is None else int(found["expert"])
        # without an output head of its own a model reads the embeddings as one
        read = tensor.name not in _TABLES or (tensor.name == _TABLES[0] and not has_head)
        return Part(int(layer[1]) if layer else None, found is not None, expert, read)

    return sizes_of(
        tensors,
        part_of,
        name=str(fields.get(Keys.General.NAME) or architecture),
        source=f"GGUF header, {architecture}",
        num_layers=number(Keys.LLM.BLOCK_COUNT) - number(Keys.LLM.NEXTN_PREDICT_LAYERS, 0),
        num_experts=number(Keys.LLM.EXPERT_COUNT),
        top_k=number(Keys.LLM.EXPERT_USED_COUNT),
        where=where,
    )


def _same_in_every_layer(names: set[str], path: Path) -> None:
    """Raise InputError if a layer lacks a tensor of experts that another has: its name is damaged."""
    of_layer: dict[str, set[str]] = defaultdict(set)
    for name in names:
        layer = _LAYER.match(name)
        if layer and _EXPERTS.search(name):
            of_layer[layer[1]].add(name[layer.end() :])
    everything = set[str]().union(*of_layer.values())
    for layer_number, found in of_layer.items():
        for lacking in sorted(everything - found)[:1]:
            raise InputError(
                f"{path}: layer {layer_number} lacks {lacking:.60}, which other layers have; fetch it again"
            )


def _shards(path: Path, count: int) -> list[Path]:
    """All shards of a split model by the name of one; the first one has the fields."""
    named = SHARD.match(path.name)
    if named is None or int(named["count"]) != count:
        raise InputError(
            f"{path}: one of {count} shards; name it and the others as they were published, such as "
            f"model-00001-of-{count:05d}.gguf"
        )
    shards = [path.with_name(f"{named['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(f"{path}: shards are missing: {', '.join(missing[:3])}{more}; fetch their first bytes")
    return shards


def read_header(path: Path) -> Header:
    """Fields and tensors of one file.

    Raises:
        InputError: It cannot be read, is damaged, or ends within the header.
    """
    try:
        with require_plain(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data, str(path)).header()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable file ({error}); give the first bytes of a GGUF file") from error


class _Cursor:
    """A place in the bytes of a file, from which the next value is read."""

    def __init__(self, data: mmap.mmap, where: str) -> None:
        self._data, self._where, self._at, self._order = data, where, 0, "<"

    def header(self) -> Header:
        if self._take(4) != MAGIC:
            raise self._damaged("it does not begin with GGUF")
        found = self._number(GGUFValueType.UINT32)
        if found & 0xFFFF == 0:  # written on a machine of the other byte order
            self._order, found = ">", found >> 24
        if found not in _VERSIONS:
            raise self._damaged(f"version {found}, expected one of {_VERSIONS}")
        num_tensors = self._count(_MOST_TENSORS, "tensors")
        num_fields = self._count(_MOST_FIELDS, "fields")
        fields: dict[str, Any] = {}
        for _ in range(num_fields):
            key = self._string(_LONGEST_KEY)
            if key in fields:
                raise self._damaged(f"field {key!r:.60} is given twice")
            fields[key] = self._value(self._type())
        alignment = fields.get(Keys.General.ALIGNMENT, 32)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
            raise self._damaged(f"{Keys.General.ALIGNMENT} is {alignment!r:.40}")
        tensors, begins = [], 0
        for _ in range(num_tensors):
            tensor = self._tensor(begins)
            begins += -(-tensor.num_bytes // alignment) * alignment
            tensors.append(tensor)
        return Header(fields, tensors)

    def _tensor(self, begins: int) -> Tensor:
        name = self._string(_LONGEST_TEXT)
        num_dims = self._number(GGUFValueType.UINT32)
        if not 1 <= num_dims <= 4:
            raise self._damaged(f"tensor {name!r:.60} has {num_dims} dimensions")
        fastest_first = [self._number(GGUFValueType.UINT64) for _ in range(num_dims)]
        kind, offset = self._number(GGUFValueType.UINT32), self._number(GGUFValueType.UINT64)
        try:
            weights, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except ValueError as error:
            raise InputError(
                f"{self._where}: tensor {name!r:.60} has type {kind}, unknown to the package gguf "
                f"{version('gguf')}; fetch the file again, or install a newer gguf"
            ) from error
        num_bytes = math.prod(fastest_first) // weights * block_bytes
        if fastest_first[0] % weights or not 0 < num_bytes <= _MOST_BYTES:
            raise self._damaged(f"tensor {name!r:.60} of {'x'.join(map(str, fastest_first))} weights")
        # a wrong dimension or type shows: tensors lie one after another
        if offset != begins:
            raise self._damaged(f"tensor {name!r:.60} begins at {offset}, expected {begins}")
        return Tensor(name, tuple(reversed(fastest_first)), num_bytes)

    def _value(self, kind: GGUFValueType) -> Any:
        """A value; None for an array or a long text, such as a chat template, which are passed over."""
        if kind is GGUFValueType.STRING:
            length = self._number(GGUFValueType.UINT64)
            if length <= _LONGEST_TEXT:
                return self._text(length)
            self._take(length, kept=False)
            return None
        if kind is not GGUFValueType.ARRAY:
            return self._number(kind)
        item = self._type()
        if item is GGUFValueType.ARRAY:
            raise self._damaged("an array of arrays")
        if item is not GGUFValueType.STRING:
            self._take(self._number(GGUFValueType.UINT64) * struct.calcsize(_SCALARS[item]), kept=False)
            return None
        for _ in range(self._count(_MOST_STRINGS, "strings")):
            self._take(self._number(GGUFValueType.UINT64), kept=False)
        return None

    def _type(self) -> GGUFValueType:
        kind = self._number(GGUFValueType.UINT32)
        try:
            return GGUFValueType(kind)
        except ValueError as error:
            raise self._damaged(f"a field of type {kind}") from error

    def _number(self, kind: GGUFValueType) -> Any:
        letter = self._order + _SCALARS[kind]
        return struct.unpack(letter, self._take(struct.calcsize(letter)))[0]

    def _count(self, most: int, what: str) -> int:
        count = int(self._number(GGUFValueType.UINT64))
        if count > most:
            raise self._damaged(f"it promises {count} {what}, expected at most {most}")
        return count

    def _string(self, longest: int) -> str:
        length = self._number(GGUFValueType.UINT64)
        if length > longest:
            raise self._damaged(f"a name of {length} bytes")
        return self._text(length)

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise self._damaged("a name that is not UTF-8") from error

    def _take(self, length: int, *, kept: bool = True) -> bytes:
        begin, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise InputError(
                f"{self._where}: ends within its header, after {len(self._data)} bytes; fetch more of its first bytes"
            )
        return self._data[begin : self._at] if kept else b""

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self._where}: a damaged GGUF header: {what}; fetch it again")
