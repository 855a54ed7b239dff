"""The experts of a model on disk, one record an expert, read past the page cache.

A store is a folder that `packing` writes:

experts.bin     one record an expert; record `layer index * experts a layer + expert` starts at that many times `stride`
manifest.json   whose experts, where each parameter lies in a record, digests; written last: a store with it is whole

A record holds the expert's slice of each parameter of its experts module, in the module's order, each at a multiple of
64 bytes, and zeros up to `stride`, a multiple of 4096.
"""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, ValidationError
from xxhash import xxh3_128_hexdigest

from moe_beyond.errors import InputError

PAGE = 4096
"""Bytes; what direct reads start and end at."""
RECORDS = "experts.bin"
MANIFEST = "manifest.json"


def _dtype(value: object) -> torch.dtype:
    dtype = value if isinstance(value, torch.dtype) else getattr(torch, str(value), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{value!r} is no dtype of torch")
    return dtype


_Dtype = Annotated[
    torch.dtype, PlainValidator(_dtype), PlainSerializer(lambda dtype: str(dtype).removeprefix("torch."))
]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)


class StoredParameter(_Stored):
    """One parameter of one expert.

    Attributes:
        name: As in the experts module.
        shape: Without the axis of experts.
        dtype: Torch's dtype.
        offset: Bytes from the start of a record.
    """

    name: str
    shape: tuple[int, ...]
    dtype: _Dtype
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes in a record."""
        return math.prod(self.shape) * self.dtype.itemsize


class Contents(_Stored):
    """What a store holds, known before its records are written.

    Attributes:
        format: Version of the layout.
        model_id: Hub id or folder that the experts come from.
        revision: Names the weights, as `capture.models.revision` does.
        layer_numbers: Numbers of the MoE layers in the model, rising.
        num_experts: Experts a layer.
        parameters: Parameters of an expert, in the order of a record.
        record_bytes: Bytes of a record without the zeros at its end.
        stride: Bytes from one record to the next.
    """

    format: Literal[1] = 1
    model_id: str
    revision: str
    layer_numbers: tuple[int, ...]
    num_experts: int
    parameters: tuple[StoredParameter, ...]
    record_bytes: int
    stride: int

    @property
    def num_model_experts(self) -> int:
        """Experts of all layers."""
        return len(self.layer_numbers) * self.num_experts

    @property
    def total_bytes(self) -> int:
        """Bytes of all records."""
        return self.num_model_experts * self.stride


class Manifest(_Stored):
    """What `manifest.json` holds.

    Attributes:
        contents: What the store holds.
        digests: XXH3, 128 bits, of each record's `stride` bytes.
        digest: The same of all of the above.
    """

    contents: Contents
    digests: tuple[str, ...]
    digest: str = ""

    def sealed(self) -> Self:
        """With its own digest."""
        return self.model_copy(update={"digest": xxh3_128_hexdigest(self.model_dump_json(exclude={"digest"}).encode())})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a whole store.

    Raises:
        InputError: There is none, it was changed or damaged, or the records are shorter than it says.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder}: holds no {MANIFEST}, so no whole expert store; pack the model first") from error
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"])
        raise InputError(
            f"{path}: {where + ': ' if where else ''}{detail['msg']}; it is damaged or of another version: delete "
            f"{folder} and pack the model again"
        ) from error
    contents = manifest.contents
    if manifest != manifest.sealed() or len(manifest.digests) != contents.num_model_experts:
        raise InputError(f"{path}: changed or damaged since it was written; delete {folder} and pack the model again")
    records = folder / RECORDS
    found = records.stat().st_size if records.exists() else 0
    if found != contents.total_bytes:
        raise InputError(
            f"{records}: {found} bytes, but {MANIFEST} says {contents.total_bytes}; delete {folder} and pack the model "
            "again"
        )
    return manifest


def aligned_buffer(nbytes: int) -> torch.Tensor:
    """An uninitialised uint8 tensor on the CPU whose address is a multiple of 4096, as direct reads need."""
    whole = torch.empty(nbytes + PAGE - 1, dtype=torch.uint8)
    start = -whole.data_ptr() % PAGE
    return whole[start : start + nbytes]


class ExpertStore:
    """An open store; threads can share it. Experts are numbered over the model: layer index * num_experts + expert.

    Attributes:
        folder: Where it is.
        model_id: Hub id or folder that the experts come from.
        revision: Names their weights.
        layer_numbers: Numbers of the MoE layers in the model, rising.
        num_layers: MoE layers.
        num_experts: Experts a layer.
        num_model_experts: Experts of all layers.
        parameters: Parameters of an expert, in the order of a record.
        record_bytes: Bytes of a record without the zeros at its end.
        stride: Bytes of a record with them, a multiple of 4096.
        direct: Whether the file system lets aligned reads go past the page cache; else each read is dropped from it.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        contents = manifest.contents
        self.folder = folder
        self.model_id = contents.model_id
        self.revision = contents.revision
        self.layer_numbers = contents.layer_numbers
        self.num_layers = len(contents.layer_numbers)
        self.num_experts = contents.num_experts
        self.num_model_experts = contents.num_model_experts
        self.parameters = contents.parameters
        self.record_bytes = contents.record_bytes
        self.stride = contents.stride
        self._digests = manifest.digests
        self._path = folder / RECORDS
        self._buffered = os.open(self._path, os.O_RDONLY)
        # a read must not bring in its neighbours
        os.posix_fadvise(self._buffered, 0, 0, os.POSIX_FADV_RANDOM)
        self._direct = open_direct(self._path)
        self.direct = self._direct is not None

    @classmethod
    def open(cls, folder: Path, *, revision: str | None = None) -> Self:
        """Open a whole store.

        Args:
            folder: That `pack` wrote.
            revision: Refuse experts of other weights than these.

        Raises:
            InputError: No store, a manifest that was changed, records shorter than it says, another revision.
        """
        manifest = read_manifest(folder)
        found = manifest.contents
        if revision not in (None, found.revision):
            raise InputError(
                f"{folder}: holds the experts of {found.model_id} at revision {found.revision}, not {revision}; pack "
                "the model that you run into another folder"
            )
        return cls(folder, manifest)

    def read(self, expert: int, buffer: memoryview, start: int, end: int) -> None:
        """Read bytes [start, end) of a record into `buffer[start:end]`, without the interpreter's lock.

        Goes past the page cache where `direct` holds and `start`, `end` and the address of `buffer[start]` are
        multiples of 4096.

        Args:
            expert: Over the model.
            buffer: Writable bytes of at least `end`.
            start: First byte.
            end: Byte after the last.

        Raises:
            InputError: The file ends before.
        """
        if not (0 <= expert < self.num_model_experts and 0 <= start <= end <= min(self.stride, len(buffer))):
            raise ValueError(f"expert {expert}, bytes {start} to {end} of {len(buffer)}: outside the store or buffer")
        address = np.frombuffer(buffer, np.uint8).ctypes.data
        record = expert * self.stride
        done = start
        while done < end:
            # after a short read the rest may no longer be aligned
            aligned = self._direct is not None and not (done | end | (address + done)) % PAGE
            descriptor = self._direct if aligned and self._direct is not None else self._buffered
            got = os.preadv(descriptor, [buffer[done:end]], record + done)
            if got == 0:
                raise InputError(f"{self._named(expert)} ends early; delete {self.folder} and pack the model again")
            if descriptor == self._buffered:
                first = (record + done) // PAGE * PAGE
                os.posix_fadvise(descriptor, first, record + end - first, os.POSIX_FADV_DONTNEED)
            done += got

    def check(self, expert: int, buffer: memoryview) -> None:
        """Compare a whole record, `stride` bytes of `buffer`, with the digest that packing took.

        Raises:
            InputError: It differs.
        """
        if xxh3_128_hexdigest(buffer[: self.stride]) != self._digests[expert]:
            raise InputError(f"{self._named(expert)} was changed or damaged since it was packed; pack it again")

    def views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters that a record holds, by name, without copying.

        Args:
            buffer: uint8, at least `record_bytes`.
        """
        return {
            parameter.name: buffer[parameter.offset : parameter.offset + parameter.nbytes]
            .view(parameter.dtype)
            .view(parameter.shape)
            for parameter in self.parameters
        }

    def close(self) -> None:
        """Close the file; reads fail afterwards."""
        for descriptor in (self._buffered, self._direct):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self._buffered, self._direct = -1, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _named(self, expert: int) -> str:
        layer, number = divmod(expert, self.num_experts)
        return f"{self._path}: layer {self.layer_numbers[layer]}, expert {number}"


def open_direct(path: Path) -> int | None:
    """A descriptor that reads past the page cache, or None where the file system has none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None
    try:
        # some file systems open it and refuse to read
        os.preadv(descriptor, [aligned_buffer(PAGE).numpy().data], 0)
    except OSError as error:
        os.close(descriptor)
        if error.errno != errno.EINVAL:
            raise
        return None
    return descriptor
