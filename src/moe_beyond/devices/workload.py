"""What there is to move and to compute for a token, beside what a trace says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_beyond.devices.device import MILLISECONDS, Device
from moe_beyond.traces.schema import TraceMetadata

MIB = 2**20


@dataclass(frozen=True)
class Workload:
    """Bytes of a model's parts, and how far ahead an engine may prefetch.

    Attributes:
        expert_bytes_L: int64; bytes of an expert of each MoE layer.
        dense_bytes_L: int64; bytes of each layer that every token reads: attention, shared experts, norms.
        lookahead: For how many layers beyond the present one prefetches may be under way, unless a policy says
            otherwise.
    """

    expert_bytes_L: npt.NDArray[np.int64]
    dense_bytes_L: npt.NDArray[np.int64]
    lookahead: int

    @classmethod
    def of(
        cls,
        meta: TraceMetadata,
        lookahead: int,
        *,
        expert_mib: float | None = None,
        dense_bytes: int | None = None,
    ) -> Workload:
        """A model's workload.

        Args:
            meta: The model's shape.
            lookahead: As the attribute.
            expert_mib: MiB of every expert; None: as traced.
            dense_bytes: Of all layers together; None: as traced, and where the trace does not say, a layer's dense
                weights are assumed to be as large as the k experts that a token uses in it.
        """
        sizes = meta.expert_bytes if expert_mib is None else (round(expert_mib * MIB),) * meta.num_layers
        expert_bytes_L = np.asarray(sizes, np.int64)
        dense_bytes_L = expert_bytes_L * meta.top_k
        if dense_bytes is not None:
            dense_bytes_L = np.full(meta.num_layers, dense_bytes // meta.num_layers, np.int64)
        elif meta.dense_bytes is not None:
            dense_bytes_L = np.asarray(meta.dense_bytes, np.int64)
        return cls(expert_bytes_L, dense_bytes_L, lookahead)

    def compute_ms(
        self, layer_N: npt.NDArray[np.int32], experts_N: npt.NDArray[np.int64], device: Device
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Milliseconds of each event before its experts are known, and with them: float64 [N] each.

        Args:
            layer_N: Index of each event's MoE layer.
            experts_N: Distinct experts that each event uses.
            device: Its processor.
        """
        dense_ms_L = device.dense_ms(self.dense_bytes_L.astype(np.float64)) + device.layer_overhead_us / 1e3
        expert_ms_L = device.read_ms(self.expert_bytes_L.astype(np.float64))
        return dense_ms_L[layer_N], expert_ms_L[layer_N] * experts_N

    def least_transfer_ms(self, loads: int, device: Device) -> float:
        """Milliseconds that so many loads keep the link busy at least.

        Each counts as the smallest expert, without setup, and as if it lay in the page cache where there is one.
        """
        smallest = float(self.expert_bytes_L.min())
        each_ms = smallest / (device.link_gb_per_s * 1e9) * MILLISECONDS
        if device.link_curve:
            each_ms = device.transfer_ms(smallest)
        if device.page_gb_per_s is not None:
            each_ms = min(each_ms, device.page_ms(smallest))
        return loads * each_ms

    def held_bytes(self, capacity_experts: int) -> float:
        """Bytes of a cache of so many experts of mean size, and of the dense weights."""
        return float(capacity_experts * self.expert_bytes_L.mean() + self.dense_bytes_L.sum())

    def resident_bytes(self, top_k: int) -> int:
        """Bytes of fast memory that a decoded token reads: dense parts of all layers, and k experts in each."""
        return int((self.dense_bytes_L + top_k * self.expert_bytes_L).sum())


def dense_size(meta: TraceMetadata, given: int | None, device: Device | None) -> tuple[int | None, str]:
    """The argument `dense_bytes` of `Workload.of`, and where it comes from: `given`, `trace`, `device` or `assumed`.

    A device that was fitted to a recording knows what a token read there: what its experts leave of that is dense.
    """
    if given is not None:
        return given, "given"
    if meta.dense_bytes is not None:
        return None, "trace"
    if device is not None and device.resident_mib is not None:
        rest = round(device.resident_mib * MIB) - meta.top_k * sum(meta.expert_bytes)
        if rest >= 0:
            return rest, "device"
    return None, "assumed"


ASSUMED_DENSE = "Dense parts are assumed to be as large as a token's experts; give their size with --dense-mib."
