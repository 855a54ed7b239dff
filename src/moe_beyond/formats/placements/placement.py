"""Which experts of each layer stay in fast memory: what every engine's own file says in its own words.

Shape suffixes: L Mixture-of-Experts layers, E routed experts in a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.counts import ExpertCounts, checked_counts

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Split = Literal["model", "layer", "layers", "last layers"]
"""How a budget is dealt out: to the most used experts of the whole model; to as many of each layer; to whole layers,
the smallest first, of equal ones the last; to the last layers."""


@dataclass(frozen=True)
class ModelShape:
    """What a file must agree with.

    Attributes:
        layer_numbers: Numbers of the MoE layers in the model, rising.
        model_layers: Layers of the model, dense ones too.
        num_experts: Routed experts of each MoE layer, E.
        top_k: Experts per token; None: not known.
    """

    layer_numbers: tuple[int, ...]
    model_layers: int
    num_experts: int
    top_k: int | None = None

    def __post_init__(self) -> None:
        """Refuse a model that has fewer layers than are numbered."""
        if self.model_layers <= self.layer_numbers[-1]:
            raise InputError(
                f"model layers: {self.model_layers}, but layer {self.layer_numbers[-1]} has experts; give at least "
                f"{self.layer_numbers[-1] + 1}"
            )

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """Numbers of the layers without experts."""
        return tuple(sorted(set(range(self.model_layers)) - set(self.layer_numbers)))

    def require_no_dense_layers(self, what: str) -> None:
        """Raise InputError where the model has any; `what` names the format."""
        if self.dense_layers:
            raise InputError(
                f"{what} numbers layers from 0 and needs experts in each; of this model's {self.model_layers} layers "
                f"{_listed(self.dense_layers)} are dense: the engine would refuse the file or shift every layer"
            )

    def require_top_k(self, what: str) -> int:
        """The experts per token; raises InputError where they are not known. `what` names the format."""
        if self.top_k is None:
            raise InputError(f"{what} says how many experts a token uses, which the counts do not; give --top-k")
        return self.top_k


@dataclass(frozen=True)
class Placement:
    """Ordered experts of each layer, and how many of them stay.

    Attributes:
        counts: How often each expert was used, the model's layers, and where that comes from.
        model_layers: Layers of the model, dense ones too.
        slots_L: int64; experts that stay of each MoE layer, the most used ones.
        budget_bytes: What they may take together; None: a number of slots was given.
        together_LEE: int64; tokens that used both experts, symmetric; None: not known, as where order is lost.
    """

    counts: ExpertCounts
    model_layers: int
    slots_L: Ints
    budget_bytes: int | None = None
    together_LEE: Ints | None = None

    @cached_property
    def model(self) -> ModelShape:
        """What a file for the model must agree with."""
        counts = self.counts
        return ModelShape(counts.layer_numbers, self.model_layers, counts.num_experts, counts.top_k)

    @cached_property
    def order_LE(self) -> Ints:
        """Experts of each layer, the most used first, of equally used ones the lower id first."""
        return np.argsort(-self.counts.counts_LE, axis=1, kind="stable")

    @property
    def kept(self) -> list[list[int]]:
        """Experts that stay of each MoE layer, the most used first."""
        return [order[:slots].tolist() for order, slots in zip(self.order_LE, self.slots_L, strict=True)]

    @property
    def kept_LE(self) -> Bools:
        """True for experts that stay."""
        kept_LE = np.zeros(self.counts.counts_LE.shape, np.bool_)
        for layer, experts in enumerate(self.kept):
            kept_LE[layer, experts] = True
        return kept_LE

    @property
    def ranked(self) -> list[tuple[int, int]]:
        """Pairs of MoE layer (its index) and expert that stay, the most used of the model first."""
        layers, experts = np.divmod(_ranked_M(self.counts.counts_LE), self.counts.num_experts)
        kept_LE = self.kept_LE
        return [pair for pair in zip(layers.tolist(), experts.tolist(), strict=True) if kept_LE[pair]]

    @property
    def slots_of_each(self) -> int:
        """The slots of a layer, where all have as many. Raises InputError where they differ."""
        if len(set(self.slots_L.tolist())) != 1:
            raise InputError("this format has one number of slots for all layers, the placement has several")
        return int(self.slots_L[0])

    @property
    def num_kept(self) -> int:
        """Experts that stay in the whole model."""
        return int(self.slots_L.sum())

    @property
    def kept_bytes(self) -> int | None:
        """What they take; None: the size of an expert is not known."""
        sizes = self.counts.expert_bytes
        return None if sizes is None else int(self.slots_L @ np.asarray(sizes, np.int64))

    @property
    def rows_of_model(self) -> list[list[int]]:
        """Counts of all layers of the model, [model layers][E]; dense ones are zero."""
        counts = np.zeros((self.model_layers, self.counts.num_experts), np.int64)
        counts[list(self.counts.layer_numbers)] = self.counts.counts_LE
        rows: list[list[int]] = counts.tolist()
        return rows

    @classmethod
    def of(
        cls,
        counts: ExpertCounts,
        split: Split,
        *,
        budget_bytes: int | None = None,
        slots: int | None = None,
        model_layers: int | None = None,
        together_LEE: Ints | None = None,
    ) -> Self:
        """The most used experts that fit.

        Args:
            counts: How often each expert was used.
            split: How the budget is dealt out.
            budget_bytes: Memory for experts; or
            slots: as many experts a layer, on average where layers do not get the same.
            model_layers: Layers of the model; None: the last MoE layer is its last.
            together_LEE: As the attribute.

        Raises:
            InputError: Counts that cannot be a model's; no budget or two; one that holds no expert, or more than there
                are; or one in bytes where the size of an expert is not known.
        """
        sizes_L = _sizes_L(checked_counts(counts, counts.model_id), budget_bytes, slots)
        budget = (slots or 0) * counts.num_layers if budget_bytes is None else budget_bytes
        slots_L = _SPLITS[split](counts, sizes_L, budget)
        if not slots_L.any():
            needed = {"model": "an expert", "layer": "an expert of each layer"}.get(split, "all experts of a layer")
            unit = "slots" if budget_bytes is None else "bytes"
            raise InputError(f"budget: {budget} {unit} do not hold {needed}; give more")
        layers = counts.layer_numbers[-1] + 1 if model_layers is None else model_layers
        placement = cls(counts, layers, slots_L, budget_bytes, together_LEE)
        _ = placement.model  # refuses a wrong number of layers
        return placement


def _sizes_L(counts: ExpertCounts, budget_bytes: int | None, slots: int | None) -> Ints:
    """What an expert of each layer takes of the budget."""
    if (budget_bytes is None) == (slots is None):
        raise InputError("how much stays in fast memory? give either --budget-mib or --slots, experts of each layer")
    if slots is not None:
        if not 1 <= slots <= counts.num_experts:
            raise InputError(f"slots: {slots} of each layer's {counts.num_experts} experts; give 1 to all of them")
        return np.ones(counts.num_layers, np.int64)
    if counts.expert_bytes is None:
        raise InputError("budget: the counts do not say how large an expert is; give --slots, experts of each layer")
    return np.asarray(counts.expert_bytes, np.int64)


def _ranked_M(counts_LE: Ints) -> Ints:
    """All experts of the model, the most used first, of equally used ones the earlier layer's, then the lower id."""
    return np.argsort(-counts_LE.reshape(-1), kind="stable")


