"""llama.cpp's importance matrix as GGUF: how many tokens of a calibration text each expert processed.

`blk.<layer>.ffn_{gate,up,down,gate_up}_exps.weight.counts`, float32 [1, experts]; all of one layer are equal. Prefill
alone. The older `.dat` keeps no count by expert. Layout: llama.cpp, tools/imatrix/imatrix.cpp.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.documents import require_plain
from moe_beyond.errors import InputError, reason_of
from moe_beyond.formats.counts import ExpertCounts

_COUNTS = re.compile(r"blk\.([0-9]{1,4})\.ffn_(?:gate|up|down|gate_up)_(?:ch)?exps\.weight\.counts")
_MOST_FIELDS = 65536


def imatrix(path: Path) -> ExpertCounts:
    """Counts of an imatrix GGUF, a file that is not packed.

    Raises:
        InputError: No GGUF, none of an imatrix, one without experts, or tensors of a layer that differ.
    """
    where = str(path)
    with require_plain(path).open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise InputError(f"{where}: does not begin with 'GGUF'; an imatrix.dat keeps no counts by expert: write a GGUF")
    found: dict[int, npt.NDArray[np.float64]] = {}
    for name, values in _tensors(path, where):
        match = _COUNTS.fullmatch(name)
        if match is None:
            continue
        counts_E, layer = np.asarray(values, np.float64).reshape(-1), int(match[1])
        if not (np.isfinite(counts_E) & (counts_E >= 0) & (counts_E < 2**53)).all() or len(counts_E) < 2:
            raise InputError(f"{where}: {name}: counts that are no finite numbers from 0 of several experts")
        if layer in found and not np.array_equal(found[layer], counts_E):
            raise InputError(f"{where}: {name}: other counts than another tensor of layer {layer}; measure it again")
        found[layer] = counts_E
    if not found:
        raise InputError(
            f"{where}: no counts of experts (blk.N.ffn_*_exps.weight.counts); is the model one with experts?"
        )
    if len({len(counts_E) for counts_E in found.values()}) > 1:
        raise InputError(f"{where}: layers of several numbers of experts; expected one number")
    layers = tuple(sorted(found))
    return ExpertCounts("unknown", layers, np.rint([found[n] for n in layers]).astype(np.int64), "llama.cpp imatrix")


def _tensors(path: Path, where: str) -> list[tuple[str, Any]]:
    """Names and values of the tensors; sizes that the header names are compared with the file's."""
    import gguf  # noqa: PLC0415 - takes a while, and only this format needs it

    class Strict(gguf.GGUFReader):  # type: ignore[misc, unused-ignore]
        """Refuses what goes beyond the file's end, where the reader itself returns less."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            values = super()._get(offset, dtype, count, override_order)
            if len(values) != int(count):
                raise ValueError(f"{count} values at byte {offset}, {len(values)} are there")
            return values

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            is_array = raw_type == gguf.GGUFValueType.ARRAY
            if is_array and self._get(orig_offs + 4, np.uint64)[0] > _MOST_FIELDS:
                raise ValueError("a list of too many values")
            return super()._get_field_parts(orig_offs, raw_type)

        def _build_fields(self, offs: int, count: int) -> int:
            if count > _MOST_FIELDS:
                raise ValueError(f"{count} fields")
            return int(super()._build_fields(offs, count))

        def _build_tensor_info(self, offs: int, count: int) -> Any:
            if count > _MOST_FIELDS:
                raise ValueError(f"{count} tensors")
            return super()._build_tensor_info(offs, count)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numbers of the header that overflow are refused by their size
        try:
            reader = Strict(path)
            kind = reader.get_field("general.type")
            if kind is None or kind.contents() != "imatrix":
                raise InputError(f"{where}: a GGUF, but none of an imatrix; it holds no counts")
            return [(tensor.name, np.array(tensor.data)) for tensor in reader.tensors if _COUNTS.fullmatch(tensor.name)]
        except InputError:
            raise
        except (
            ValueError,
            LookupError,
            TypeError,
            ArithmeticError,
            AttributeError,
            RecursionError,
            MemoryError,
        ) as error:
            raise InputError(f"{where}: a damaged GGUF ({reason_of(error)[:120]}); fetch it again") from error
