"""Records of experts with few levels for a weight: written once, read in place of the whole record.

Of n levels that lie a step s apart, a weight becomes the nearest of (i - (n - 1) / 2) s, 0 <= i < n. So 2^b levels are
symmetric about zero and take b bits, and 3 are the -1, 0 and 1 of ternary weights (MoTE) and take two. Up to 64 weights
in a row share a step, a float16. From 16 levels on it spans the largest of them; fewer levels take the step of the
least squared error among parts of that. Parameters of one axis, the biases, stay as they are.

Shape suffixes: R rows of a parameter, G groups in a row, W weights in a group, N bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from moe_beyond.live.store import StoredParameter
from moe_beyond.simulator.jit import F32, compiled

WHOLE, TERNARY, INT4, INT8 = 0, 3, 16, 256
"""Levels of a weight. WHOLE: it stays as it is."""

_GROUP = 64
_SPANS_ALL = 16
_PARTS = torch.linspace(1, 0.2, 17).tolist()
_ALIGNMENT = 8

U8s = npt.NDArray[np.uint8]


class Quantiser:
    """Packs the records of one store with so many levels, and unpacks them.

    Attributes:
        nbytes: Bytes of a packed record.
    """

    def __init__(self, parameters: Sequence[StoredParameter], levels: int) -> None:
        """For records of these parameters; 2 to 256 levels."""
        self._levels, self._bits = levels, (levels - 1).bit_length()
        self._parts, end = [], 0
        for parameter in parameters:
            part = _Part(parameter, end, self._bits)
            self._parts.append(part)
            end = part.end
        self.nbytes = end

    def pack(self, record_N: torch.Tensor) -> torch.Tensor:
        """A record, uint8, in `nbytes`, uint8."""
        packed_N = torch.zeros(self.nbytes, dtype=torch.uint8)
        for part in self._parts:
            value = part.whole(record_N)
            if not part.rows:
                packed_N[part.start : part.start + part.parameter.nbytes] = value.view(torch.uint8)
                continue
            weights_RGW = part.grouped(value.float())
            step_RG1 = _steps(weights_RGW, self._levels)
            codes = _codes(weights_RGW, step_RG1.float(), self._levels)
            packed_N[part.start : part.codes].view(torch.float16)[: part.rows * part.groups] = step_RG1.flatten()
            _write_codes(codes.to(torch.uint8).flatten().numpy(), self._bits, packed_N[part.codes : part.end].numpy())
        return packed_N

    def unpack(self, packed_N: torch.Tensor, record_N: torch.Tensor) -> None:
        """Write the parameters of a packed record where a whole one has them."""
        for part in self._parts:
            value = part.whole(record_N)
            if not part.rows:
                value.view(torch.uint8)[:] = packed_N[part.start : part.start + part.parameter.nbytes]
                continue
            steps = packed_N[part.start : part.codes].view(torch.float16).float().numpy()
            codes, offset = packed_N[part.codes : part.end].numpy(), (self._levels - 1) / 2
            # where that is the record's own form, in place
            exact = value.dtype == torch.float32
            weights = value.numpy() if exact else np.empty(value.numel(), np.float32)
            _read_codes(codes, self._bits, steps, offset, part.columns, part.width, part.groups, weights)
            if not exact:
                value.copy_(torch.from_numpy(weights))


class _Part:
    """Where a parameter lies: steps from `start`, codes from `codes` to `end`, or all of it where `rows` is 0."""

    def __init__(self, parameter: StoredParameter, start: int, bits: int) -> None:
        self.parameter, self.start = parameter, start
        self.rows = self.groups = self.width = 0
        self.codes, self.end = start, start + _aligned(parameter.nbytes)
        if len(parameter.shape) > 1:
            self.columns = parameter.shape[-1]
            self.rows = math.prod(parameter.shape[:-1])
            self.groups = -(-self.columns // _GROUP)
            self.width = -(-self.columns // self.groups)
            self.codes = start + _aligned(2 * self.rows * self.groups)
            # a code may lie in two bytes, so one more is read
            self.end = self.codes + _aligned(-(-self.rows * self.groups * self.width * bits // 8) + 1)

    def whole(self, record_N: torch.Tensor) -> torch.Tensor:
        """The parameter in a whole record, flat, without copying."""
        first = self.parameter.offset
        return record_N[first : first + self.parameter.nbytes].view(self.parameter.dtype)

    def grouped(self, weights: torch.Tensor) -> torch.Tensor:
        """[R, G, W]; the last weight of a row fills its last group."""
        missing = self.groups * self.width - self.columns
        rows = torch.nn.functional.pad(weights.view(self.rows, self.columns), (0, missing), mode="replicate")
        return rows.view(self.rows, self.groups, self.width)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _steps(weights_RGW: torch.Tensor, levels: int) -> torch.Tensor:
    """The step of each group, float16 [R, G, 1]."""
    widest_RG1 = 2 * weights_RGW.abs().amax(dim=2, keepdim=True) / (levels - 1)
    if levels >= _SPANS_ALL:
        return widest_RG1.half()
    best_RG1, least_RG1 = widest_RG1.half(), torch.full_like(widest_RG1, torch.inf)
    for part in _PARTS:
        step_RG1 = (part * widest_RG1).half()
        values = (_codes(weights_RGW, step_RG1.float(), levels) - (levels - 1) / 2) * step_RG1.float()
        error_RG1 = (values - weights_RGW).square().sum(dim=2, keepdim=True)
        best_RG1 = torch.where(error_RG1 < least_RG1, step_RG1, best_RG1)
        least_RG1 = torch.minimum(error_RG1, least_RG1)
    return best_RG1


def _codes(weights_RGW: torch.Tensor, step_RG1: torch.Tensor, levels: int) -> torch.Tensor:
    places = torch.where(step_RG1 > 0, weights_RGW / step_RG1, 0) + levels / 2
    return places.floor().clamp(0, levels - 1)


@compiled()
def _write_codes(codes: U8s, bits: int, packed_N: U8s) -> None:
    """Codes one after another, the first in the lowest bits; `packed_N` holds zeros."""
    for i in range(len(codes)):
        at = i * bits
        word = np.uint16(codes[i]) << np.uint16(at & 7)
        packed_N[at >> 3] |= np.uint8(word & 255)
        packed_N[(at >> 3) + 1] |= np.uint8(word >> 8)


@compiled()
def _read_codes(  # noqa: PLR0917 - compiled functions take positional arguments only
    packed_N: U8s, bits: int, steps: F32, offset: float, columns: int, width: int, groups: int, weights: F32
) -> None:
    """Weights from the codes of all rows, `columns` weights each."""
    mask, offset32 = (1 << bits) - 1, np.float32(offset)
    for row in range(len(weights) // columns):
        for group in range(groups):
            first = group * width
            step = steps[row * groups + group]
            at = (row * groups + group) * width * bits
            for column in range(first, min(first + width, columns)):
                word = (int(packed_N[at >> 3]) | int(packed_N[(at >> 3) + 1]) << 8) >> (at & 7)
                weights[row * columns + column] = (np.float32(word & mask) - offset32) * step
                at += bits
