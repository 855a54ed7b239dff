"""The arrays of an `.npz`, without trusting the sizes that it claims and without unpickling anything."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.documents import repeated
from moe_beyond.errors import DAMAGE_ERRORS, InputError, first_line_of, reason_of
from moe_beyond.formats.importers.sources import COUNTS, counts_are_no_trace
from moe_beyond.limits import limits

Arrays = dict[str, npt.NDArray[Any]]


def load_npz(data: bytes, names: Sequence[str], where: str) -> Arrays:
    """Those of the named arrays that are there; numbers in C order, integers as they are stored or as int64.

    Raises:
        InputError: No `.npz`, an array twice, of counts, of another kind, larger than `Limits.file_bytes` or cut short.
    """
    return {name: _load_array(content, f"{where}: {name}") for name, content in _unzip(data, names, where).items()}


def _unzip(data: bytes, wanted: Sequence[str], where: str) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            for name in names:
                if name in COUNTS:
                    raise InputError(counts_are_no_trace(where, name))
            if (twice := repeated(names)) is not None:
                raise InputError(f"{where}: array {twice!r} is there twice; save the file again")
            found = [name for name in wanted if name in names]
            if sum(archive.getinfo(f"{name}.npy").file_size for name in found) > limits().file_bytes:
                raise InputError(f"{where}: more than {limits().file_bytes >> 20} MiB of arrays in one file; split it")
            return {name: archive.read(f"{name}.npy") for name in found}
    except InputError:
        raise
    except DAMAGE_ERRORS as error:
        raise InputError(f"{where}: not a readable .npz ({first_line_of(error)}); save it again") from error


def _load_array(data: bytes, where: str) -> npt.NDArray[Any]:
    stream = BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"format version {version}")
        shape, fortran_order, dtype = read_header(stream)
    except DAMAGE_ERRORS as error:
        raise InputError(f"{where}: not a NumPy array ({reason_of(error)[:120]}); save it again") from error
    if dtype.kind not in "iuf" or fortran_order:
        raise InputError(
            f"{where}: {dtype} in {'Fortran' if fortran_order else 'C'} order, expected integers in C order"
        )
    num_bytes = len(data) - stream.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != num_bytes:
        raise InputError(
            f"{where}: {num_bytes} bytes for shape {shape} of {dtype}; the file is cut short, save it again"
        )
    array = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)
    if dtype.kind == "f":
        return array
    # as small as it is stored, for an array is large; two of 64 bits would become floats
    return array.astype(np.int64 if dtype.itemsize == 8 else dtype.newbyteorder("="), copy=False)
