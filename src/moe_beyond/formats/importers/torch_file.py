"""Files of torch.save, read without unpickling anything but tensors and plain values."""

from __future__ import annotations

import zipfile
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import DAMAGE_ERRORS, InputError, reason_of


def load_pt(data: bytes, where: str) -> Any:
    """What a `.pt` holds: dictionaries, lists, numbers, tensors.

    Raises:
        InputError: No file of torch.save, one with other objects, or one that is larger unpacked than it is.
    """
    import torch  # noqa: PLC0415 - takes seconds

    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(data):
                raise InputError(f"{where}: compressed, or its sizes are wrong; save it again with torch.save")
        return torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except InputError:
        raise
    except DAMAGE_ERRORS as error:
        raise InputError(
            f"{where}: no file of torch.save that holds tensors and plain values alone ({reason_of(error)[:120]})"
        ) from error


def integers_of(tensor: Any, where: str) -> npt.NDArray[np.int64]:
    """A tensor of integers, or a list of them, as int64. Raises InputError if it is none, or larger than its memory."""
    import torch  # noqa: PLC0415

    if isinstance(tensor, list):
        try:
            array = np.array(tensor)
        except (ValueError, OverflowError):
            array = np.array(0.5)
    elif isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_meta:
        # strides of 0 make a few bytes look like any number of them
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() or tensor.is_quantized:
            raise InputError(f"{where}: a tensor of {tuple(tensor.shape)} in fewer bytes; save a copy of it")
        array = tensor.detach().float().numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().numpy()
    else:
        raise InputError(f"{where}: {type(tensor).__name__}, expected a tensor")
    if array.dtype.kind == "f" and array.size and np.isfinite(array).all() and (array == np.rint(array)).all():
        array = np.clip(array, -(2.0**62), 2.0**62).astype(np.int64)
    if array.dtype.kind not in "iu":
        raise InputError(f"{where}: {array.dtype}, expected whole numbers")
    integers: npt.NDArray[np.int64] = array.astype(np.int64)
    return integers