def _of_model(counts: ExpertCounts, sizes_L: Ints, budget: int) -> Ints:
    layers = _ranked_M(counts.counts_LE) // counts.num_experts
    return np.bincount(layers[np.cumsum(sizes_L[layers]) <= budget], minlength=counts.num_layers).astype(np.int64)


def _of_each_layer(counts: ExpertCounts, sizes_L: Ints, budget: int) -> Ints:
    return np.full(counts.num_layers, min(counts.num_experts, budget // int(sizes_L.sum())), np.int64)


def _whole_layers(counts: ExpertCounts, sizes_L: Ints, budget: int, *, smallest_first: bool) -> Ints:
    last_first = np.arange(counts.num_layers)[::-1]
    order = last_first[np.argsort(sizes_L[last_first], kind="stable")] if smallest_first else last_first
    slots_L = np.zeros(counts.num_layers, np.int64)
    slots_L[order[np.cumsum(sizes_L[order]) * counts.num_experts <= budget]] = counts.num_experts
    return slots_L


_SPLITS: Mapping[Split, Callable[[ExpertCounts, Ints, int], Ints]] = {
    "model": _of_model,
    "layer": _of_each_layer,
    "layers": lambda counts, sizes_L, budget: _whole_layers(counts, sizes_L, budget, smallest_first=True),
    "last layers": lambda counts, sizes_L, budget: _whole_layers(counts, sizes_L, budget, smallest_first=False),
}


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) <= 6 else f"{', '.join(map(str, numbers[:5]))} and more"
