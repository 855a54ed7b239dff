"""How much a cache holds: slots or bytes, of the whole model or of each layer.

Shape suffixes: M experts of the model, L MoE layers, G groups that share a budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.simulator.jit import F64, I32, I64
from moe_beyond.traces.schema import TraceMetadata


@dataclass(frozen=True)
class Budget:
    """The limit of a cache in its own units, with the group of experts that each limit is for.

    Attributes:
        units_M: What an expert takes: 1, or its bytes; int64.
        group_M: The group whose budget it takes it from, int64.
        budget_G: Units of each group, int64.
    """

    units_M: I64
    group_M: I64
    budget_G: I64

    @property
    def capacity_experts(self) -> int:
        """Experts that fit; of a budget in bytes, how many of the smallest."""
        return self.in_experts(self.budget_G)

    def held_at_most(self, members_A: I32, offsets_N: I64, *, overrun: bool) -> int:
        """Experts that a cache may hold after an event, in the measure of `capacity_experts`.

        Args:
            members_A: Experts of all events, one event after another, each of one group.
            offsets_N: Where the experts of each event begin and end, int64 [N+1].
            overrun: Whether an event's experts stay until the next event of their group even above its budget. Groups
                do so side by side.
        """
        return self.in_experts(self.most_G(members_A, offsets_N)) if overrun else self.capacity_experts

    def most_G(self, members_A: I32, offsets_N: I64) -> I64:
        """Units that each group holds at most where an event's experts stay above its budget, int64."""
        first_N = offsets_N[:-1][np.diff(offsets_N) > 0]
        most_G = self.budget_G.copy()
        np.maximum.at(most_G, self.group_M[members_A[first_N]], np.add.reduceat(self.units_M[members_A], first_N))
        return most_G

    def in_experts(self, units_G: I64) -> int:
        """Units as a number of the smallest experts."""
        return int(units_G.sum() // self.units_M.min())

    @classmethod
    def slots(cls, meta: TraceMetadata, capacity_experts: int, *, per_layer: bool = False) -> Self:
        """`capacity_experts` experts of any size.

        Per layer, the slots are dealt out evenly, the first layers get what is left over.

        Raises:
            InputError: The capacity is not between 1 and the experts of the model.
        """
        if not 1 <= capacity_experts <= meta.num_model_experts:
            raise InputError(
                f"capacity: {capacity_experts} experts, {meta.model_id} has {meta.num_model_experts}; "
                f"give between 1 and {meta.num_model_experts}"
            )
        return cls._dealt(meta, np.ones(meta.num_model_experts, np.int64), capacity_experts, per_layer=per_layer)

    @classmethod
    def bytes(cls, meta: TraceMetadata, capacity_bytes: int, *, per_layer: bool = False) -> Self:
        """As many experts as fit into `capacity_bytes`.

        Raises:
            InputError: The budget does not hold the largest expert.
        """
        largest = max(meta.expert_bytes)
        if capacity_bytes < largest:
            raise InputError(
                f"budget: {capacity_bytes} bytes, the largest expert of {meta.model_id} has {largest}; give more"
            )
        sizes_M = np.repeat(np.asarray(meta.expert_bytes, np.int64), meta.num_experts)
        return cls._dealt(meta, sizes_M, capacity_bytes, per_layer=per_layer)

    @classmethod
    def weighted(cls, meta: TraceMetadata, total: int, weights_L: npt.ArrayLike, *, in_bytes: bool = False) -> Self:
        """A budget for each layer in proportion to its weight; `split.fit_split` finds weights.

        No layer gets more than all of its experts take: what it cannot use goes to the others. Units that do not
        divide go to the largest remainders, of equal ones to the first layers.

        Args:
            meta: The model's shape.
            total: Slots, or bytes with `in_bytes`.
            weights_L: A number from 0 up for each MoE layer.
            in_bytes: Whether `total` is bytes.

        Raises:
            InputError: As `slots` or `bytes` for the total; or weights that are not a number from 0 up for each layer,
                one of them above 0.
        """
        plain = cls.bytes(meta, total) if in_bytes else cls.slots(meta, total)
        weights = np.asarray(weights_L, np.float64)
        if (
            weights.shape != (meta.num_layers,)
            or not (np.isfinite(weights) & (weights >= 0)).all()
            or not weights.any()
        ):
            raise InputError(
                f"split over layers: {weights.tolist()}; {meta.model_id} has {meta.num_layers} MoE layers, give a "
                "number from 0 up for each, one of them above 0"
            )
        full_L = plain.units_M.reshape(meta.num_layers, -1).sum(axis=1)
        layers = np.repeat(np.arange(meta.num_layers, dtype=np.int64), meta.num_experts)
        return cls(plain.units_M, layers, _in_proportion(min(total, int(full_L.sum())), weights, full_L))

    @classmethod
    def _dealt(cls, meta: TraceMetadata, units_M: I64, total: int, *, per_layer: bool) -> Self:
        if not per_layer:
            return cls(units_M, np.zeros(meta.num_model_experts, np.int64), np.array([total], np.int64))
        layers = np.arange(meta.num_layers, dtype=np.int64)
        share_L = total // meta.num_layers + (layers < total % meta.num_layers)
        return cls(units_M, np.repeat(layers, meta.num_experts), share_L.astype(np.int64))


def _in_proportion(total: int, weights_L: F64, full_L: I64) -> I64:
    """Whole parts of `total`, none above `full_L`, int64 [L]."""
    # a weight of nothing takes what the others cannot: slots are not thrown away
    weights_L = np.maximum(weights_L / weights_L.sum(), 1e-12)
    share_L = np.zeros(len(full_L))
    filling = np.ones(len(full_L), bool)
    while filling.any():
        share_L[filling] = (total - share_L[~filling].sum()) * weights_L[filling] / weights_L[filling].sum()
        over = filling & (share_L >= full_L)
        if not over.any():
            break
        share_L[over] = full_L[over]
        filling &= ~over
    # a share that is a whole number but for rounding stays one
    whole_L = np.floor(share_L + 1e-6).astype(np.int64)
    rest = total - int(whole_L.sum())
    order = np.argsort(-(share_L - whole_L), kind="stable")
    order = order[whole_L[order] < full_L[order]]
    whole_L[order[:rest]] += 1
    return whole_L
