"""How often each expert was chosen, where the order of the choices is not known or does not matter.

Shape suffixes as in `traces.schema`: L Mixture-of-Experts layers, E routed experts in a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.traces.schema import Trace


@dataclass(frozen=True)
class ExpertCounts:
    """Choices of each expert. Enough for pinned experts and coverage, not for whatever depends on order.

    Attributes:
        model_id: The model's name.
        layer_numbers: Numbers of the MoE layers in the model, rising; dense layers are not listed.
        counts_LE: int64, none negative.
        source: Where the counts come from.
        top_k: Experts per token; None: not known.
        expert_bytes: Bytes of one expert, one number a layer; None: not known.
    """

    model_id: str
    layer_numbers: tuple[int, ...]
    counts_LE: npt.NDArray[np.int64]
    source: str
    top_k: int | None = None
    expert_bytes: tuple[int, ...] | None = None

    @property
    def num_layers(self) -> int:
        """Number of Mixture-of-Experts layers, L."""
        return len(self.layer_numbers)

    @property
    def num_experts(self) -> int:
        """Routed experts in a layer, E."""
        return int(self.counts_LE.shape[1])


def count_experts(trace: Trace) -> ExpertCounts:
    """The choices of all tokens, prefill and decode."""
    meta = trace.metadata
    counts_LE = np.stack(
        [
            np.bincount(trace.experts_TLK[:, layer].ravel(), minlength=meta.num_experts)
            for layer in range(meta.num_layers)
        ]
    )
    return ExpertCounts(
        meta.model_id, meta.layer_numbers, counts_LE.astype(np.int64), meta.source, meta.top_k, meta.expert_bytes
    )


def checked_counts(counts: ExpertCounts, where: str) -> ExpertCounts:
    """`counts`, if it can be a model's.

    Raises:
        InputError: Shapes that do not belong together, a negative count, a layer without any; names `where`.
    """
    layers, counts_LE = counts.layer_numbers, counts.counts_LE
    if counts_LE.ndim != 2 or len(layers) != len(counts_LE) or not layers:
        raise InputError(
            f"{where}: counts of shape {counts_LE.shape} for {len(layers)} layers; one row a layer is needed"
        )
    if list(layers) != sorted(set(layers)) or layers[0] < 0:
        raise InputError(f"{where}: layers {_shown(layers)} must rise without repetition")
    if counts.expert_bytes is not None and len(counts.expert_bytes) != len(layers):
        raise InputError(f"{where}: {len(counts.expert_bytes)} expert sizes for {len(layers)} layers")
    if counts.top_k is not None and not 1 <= counts.top_k <= counts.num_experts:
        raise InputError(f"{where}: top-{counts.top_k} of {counts.num_experts} experts is not possible")
    if (counts_LE < 0).any():
        layer, expert = np.argwhere(counts_LE < 0)[0]
        raise InputError(f"{where}: layer {layers[layer]}, expert {expert}: the count is negative")
    empty = np.flatnonzero(counts_LE.sum(axis=1) == 0)
    if len(empty):
        raise InputError(
            f"{where}: layer {layers[empty[0]]} has no counts: a dense layer, or nothing was recorded; leave it out"
        )
    return counts


def _shown(layers: tuple[Any, ...]) -> str:
    return str(list(layers[:8])) if len(layers) <= 8 else f"{list(layers[:8])[:-1]}..."
